// From a candidate's own logits r_k to logits z_k and the score. The formulas are those of cpu/fusion-inl.h.
#pragma once

#include "core/plan.h"
#include "cuda/math.h"

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

template <class Logit, class Weight>
RESFLOW_DEVICE float additive(int32_t tasks, Logit logit, Weight weight) {
  float score = 0.0f;
  for (int32_t k = 0; k < tasks; ++k) score = fmaf(weight(k), sigmoid(logit(k)), score);
  return score;
}

template <class Logit, class Weight>
RESFLOW_DEVICE float multiplicative(int32_t tasks, Logit logit, Weight weight) {
  float log_score = 0.0f;
  for (int32_t k = 0; k < tasks; ++k) {
    // p = 0 has log -inf, and -inf * 0 would be NaN: the bound makes p ^ 0 = 1.
    log_score = fmaf(weight(k), at_least(log_sigmoid(logit(k)), -kLargestFloat), log_score);
  }
  return expf(log_score);
}

template <class Logit, class Weight>
RESFLOW_DEVICE float expected_value(int32_t tasks, Logit logit, Weight weight) {
  float above = sigmoid(logit(0));
  float score = weight(0) * (1.0f - above);
  for (int32_t k = 1; k < tasks; ++k) {
    const float prob = sigmoid(logit(k));
    score = fmaf(weight(k), at_least(above - prob, 0.0f), score);
    above = prob;
  }
  return fmaf(weight(tasks), above, score);
}

// The score of logits z_k: logit(k) of a task, weight(i) of 0 to fusion_weight_count - 1.
template <class Logit, class Weight>
RESFLOW_DEVICE float fuse(Fusion fusion, int32_t tasks, Logit logit, Weight weight) {
  switch (fusion) {
    case Fusion::multiplicative:
      return multiplicative(tasks, logit, weight);
    case Fusion::expected_value:
      return expected_value(tasks, logit, weight);
    default:
      return additive(tasks, logit, weight);
  }
}

}  // namespace resflow::cuda
