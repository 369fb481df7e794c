// The twin tower ops on GPU tensors.
#include "core/check.h"
#include "core/twin_request.h"
#include "cuda/twin/twin.h"
#include "torch/cuda_call.h"
#include "torch/twin.h"

namespace resflow::torch_ops {
namespace {

using Scores = std::tuple<Tensor, Tensor, Tensor>;
using Best = std::tuple<Tensor, Tensor>;

// What every scoring op takes besides its candidates, and its steps.
struct TwinOp {
  TwinOp(const char* op, const Tensor& user, const Tensor& table, const Tensor& scales, const Tensor& fusion_weights,
         const std::vector<int64_t>& parents, bool non_increasing, int64_t fusion, int64_t weights_per)
      : call(op, user),
        request{op,
                call.view("user", user),
                call.view("table", table),
                call.view("scales", scales),
                call.view("fusion_weights", fusion_weights),
                parents.data(),
                static_cast<int64_t>(parents.size()),
                non_increasing,
                fusion,
                weights_per,
                0} {}

  TwinCall listed(const Tensor& ids, const Tensor& offsets) {
    const TwinCall twin = request.listed(call.view("ids", ids), call.view("offsets", offsets));
    if (checks_values()) {
      check_ids(call.op(), call.on_host(ids), twin.table.items);
      check_offset_values(call.op(), call.on_host(offsets), twin.count);
    }
    return twin;
  }

  Scores scores(const TwinCall& twin, int64_t candidates) {
    Tensor logits = call.empty(ScalarType::Float, {candidates, twin.model.tasks});
    Tensor probs = call.empty(ScalarType::Float, {candidates, twin.model.tasks});
    Tensor score = call.empty(ScalarType::Float, {candidates});
    cuda::twin_score(twin, static_cast<float*>(logits.mutable_data_ptr()),
                     static_cast<float*>(probs.mutable_data_ptr()), static_cast<float*>(score.mutable_data_ptr()),
                     call.workspace(cuda::twin_score_workspace_bytes(twin)), call.stream());
    return {logits, probs, score};
  }

  Best best(const TwinCall& twin, int64_t k) {
    check_positive(call.op(), "k", k);
    Tensor scores = call.empty(ScalarType::Float, {twin.requests, k});
    Tensor positions = call.empty(ScalarType::Long, {twin.requests, k});
    cuda::twin_topk(twin, k, static_cast<float*>(scores.mutable_data_ptr()),
                    static_cast<int64_t*>(positions.mutable_data_ptr()),
                    call.workspace(cuda::twin_topk_workspace_bytes(twin, k)), call.stream());
    return {scores, positions};
  }

  DeviceCall call;
  TwinRequest request;
};

}  // namespace

Best twin_rows(Tensor vectors, int64_t tasks, int64_t element) {
  constexpr const char* kOp = "twin_rows";
  DeviceCall call(kOp, vectors);
  const TensorView view = call.view("vectors", vectors);
  check_twin_rows(kOp, view, tasks, element);
  const int64_t count = view.sizes[0], columns = view.sizes[1];
  const auto precision = static_cast<Precision>(element);
  constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::BFloat16, ScalarType::Char};
  Tensor table = call.empty(kTypes[element], {count, columns});
  Tensor scales = call.empty(ScalarType::Float, {precision == Precision::int8 ? count : 0, tasks});
  cuda::twin_rows(Request::rows_of(view), count, tasks, columns / tasks, precision, table.mutable_data_ptr(),
                  static_cast<float*>(scales.mutable_data_ptr()), call.stream());
  return {table, scales};
}

Scores twin_scores(Tensor user, Tensor table, Tensor scales, Tensor fusion_weights, std::vector<int64_t> parents,
                   bool non_increasing, int64_t fusion, int64_t weights_per) {
  TwinOp op("twin_scores", user, table, scales, fusion_weights, parents, non_increasing, fusion, weights_per);
  const TwinCall twin = op.request.all();
  return op.scores(twin, twin.requests * twin.count);
}

Best twin_topk(Tensor user, Tensor table, Tensor scales, Tensor fusion_weights, std::vector<int64_t> parents,
               bool non_increasing, int64_t fusion, int64_t weights_per, int64_t k) {
  TwinOp op("twin_topk", user, table, scales, fusion_weights, parents, non_increasing, fusion, weights_per);
  return op.best(op.request.all(), k);
}

Scores twin_ids_scores(Tensor user, Tensor ids, Tensor offsets, Tensor table, Tensor scales, Tensor fusion_weights,
                       std::vector<int64_t> parents, bool non_increasing, int64_t fusion, int64_t weights_per) {
  TwinOp op("twin_ids_scores", user, table, scales, fusion_weights, parents, non_increasing, fusion, weights_per);
  const TwinCall twin = op.listed(ids, offsets);
  return op.scores(twin, twin.count);
}

Best twin_ids_topk(Tensor user, Tensor ids, Tensor offsets, Tensor table, Tensor scales, Tensor fusion_weights,
                   std::vector<int64_t> parents, bool non_increasing, int64_t fusion, int64_t weights_per, int64_t k) {
  TwinOp op("twin_ids_topk", user, table, scales, fusion_weights, parents, non_increasing, fusion, weights_per);
  return op.best(op.listed(ids, offsets), k);
}

}  // namespace resflow::torch_ops
