// The twin tower ops on CPU tensors.
#include "torch/twin.h"

#include <torch/csrc/stable/ops.h>

#include "core/check.h"
#include "core/twin_request.h"
#include "cpu/twin/twin.h"

namespace resflow::torch_ops {
namespace {

using Scores = std::tuple<Tensor, Tensor, Tensor>;
using Best = std::tuple<Tensor, Tensor>;

// What every scoring op takes besides its candidates.
struct Arguments {
  const Tensor& user;
  const Tensor& table;
  const Tensor& scales;
  const Tensor& fusion_weights;
  const std::vector<int64_t>& parents;
  bool non_increasing;
  int64_t fusion;
  int64_t weights_per;

  TwinRequest request(const char* op) const {
    return {op,
            view_of(op, "user", user),
            view_of(op, "table", table),
            view_of(op, "scales", scales),
            view_of(op, "fusion_weights", fusion_weights),
            parents.data(),
            static_cast<int64_t>(parents.size()),
            non_increasing,
            fusion,
            weights_per,
            torch::stable::get_num_threads()};
  }
};

Scores scores_of(const TwinCall& call, int64_t candidates) {
  Tensor logits = empty(ScalarType::Float, {candidates, call.model.tasks});
  Tensor probs = empty(ScalarType::Float, {candidates, call.model.tasks});
  Tensor score = empty(ScalarType::Float, {candidates});
  cpu::twin_score(call, static_cast<float*>(logits.mutable_data_ptr()), static_cast<float*>(probs.mutable_data_ptr()),
                  static_cast<float*>(score.mutable_data_ptr()));
  return {logits, probs, score};
}

Best best_of(const char* op, const TwinCall& call, int64_t k) {
  check_positive(op, "k", k);
  Tensor scores = empty(ScalarType::Float, {call.requests, k});
  Tensor positions = empty(ScalarType::Long, {call.requests, k});
  cpu::twin_topk(call, k, static_cast<float*>(scores.mutable_data_ptr()),
                 static_cast<int64_t*>(positions.mutable_data_ptr()));
  return {scores, positions};
}

TwinCall listed(const TwinRequest& request, const Tensor& ids, const Tensor& offsets) {
  return request.listed(view_of(request.op, "ids", ids), view_of(request.op, "offsets", offsets));
}

}  // namespace

Best twin_rows(Tensor vectors, int64_t tasks, int64_t element) {
  constexpr const char* kOp = "twin_rows";
  const TensorView view = view_of(kOp, "vectors", vectors);
  check_twin_rows(kOp, view, tasks, element);
  const int64_t count = view.sizes[0], columns = view.sizes[1];
  const auto precision = static_cast<Precision>(element);
  constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Char};
  Tensor table = empty(kTypes[element], {count, columns});
  Tensor scales = empty(ScalarType::Float, {precision == Precision::int8 ? count : 0, tasks});
  cpu::twin_rows(Request::rows_of(view), count, tasks, columns / tasks, torch::stable::get_num_threads(), precision,
                 table.mutable_data_ptr(), static_cast<float*>(scales.mutable_data_ptr()));
  return {table, scales};
}

Scores twin_scores(Tensor user, Tensor table, Tensor scales, Tensor fusion_weights, std::vector<int64_t> parents,
                   bool non_increasing, int64_t fusion, int64_t weights_per) {
  const Arguments arguments{user, table, scales, fusion_weights, parents, non_increasing, fusion, weights_per};
  const TwinCall call = arguments.request("twin_scores").all();
  return scores_of(call, call.requests * call.count);
}

Best twin_topk(Tensor user, Tensor table, Tensor scales, Tensor fusion_weights, std::vector<int64_t> parents,
               bool non_increasing, int64_t fusion, int64_t weights_per, int64_t k) {
  const Arguments arguments{user, table, scales, fusion_weights, parents, non_increasing, fusion, weights_per};
  const auto request = arguments.request("twin_topk");
  return best_of(request.op, request.all(), k);
}

Scores twin_ids_scores(Tensor user, Tensor ids, Tensor offsets, Tensor table, Tensor scales, Tensor fusion_weights,
                       std::vector<int64_t> parents, bool non_increasing, int64_t fusion, int64_t weights_per) {
  const Arguments arguments{user, table, scales, fusion_weights, parents, non_increasing, fusion, weights_per};
  const TwinCall call = listed(arguments.request("twin_ids_scores"), ids, offsets);
  return scores_of(call, call.count);
}

Best twin_ids_topk(Tensor user, Tensor ids, Tensor offsets, Tensor table, Tensor scales, Tensor fusion_weights,
                   std::vector<int64_t> parents, bool non_increasing, int64_t fusion, int64_t weights_per, int64_t k) {
  const Arguments arguments{user, table, scales, fusion_weights, parents, non_increasing, fusion, weights_per};
  const auto request = arguments.request("twin_ids_topk");
  return best_of(request.op, listed(request, ids, offsets), k);
}

}  // namespace resflow::torch_ops
