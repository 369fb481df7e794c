// One scoring call's arguments, checked: the steps the torch ops and the NumPy runtime share.
//
// The order of the checks is that of resflow_kernels/checks.py and ops.py.
#pragma once

#include "core/check.h"
#include "cpu/score.h"

namespace resflow::cpu {

struct Request {
  const char* op;
  Plan plan;
  TensorView packed;
  TensorView fusion_weights;
  int64_t fusion;
  int64_t weights_per;
  int64_t threads;

  Model model() const { return {plan, packed.data}; }
  FusionWeights weights() const {
    return {static_cast<Fusion>(fusion), static_cast<WeightsPer>(weights_per), fusion_weights.as<float>()};
  }

  // x [B, D]
  Candidates dense(const TensorView& x) const {
    check_matrix(op, "x", x, plan.in_features);
    check_rest(x.sizes[0], kNoRequests);
    return {x.as<float>(), x.row_stride(), x.sizes[0], nullptr, 0, 0, nullptr, 0};
  }

  // x [B, D], offsets [R + 1]
  Candidates dense_requests(const TensorView& x, const TensorView& offsets, int64_t k) const {
    check_matrix(op, "x", x, plan.in_features);
    check_offsets(op, offsets, kNoRequests);
    check_offset_values(op, offsets, x.sizes[0]);
    const int64_t requests = offsets.sizes[0] - 1;
    check_rest(x.sizes[0], requests);
    check_positive(op, "k", k);
    return {x.as<float>(), x.row_stride(), x.sizes[0], nullptr, 0, 0, offsets.as<int64_t>(), requests};
  }

  // user [R, Du], item [N, Di], offsets [R + 1]
  Candidates split(const TensorView& user, const TensorView& item, const TensorView& offsets) const {
    check_matrix(op, "user", user, kAnyColumns);
    check_matrix(op, "item", item, kAnyColumns);
    check_columns_sum(op, plan, user, item);
    const int64_t requests = user.sizes[0];
    check_offsets(op, offsets, requests);
    check_offset_values(op, offsets, item.sizes[0]);
    check_rest(item.sizes[0], requests);
    return {item.as<float>(),  item.row_stride(), item.sizes[0],         user.as<float>(),
            user.row_stride(), user.sizes[1],     offsets.as<int64_t>(), requests};
  }

 private:
  void check_rest(int64_t candidates, int64_t requests) const {
    check_fusion(op, plan, fusion_weights, fusion, weights_per, candidates, requests);
    check_packed(op, plan, packed);
  }
};

}  // namespace resflow::cpu
