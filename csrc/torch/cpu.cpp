// torch.ops.resflow on CPU tensors: checks, outputs, and the call into csrc/cpu.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "core/check.h"
#include "core/feature_form.h"
#include "core/pack.h"
#include "core/request.h"
#include "cpu/towers/score.h"
#include "torch/tensor.h"
#include "torch/training.h"
#include "torch/twin.h"

namespace resflow::torch_ops {
namespace {

using Scores = std::tuple<Tensor, Tensor, Tensor>;
using Best = std::tuple<Tensor, Tensor>;

// What every scoring op takes after its inputs.
struct Settings {
  const Tensor& packed;
  const Tensor& fusion_weights;
  const std::vector<int64_t>& plan;
  int64_t fusion;
  int64_t weights_per;

  Request request(const char* op) const {
    return {op,
            decode_plan(op, plan.data(), static_cast<int64_t>(plan.size())),
            view_of(op, "packed", packed),
            view_of(op, "fusion_weights", fusion_weights),
            fusion,
            weights_per,
            torch::stable::get_num_threads()};
  }
};

Scores scores_of(const Request& request, const Candidates& candidates) {
  const int64_t count = candidates.count, tasks = request.plan.tasks;
  Tensor logits = empty(ScalarType::Float, {count, tasks});
  Tensor probs = empty(ScalarType::Float, {count, tasks});
  Tensor score = empty(ScalarType::Float, {count});
  cpu::score(request.model(), candidates, request.weights(), request.threads,
             static_cast<float*>(logits.mutable_data_ptr()), static_cast<float*>(probs.mutable_data_ptr()),
             static_cast<float*>(score.mutable_data_ptr()));
  return {logits, probs, score};
}

Best best_of(const Request& request, const Candidates& candidates, int64_t k) {
  Tensor scores = empty(ScalarType::Float, {candidates.requests, k});
  Tensor positions = empty(ScalarType::Long, {candidates.requests, k});
  cpu::score_topk(request.model(), candidates, request.weights(), request.threads, k,
                  static_cast<float*>(scores.mutable_data_ptr()), static_cast<int64_t*>(positions.mutable_data_ptr()));
  return {scores, positions};
}

Tensor pack_towers(std::vector<Tensor> weights, std::vector<int64_t> encoded) {
  constexpr const char* kOp = "pack_towers";
  const Plan plan = decode_plan(kOp, encoded.data(), static_cast<int64_t>(encoded.size()));
  std::vector<TensorView> views;
  for (const Tensor& weight : weights) views.push_back(view_of(kOp, "weights", weight));
  check_weights(kOp, plan, views.data(), static_cast<int64_t>(views.size()));
  Tensor packed = empty(ScalarType::Byte, {plan.packed_bytes});
  resflow::pack_towers(plan, views.data(), packed.mutable_data_ptr());
  return packed;
}

Scores dense_scores(Tensor x, Tensor packed, Tensor fusion_weights, std::vector<int64_t> plan, int64_t fusion,
                    int64_t weights_per) {
  const auto request = Settings{packed, fusion_weights, plan, fusion, weights_per}.request("dense_scores");
  return scores_of(request, request.dense(view_of(request.op, "x", x)));
}

Best dense_topk(Tensor x, Tensor offsets, Tensor packed, Tensor fusion_weights, std::vector<int64_t> plan,
                int64_t fusion, int64_t weights_per, int64_t k) {
  const auto request = Settings{packed, fusion_weights, plan, fusion, weights_per}.request("dense_topk");
  const auto candidates =
      request.dense_requests(view_of(request.op, "x", x), view_of(request.op, "offsets", offsets), k);
  return best_of(request, candidates, k);
}

Scores request_scores(Tensor user, Tensor item, Tensor offsets, Tensor packed, Tensor fusion_weights,
                      std::vector<int64_t> plan, int64_t fusion, int64_t weights_per) {
  const auto request = Settings{packed, fusion_weights, plan, fusion, weights_per}.request("request_scores");
  return scores_of(request, request.split(view_of(request.op, "user", user), view_of(request.op, "item", item),
                                          view_of(request.op, "offsets", offsets)));
}

Best request_topk(Tensor user, Tensor item, Tensor offsets, Tensor packed, Tensor fusion_weights,
                  std::vector<int64_t> plan, int64_t fusion, int64_t weights_per, int64_t k) {
  const auto request = Settings{packed, fusion_weights, plan, fusion, weights_per}.request("request_topk");
  const auto candidates = request.split(view_of(request.op, "user", user), view_of(request.op, "item", item),
                                        view_of(request.op, "offsets", offsets));
  check_positive(request.op, "k", k);
  return best_of(request, candidates, k);
}

std::tuple<Tensor, Tensor> catalog_rows(Tensor item, Tensor packed, std::vector<int64_t> encoded, int64_t element) {
  constexpr const char* kOp = "catalog_rows";
  const Plan plan = decode_plan(kOp, encoded.data(), static_cast<int64_t>(encoded.size()));
  const TensorView item_view = view_of(kOp, "item", item), packed_view = view_of(kOp, "packed", packed);
  check_catalog_rows(kOp, plan, item_view, packed_view, element);
  const int64_t count = item_view.sizes[0], width = plan.tasks * plan.first_padded();
  const auto precision = static_cast<Precision>(element);
  constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Char};
  Tensor table = empty(kTypes[element], {count, width});
  Tensor scales = empty(ScalarType::Float, {precision == Precision::int8 ? count : 0});
  cpu::project_items({plan, packed_view.data}, Request::rows_of(item_view), count, item_view.sizes[1],
                     torch::stable::get_num_threads(), precision, table.mutable_data_ptr(),
                     static_cast<float*>(scales.mutable_data_ptr()));
  return {table, scales};
}

Candidates catalog_candidates(const Request& request, const Tensor& user, const Tensor& ids, const Tensor& offsets,
                              const Tensor& table, const Tensor& scales) {
  return request.catalog(view_of(request.op, "user", user), view_of(request.op, "ids", ids),
                         view_of(request.op, "offsets", offsets), view_of(request.op, "table", table),
                         view_of(request.op, "scales", scales));
}

Scores catalog_scores(Tensor user, Tensor ids, Tensor offsets, Tensor table, Tensor scales, Tensor packed,
                      Tensor fusion_weights, std::vector<int64_t> plan, int64_t fusion, int64_t weights_per) {
  const auto request = Settings{packed, fusion_weights, plan, fusion, weights_per}.request("catalog_scores");
  return scores_of(request, catalog_candidates(request, user, ids, offsets, table, scales));
}

Best catalog_topk(Tensor user, Tensor ids, Tensor offsets, Tensor table, Tensor scales, Tensor packed,
                  Tensor fusion_weights, std::vector<int64_t> plan, int64_t fusion, int64_t weights_per, int64_t k) {
  const auto request = Settings{packed, fusion_weights, plan, fusion, weights_per}.request("catalog_topk");
  const auto candidates = catalog_candidates(request, user, ids, offsets, table, scales);
  check_positive(request.op, "k", k);
  return best_of(request, candidates, k);
}

std::vector<TensorView> views_of(const char* op, const char* argument, const std::vector<Tensor>& tensors) {
  std::vector<TensorView> views;
  views.reserve(tensors.size());
  for (const Tensor& tensor : tensors) views.push_back(view_of(op, argument, tensor));
  return views;
}

FeatureIds feature_ids(const char* op, const char* prefix, const Tensor& ids, const Tensor& values,
                       const Tensor& value_offsets, const std::vector<Tensor>& tables) {
  const std::string name(prefix);
  return {name,
          view_of(op, (name + "ids").c_str(), ids),
          view_of(op, (name + "values").c_str(), values),
          view_of(op, (name + "value_offsets").c_str(), value_offsets),
          0,
          static_cast<int64_t>(tables.size())};
}

FeatureTables feature_tables(const char* op, const std::vector<Tensor>& tables, const std::vector<Tensor>& scales,
                             const std::vector<int64_t>& ragged) {
  return {views_of(op, "tables", tables), views_of(op, "scales", scales), ragged};
}

Scores feature_scores(Tensor ids, Tensor values, Tensor value_offsets, std::vector<Tensor> tables,
                      std::vector<Tensor> scales, std::vector<int64_t> ragged, Tensor packed, Tensor fusion_weights,
                      std::vector<int64_t> plan, int64_t fusion, int64_t weights_per) {
  const auto request = Settings{packed, fusion_weights, plan, fusion, weights_per}.request("feature_scores");
  const FeatureTables all = feature_tables(request.op, tables, scales, ragged);
  FeatureForm form(request, all);
  return scores_of(request, form.dense(feature_ids(request.op, "", ids, values, value_offsets, tables)));
}

Best feature_topk(Tensor ids, Tensor values, Tensor value_offsets, Tensor offsets, std::vector<Tensor> tables,
                  std::vector<Tensor> scales, std::vector<int64_t> ragged, Tensor packed, Tensor fusion_weights,
                  std::vector<int64_t> plan, int64_t fusion, int64_t weights_per, int64_t k) {
  const auto request = Settings{packed, fusion_weights, plan, fusion, weights_per}.request("feature_topk");
  const FeatureTables all = feature_tables(request.op, tables, scales, ragged);
  FeatureForm form(request, all);
  const auto candidates = form.dense_requests(feature_ids(request.op, "", ids, values, value_offsets, tables),
                                              view_of(request.op, "offsets", offsets), k);
  return best_of(request, candidates, k);
}

Scores feature_request_scores(Tensor user_ids, Tensor user_values, Tensor user_value_offsets, Tensor item_ids,
                              Tensor item_values, Tensor item_value_offsets, Tensor offsets, std::vector<Tensor> tables,
                              std::vector<Tensor> scales, std::vector<int64_t> ragged, int64_t user_features,
                              Tensor packed, Tensor fusion_weights, std::vector<int64_t> plan, int64_t fusion,
                              int64_t weights_per) {
  const auto request = Settings{packed, fusion_weights, plan, fusion, weights_per}.request("feature_request_scores");
  const FeatureTables all = feature_tables(request.op, tables, scales, ragged);
  FeatureForm form(request, all);
  const auto candidates =
      form.split(feature_ids(request.op, "user_", user_ids, user_values, user_value_offsets, tables),
                 feature_ids(request.op, "item_", item_ids, item_values, item_value_offsets, tables),
                 view_of(request.op, "offsets", offsets), user_features);
  return scores_of(request, candidates);
}

Best feature_request_topk(Tensor user_ids, Tensor user_values, Tensor user_value_offsets, Tensor item_ids,
                          Tensor item_values, Tensor item_value_offsets, Tensor offsets, std::vector<Tensor> tables,
                          std::vector<Tensor> scales, std::vector<int64_t> ragged, int64_t user_features, Tensor packed,
                          Tensor fusion_weights, std::vector<int64_t> plan, int64_t fusion, int64_t weights_per,
                          int64_t k) {
  const auto request = Settings{packed, fusion_weights, plan, fusion, weights_per}.request("feature_request_topk");
  const FeatureTables all = feature_tables(request.op, tables, scales, ragged);
  FeatureForm form(request, all);
  const auto candidates =
      form.split(feature_ids(request.op, "user_", user_ids, user_values, user_value_offsets, tables),
                 feature_ids(request.op, "item_", item_ids, item_values, item_value_offsets, tables),
                 view_of(request.op, "offsets", offsets), user_features);
  check_positive(request.op, "k", k);
  return best_of(request, candidates, k);
}

}  // namespace
}  // namespace resflow::torch_ops

STABLE_TORCH_LIBRARY_IMPL(resflow, CPU, m) {
#define RESFLOW_OP(name, schema) m.impl(#name, TORCH_BOX(&resflow::torch_ops::name));
#include "contract/ops.def"
}
