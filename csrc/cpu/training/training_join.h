// How a candidate's own logits become its tasks' logits, and the way back.
#pragma once

#include <algorithm>
#include <cmath>

#include "core/plan.h"

namespace resflow::cpu {

// The conditional head, p = sigmoid(z) sigmoid(r): the logit of p is -log(e^-z + e^-r + e^-(z + r)).
struct ConditionalLogit {
  double lowest, parent, own, both, sum;

  ConditionalLogit(double z, double r)
      : lowest(std::min({z, r, z + r})),
        parent(std::exp(lowest - z)),
        own(std::exp(lowest - r)),
        both(std::exp(lowest - z - r)),
        sum(parent + own + both) {}

  double logit() const { return std::isinf(lowest) ? lowest : lowest - std::log(sum); }
  double by_parent() const { return (parent + both) / sum; }
  double by_own() const { return (own + both) / sum; }
};

inline bool joins_parent(const Plan& plan, int32_t task) {
  return plan.parents[task] >= 0 && (plan.head == Head::conditional || plan.logit_residual);
}

// z_k of one candidate, [tasks], from its own r_k.
inline void join_logits(const Plan& plan, const float* own, float* logits) {
  for (int32_t k = 0; k < plan.tasks; ++k) {
    logits[k] = own[k];
    if (!joins_parent(plan, k)) continue;
    const float above = logits[plan.parents[k]];
    switch (plan.head) {
      case Head::residual:
        logits[k] = (plan.non_increasing && own[k] > 0 ? 0.0f : own[k]) + above;
        break;
      case Head::conditional:
        logits[k] = static_cast<float>(ConditionalLogit(above, own[k]).logit());
        break;
      case Head::count:
        break;
    }
  }
}

// From the logits' gradients to those of r_k.
inline void join_back(const Plan& plan, const float* own, const float* logit_gradients, float* own_gradients) {
  float logits[limit::max_tasks];
  double through[limit::max_tasks];
  join_logits(plan, own, logits);
  for (int32_t k = 0; k < plan.tasks; ++k) through[k] = logit_gradients[k];
  for (int32_t k = plan.tasks - 1; k >= 0; --k) {
    double share = 1.0;
    if (joins_parent(plan, k)) {
      double& parent = through[plan.parents[k]];
      switch (plan.head) {
        case Head::residual:
          parent += through[k];
          if (plan.non_increasing && own[k] > 0) share = 0.0;
          break;
        case Head::conditional: {
          const ConditionalLogit joined(logits[plan.parents[k]], own[k]);
          parent += through[k] * joined.by_parent();
          share = joined.by_own();
          break;
        }
        case Head::count:
          break;
      }
    }
    own_gradients[k] = static_cast<float>(through[k] * share);
  }
}

}  // namespace resflow::cpu
