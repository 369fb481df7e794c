// From a candidate's own logits r_k to logits z_k and the score. The formulas are those of cpu/fusion-inl.h.
#pragma once

#include "core/plan.h"
#include "cuda/device/math.h"

namespace resflow::cuda {

// z_k of r_k and the parent's logit.
RESFLOW_DEVICE float residual_logit(float own, float parent_logit, bool non_increasing) {
  return (non_increasing ? at_most(own, 0.0f) : own) + parent_logit;
}

// z_k of a task, from its r_k and its parent's z; a root's is its own.
RESFLOW_DEVICE float join_logit(const Plan& plan, int32_t task, float own, float parent_logit) {
  if (plan.parents[task] < 0) return own;
  if (plan.head == Head::conditional) return logit_of_product(parent_logit, own);
  return plan.logit_residual ? residual_logit(own, parent_logit, plan.non_increasing) : own;
}

// A candidate's score, taken task by task.
class RunningScore {
 public:
  // weight(i) is the i-th of the candidate's fusion weights.
  template <class Weight>
  RESFLOW_DEVICE void add(Fusion fusion, int32_t task, float logit, float prob, Weight weight) {
    switch (fusion) {
      case Fusion::multiplicative:
        // p = 0 has log -inf, and -inf * 0 would be NaN: the bound makes p ^ 0 = 1.
        sum_ = fmaf(weight(task), at_least(log_sigmoid(logit), -kLargestFloat), sum_);
        return;
      case Fusion::expected_value:
        sum_ = task == 0 ? weight(0) * (1.0f - prob) : fmaf(weight(task), at_least(above_ - prob, 0.0f), sum_);
        above_ = prob;
        return;
      default:
        sum_ = fmaf(weight(task), prob, sum_);
    }
  }

  // After the last of `tasks`.
  template <class Weight>
  RESFLOW_DEVICE float end(Fusion fusion, int32_t tasks, Weight weight) const {
    switch (fusion) {
      case Fusion::multiplicative:
        return expf(sum_);
      case Fusion::expected_value:
        return fmaf(weight(tasks), above_, sum_);
      default:
        return sum_;
    }
  }

 private:
  float sum_ = 0.0f;
  float above_ = 0.0f;  // the former task's probability
};

// The score of logits z_k: logit(k) of a task, weight(i) of 0 to fusion_weight_count - 1.
template <class Logit, class Weight>
RESFLOW_DEVICE float fuse(Fusion fusion, int32_t tasks, Logit logit, Weight weight) {
  RunningScore score;
  for (int32_t k = 0; k < tasks; ++k) {
    const float z = logit(k);
    score.add(fusion, k, z, sigmoid(z), weight);
  }
  return score.end(fusion, tasks, weight);
}

}  // namespace resflow::cuda
