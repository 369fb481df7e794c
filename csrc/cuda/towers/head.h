// Turns a candidate's own logits r_k into logits z_k and the score, by the formulas of core/fusions-inl.h.
#pragma once

#include "core/plan.h"
#include "cuda/device/math.h"

namespace resflow::cuda {

// z_k of a task from its r_k and its parent's z; a root's z_k is its r_k.
RESFLOW_DEVICE float join_logit(const Plan& plan, int32_t task, float own, float parent_logit) {
  return plan.parents[task] < 0 ? own : joined_logit(plan, own, parent_logit);
}

// A candidate's score, accumulated task by task.
class RunningScore {
 public:
  // weight(i) is the i-th of the candidate's fusion weights.
  template <class Weight>
  RESFLOW_DEVICE void add(Fusion fusion, int32_t task, float logit, float prob, Weight weight) {
    with_fusion(fusion, [&](auto formula) { formula.add(state_, task, logit, prob, weight); });
  }

  // Returns the score after the last of `tasks`.
  template <class Weight>
  RESFLOW_DEVICE float end(Fusion fusion, int32_t tasks, Weight weight) const {
    float score = kNan;
    with_fusion(fusion, [&](auto formula) { score = formula.end(state_, tasks, weight); });
    return score;
  }

 private:
  FusionState state_{0.0f, 0.0f};
};

// Returns the score of logits z_k: logit(k) is a task's, weight(i) a fusion weight, 0 to fusion_weight_count - 1.
template <class Logit, class Weight>
RESFLOW_DEVICE float fuse(Fusion fusion, int32_t tasks, Logit logit, Weight weight) {
  float score = kNan;
  // One loop per fusion: a single loop that selects the fusion in every iteration spills in the twin kernel on sm_90a.
  with_fusion(fusion, [&](auto formula) {
    FusionState state{0.0f, 0.0f};
    for (int32_t k = 0; k < tasks; ++k) {
      const float z = logit(k);
      formula.add(state, k, z, sigmoid(z), weight);
    }
    score = formula.end(state, tasks, weight);
  });
  return score;
}

}  // namespace resflow::cuda
