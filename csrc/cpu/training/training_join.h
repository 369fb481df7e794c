// Computes a candidate's logits z_k from its task logits r_k, forward and backward.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/plan.h"

namespace resflow::cpu {

// The conditional head, p = sigmoid(z) sigmoid(r): the logit of p is -log(e^-z + e^-r + e^-(z + r)).
struct ConditionalLogit {
  double lowest, parent, task, both, sum;

  ConditionalLogit(double z, double r)
      : lowest(std::min({z, r, z + r})),
        parent(std::exp(lowest - z)),
        task(std::exp(lowest - r)),
        both(std::exp(lowest - z - r)),
        sum(parent + task + both) {}

  double logit() const { return std::isinf(lowest) ? lowest : lowest - std::log(sum); }
  double by_parent() const { return (parent + both) / sum; }
  double by_task() const { return (task + both) / sum; }
};

inline bool joins_parent(const Plan& plan, int32_t task) {
  return plan.parents[task] >= 0 && (plan.head == Head::conditional || plan.logit_residual);
}

// Computes z_k of one candidate, [tasks], from its r_k.
inline void join_logits(const Plan& plan, const float* task_logits, float* logits) {
  for (int32_t k = 0; k < plan.tasks; ++k) {
    logits[k] = task_logits[k];
    if (!joins_parent(plan, k)) continue;
    const float above = logits[plan.parents[k]];
    switch (plan.head) {
      case Head::residual:
        logits[k] = (plan.non_increasing && task_logits[k] > 0 ? 0.0f : task_logits[k]) + above;
        break;
      case Head::conditional:
        logits[k] = static_cast<float>(ConditionalLogit(above, task_logits[k]).logit());
        break;
      case Head::count:
        break;
    }
  }
}

// Computes the gradients of r_k from those of z_k.
inline void join_logits_backward(const Plan& plan, const float* task_logits, const float* logit_gradients,
                                 float* task_logit_gradients) {
  float logits[limit::max_tasks];
  double through[limit::max_tasks];
  join_logits(plan, task_logits, logits);
  for (int32_t k = 0; k < plan.tasks; ++k) through[k] = logit_gradients[k];
  for (int32_t k = plan.tasks - 1; k >= 0; --k) {
    double share = 1.0;
    if (joins_parent(plan, k)) {
      double& parent = through[plan.parents[k]];
      switch (plan.head) {
        case Head::residual:
          parent += through[k];
          if (plan.non_increasing && task_logits[k] > 0) share = 0.0;
          break;
        case Head::conditional: {
          const ConditionalLogit joined(logits[plan.parents[k]], task_logits[k]);
          parent += through[k] * joined.by_parent();
          share = joined.by_task();
          break;
        }
        case Head::count:
          break;
      }
    }
    task_logit_gradients[k] = static_cast<float>(through[k] * share);
  }
}

}  // namespace resflow::cpu
