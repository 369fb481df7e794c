// torch.ops.resflow on GPU tensors: checks, outputs, and the calls into csrc/cuda.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "core/check.h"
#include "core/feature_form.h"
#include "core/pack.h"
#include "core/request.h"
#include "cuda/towers/rows.h"
#include "cuda/towers/scoring.h"
#include "cuda/topk/topk.h"
#include "torch/cuda_call.h"
#include "torch/twin.h"

namespace resflow::torch_ops {
namespace {

using Scores = std::tuple<Tensor, Tensor, Tensor>;
using Best = std::tuple<Tensor, Tensor>;

// What is left to check of packed weights that lie on the device.
void check_packed_there(DeviceCall& call, const Plan& plan, const Tensor& packed) {
  if (reinterpret_cast<uintptr_t>(packed.const_data_ptr()) % 16 != 0) {
    complain(call.op(), "packed", expected::aligned, "another address", "16");
  }
  if (checks_values()) check_packed(call.op(), plan, call.on_host(packed));
}

// What every scoring op takes after its inputs, and its steps.
class ScoringOp {
 public:
  ScoringOp(const char* op, const Tensor& first, const Tensor& packed, const Tensor& fusion_weights,
            const std::vector<int64_t>& plan, int64_t fusion, int64_t weights_per)
      : call(op, first),
        request{op,
                decode_plan(op, plan.data(), static_cast<int64_t>(plan.size())),
                call.view("packed", packed),
                call.view("fusion_weights", fusion_weights),
                fusion,
                weights_per,
                0},
        packed_(packed) {}

  TensorView view(const char* argument, const Tensor& tensor) { return call.view(argument, tensor); }

  // After the other checks. Tensors the form does not have are null.
  void check_values(int64_t candidates, const Tensor* offsets, const Tensor* ids = nullptr, int64_t items = 0) {
    check_packed_there(call, request.plan, packed_);
    if (!checks_values()) return;
    if (ids) check_ids(call.op(), call.on_host(*ids), items);
    if (offsets) check_offset_values(call.op(), call.on_host(*offsets), candidates);
  }

  Scores scores(const Candidates& candidates) {
    const int64_t count = candidates.count, tasks = request.plan.tasks;
    Tensor logits = call.empty(ScalarType::Float, {count, tasks});
    Tensor probs = call.empty(ScalarType::Float, {count, tasks});
    Tensor score = call.empty(ScalarType::Float, {count});
    run(candidates, {static_cast<float*>(logits.mutable_data_ptr()), static_cast<float*>(probs.mutable_data_ptr()),
                     static_cast<float*>(score.mutable_data_ptr())});
    return {logits, probs, score};
  }

  // The scores lie in the workspace meanwhile, 4 bytes a candidate.
  Best best(const Candidates& candidates, int64_t k) {
    auto* const score = static_cast<float*>(call.workspace(4 * candidates.count));
    run(candidates, {nullptr, nullptr, score});
    Tensor scores = call.empty(ScalarType::Float, {candidates.requests, k});
    Tensor positions = call.empty(ScalarType::Long, {candidates.requests, k});
    void* const workspace = call.workspace(cuda::topk_workspace_bytes(candidates.requests, candidates.count, k));
    cuda::topk(score, candidates.offsets, candidates.requests, candidates.count, k,
               static_cast<float*>(scores.mutable_data_ptr()), static_cast<int64_t*>(positions.mutable_data_ptr()),
               workspace, call.stream());
    return {scores, positions};
  }

  DeviceCall call;
  Request request;

 private:
  void run(const Candidates& candidates, const cuda::Outputs& outputs) {
    const cuda::Scoring scoring(request.model(), candidates, request.weights());
    scoring.run(outputs, call.workspace(scoring.workspace_bytes()), call.stream());
  }

  const Tensor& packed_;
};

// Packing is the CPU's: weights are copied there and the result back, which synchronises.
Tensor pack_towers(std::vector<Tensor> weights, std::vector<int64_t> encoded) {
  constexpr const char* kOp = "pack_towers";
  const Plan plan = decode_plan(kOp, encoded.data(), static_cast<int64_t>(encoded.size()));
  if (weights.empty()) check_weights(kOp, plan, nullptr, 0);  // which says what is missing
  DeviceCall call(kOp, weights[0]);
  const std::vector<TensorView> views = call.views("weights", weights);
  check_weights(kOp, plan, views.data(), static_cast<int64_t>(views.size()));
  std::vector<TensorView> on_host;
  for (const Tensor& weight : weights) on_host.push_back(call.on_host(weight));
  Tensor packed = torch_ops::empty(ScalarType::Byte, {plan.packed_bytes});
  resflow::pack_towers(plan, on_host.data(), packed.mutable_data_ptr());
  Tensor on_device = call.empty(ScalarType::Byte, {plan.packed_bytes});
  return torch::stable::copy_(on_device, packed);
}

Scores dense_scores(Tensor x, Tensor packed, Tensor fusion_weights, std::vector<int64_t> plan, int64_t fusion,
                    int64_t weights_per) {
  ScoringOp op("dense_scores", x, packed, fusion_weights, plan, fusion, weights_per);
  const Candidates candidates = op.request.dense(op.view("x", x));
  op.check_values(candidates.count, nullptr);
  return op.scores(candidates);
}

Best dense_topk(Tensor x, Tensor offsets, Tensor packed, Tensor fusion_weights, std::vector<int64_t> plan,
                int64_t fusion, int64_t weights_per, int64_t k) {
  ScoringOp op("dense_topk", x, packed, fusion_weights, plan, fusion, weights_per);
  const Candidates candidates = op.request.dense_requests(op.view("x", x), op.view("offsets", offsets), k);
  op.check_values(candidates.count, &offsets);
  return op.best(candidates, k);
}

Candidates request_candidates(ScoringOp& op, const Tensor& user, const Tensor& item, const Tensor& offsets) {
  const Candidates candidates =
      op.request.split(op.view("user", user), op.view("item", item), op.view("offsets", offsets));
  op.check_values(candidates.count, &offsets);
  return candidates;
}

Scores request_scores(Tensor user, Tensor item, Tensor offsets, Tensor packed, Tensor fusion_weights,
                      std::vector<int64_t> plan, int64_t fusion, int64_t weights_per) {
  ScoringOp op("request_scores", item, packed, fusion_weights, plan, fusion, weights_per);
  return op.scores(request_candidates(op, user, item, offsets));
}

Best request_topk(Tensor user, Tensor item, Tensor offsets, Tensor packed, Tensor fusion_weights,
                  std::vector<int64_t> plan, int64_t fusion, int64_t weights_per, int64_t k) {
  ScoringOp op("request_topk", item, packed, fusion_weights, plan, fusion, weights_per);
  const Candidates candidates = request_candidates(op, user, item, offsets);
  check_positive(op.call.op(), "k", k);
  return op.best(candidates, k);
}

std::tuple<Tensor, Tensor> catalog_rows(Tensor item, Tensor packed, std::vector<int64_t> encoded, int64_t element) {
  constexpr const char* kOp = "catalog_rows";
  const Plan plan = decode_plan(kOp, encoded.data(), static_cast<int64_t>(encoded.size()));
  DeviceCall call(kOp, item);
  const TensorView items = call.view("item", item), packed_view = call.view("packed", packed);
  check_catalog_rows(kOp, plan, items, packed_view, element);
  check_packed_there(call, plan, packed);
  const int64_t count = items.sizes[0], columns = items.sizes[1], width = plan.tasks * plan.first_padded();
  const auto precision = static_cast<Precision>(element);
  constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Char};
  Tensor table = call.empty(kTypes[element], {count, width});
  Tensor scales = call.empty(ScalarType::Float, {precision == Precision::int8 ? count : 0});
  // Items in turns, so that their float32 products stay below 64 MiB.
  const int64_t at_once = std::max<int64_t>(1, (int64_t(64) << 20) / (4 * width));
  const int64_t most = std::min(count, at_once);
  const Model model{plan, packed_view.data};
  auto* const products = static_cast<float*>(call.workspace(4 * most * width));
  void* const workspace = call.workspace(cuda::project_items_workspace_bytes(plan, most, columns));
  for (int64_t first = 0; first < count; first += at_once) {
    const int64_t rows = std::min(at_once, count - first);
    cuda::project_items(model, Request::rows_of(items).from(first), rows, columns, products, workspace, call.stream());
    char* const to = static_cast<char*>(table.mutable_data_ptr()) + first * width * bytes_of(precision);
    float* const to_scales =
        precision == Precision::int8 ? static_cast<float*>(scales.mutable_data_ptr()) + first : nullptr;
    cuda::round_rows({products, Precision::float32, width}, rows, 1, width, precision, to, to_scales, call.stream());
  }
  return {table, scales};
}

Candidates catalog_candidates(ScoringOp& op, const Tensor& user, const Tensor& ids, const Tensor& offsets,
                              const Tensor& table, const Tensor& scales) {
  const Candidates candidates =
      op.request.catalog(op.view("user", user), op.view("ids", ids), op.view("offsets", offsets),
                         op.view("table", table), op.view("scales", scales));
  op.check_values(candidates.count, &offsets, &ids, candidates.table.items);
  return candidates;
}

Scores catalog_scores(Tensor user, Tensor ids, Tensor offsets, Tensor table, Tensor scales, Tensor packed,
                      Tensor fusion_weights, std::vector<int64_t> plan, int64_t fusion, int64_t weights_per) {
  ScoringOp op("catalog_scores", ids, packed, fusion_weights, plan, fusion, weights_per);
  return op.scores(catalog_candidates(op, user, ids, offsets, table, scales));
}

Best catalog_topk(Tensor user, Tensor ids, Tensor offsets, Tensor table, Tensor scales, Tensor packed,
                  Tensor fusion_weights, std::vector<int64_t> plan, int64_t fusion, int64_t weights_per, int64_t k) {
  ScoringOp op("catalog_topk", ids, packed, fusion_weights, plan, fusion, weights_per);
  const Candidates candidates = catalog_candidates(op, user, ids, offsets, table, scales);
  check_positive(op.call.op(), "k", k);
  return op.best(candidates, k);
}

// The tensors of one side's ids.
struct IdTensors {
  const char* prefix;
  const Tensor& ids;
  const Tensor& values;
  const Tensor& value_offsets;

  template <class View>
  FeatureIds of(View view, int64_t tables) const {
    const std::string name(prefix);
    return {name,
            view((name + "ids").c_str(), ids),
            view((name + "values").c_str(), values),
            view((name + "value_offsets").c_str(), value_offsets),
            0,
            tables};
  }
};

// The feature form's part of a call.
class FeatureOp {
 public:
  FeatureOp(ScoringOp& op, const std::vector<Tensor>& tables, const std::vector<Tensor>& scales,
            const std::vector<int64_t>& ragged)
      : op_(op),
        tables_{op.call.views("tables", tables), op.call.views("scales", scales), ragged},
        form_(op.request, tables_) {}

  Candidates dense(const IdTensors& ids) {
    const Candidates candidates = form_.dense(viewed(ids));
    check(ids, 0, form_.count(), candidates.count, nullptr);
    return candidates;
  }

  Candidates dense_requests(const IdTensors& ids, const Tensor& offsets, int64_t k) {
    const Candidates candidates = form_.dense_requests(viewed(ids), op_.view("offsets", offsets), k);
    check(ids, 0, form_.count(), candidates.count, &offsets);
    return candidates;
  }

  Candidates split(const IdTensors& user, const IdTensors& item, const Tensor& offsets, int64_t user_features) {
    const Candidates candidates = form_.split(viewed(user), viewed(item), op_.view("offsets", offsets), user_features);
    check(user, 0, user_features, candidates.count, nullptr);
    check(item, user_features, form_.count(), candidates.count, &offsets);
    return candidates;
  }

 private:
  FeatureIds viewed(const IdTensors& ids) {
    return ids.of([&](const char* argument, const Tensor& tensor) { return op_.view(argument, tensor); },
                  form_.count());
  }

  void check(const IdTensors& ids, int64_t first, int64_t last, int64_t candidates, const Tensor* offsets) {
    op_.check_values(candidates, offsets);
    if (!checks_values()) return;
    FeatureIds values =
        ids.of([&](const char*, const Tensor& tensor) { return op_.call.on_host(tensor); }, form_.count());
    values.first = first;
    values.last = last;
    check_feature_id_values(op_.call.op(), tables_, values);
  }

  ScoringOp& op_;
  const FeatureTables tables_;
  FeatureForm form_;
};

Scores feature_scores(Tensor ids, Tensor values, Tensor value_offsets, std::vector<Tensor> tables,
                      std::vector<Tensor> scales, std::vector<int64_t> ragged, Tensor packed, Tensor fusion_weights,
                      std::vector<int64_t> plan, int64_t fusion, int64_t weights_per) {
  ScoringOp op("feature_scores", ids, packed, fusion_weights, plan, fusion, weights_per);
  FeatureOp features(op, tables, scales, ragged);
  return op.scores(features.dense({"", ids, values, value_offsets}));
}

Best feature_topk(Tensor ids, Tensor values, Tensor value_offsets, Tensor offsets, std::vector<Tensor> tables,
                  std::vector<Tensor> scales, std::vector<int64_t> ragged, Tensor packed, Tensor fusion_weights,
                  std::vector<int64_t> plan, int64_t fusion, int64_t weights_per, int64_t k) {
  ScoringOp op("feature_topk", ids, packed, fusion_weights, plan, fusion, weights_per);
  FeatureOp features(op, tables, scales, ragged);
  return op.best(features.dense_requests({"", ids, values, value_offsets}, offsets, k), k);
}

Scores feature_request_scores(Tensor user_ids, Tensor user_values, Tensor user_value_offsets, Tensor item_ids,
                              Tensor item_values, Tensor item_value_offsets, Tensor offsets, std::vector<Tensor> tables,
                              std::vector<Tensor> scales, std::vector<int64_t> ragged, int64_t user_features,
                              Tensor packed, Tensor fusion_weights, std::vector<int64_t> plan, int64_t fusion,
                              int64_t weights_per) {
  ScoringOp op("feature_request_scores", item_ids, packed, fusion_weights, plan, fusion, weights_per);
  FeatureOp features(op, tables, scales, ragged);
  return op.scores(features.split({"user_", user_ids, user_values, user_value_offsets},
                                  {"item_", item_ids, item_values, item_value_offsets}, offsets, user_features));
}

Best feature_request_topk(Tensor user_ids, Tensor user_values, Tensor user_value_offsets, Tensor item_ids,
                          Tensor item_values, Tensor item_value_offsets, Tensor offsets, std::vector<Tensor> tables,
                          std::vector<Tensor> scales, std::vector<int64_t> ragged, int64_t user_features, Tensor packed,
                          Tensor fusion_weights, std::vector<int64_t> plan, int64_t fusion, int64_t weights_per,
                          int64_t k) {
  ScoringOp op("feature_request_topk", item_ids, packed, fusion_weights, plan, fusion, weights_per);
  FeatureOp features(op, tables, scales, ragged);
  const Candidates candidates =
      features.split({"user_", user_ids, user_values, user_value_offsets},
                     {"item_", item_ids, item_values, item_value_offsets}, offsets, user_features);
  check_positive(op.call.op(), "k", k);
  return op.best(candidates, k);
}

}  // namespace
}  // namespace resflow::torch_ops

#if defined(RESFLOW_EMULATED)
// Beside the real ops, which CPU tensors have already.
STABLE_TORCH_LIBRARY(resflow_emulated, m) {
#define RESFLOW_OP(name, schema) m.def(#name schema);
#define RESFLOW_TRAINING_OP(name, schema)
#include "contract/ops.def"
}
STABLE_TORCH_LIBRARY_IMPL(resflow_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(resflow, CUDA, m) {
#endif
#define RESFLOW_OP(name, schema) m.impl(#name, TORCH_BOX(&resflow::torch_ops::name));
#define RESFLOW_TRAINING_OP(name, schema)
#include "contract/ops.def"
}
