// From the tasks' own logits r_k to logits z_k, probabilities and score; 16 candidates at a time.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

// z_k of r_k and the parent's logit.
inline Lanes residual_logit(Lanes own, Lanes parent, bool non_increasing) {
  return (non_increasing ? at_most(own, broadcast(0.0f)) : own) + parent;
}

// z_k in place of r_k.
inline void join_parents(const Tile& tile) {
  const Plan& plan = *tile.plan;
  for (int32_t k = 0; k < plan.tasks; ++k) {
    if (plan.parents[k] < 0 || (plan.head == Head::residual && !plan.logit_residual)) continue;
    float* const own = tile.logits + k * tile.stride;
    const float* const parent = tile.logits + plan.parents[k] * tile.stride;
    for (int64_t at = 0; at < tile.stride; at += kLane) {
      Lanes logit = load(own + at);
      if (plan.head == Head::conditional) {
        logit = logit_of_product(load(parent + at), logit);
      } else {
        logit = residual_logit(logit, load(parent + at), plan.non_increasing);
      }
      store(own + at, logit);
    }
  }
}

// One weight of 16 candidates.
inline Lanes gather_weight(const Tile& tile, int64_t first, int64_t index) {
  float values[kLane];
  for (int64_t i = 0; i < kLane; ++i) {
    const int64_t row = first + i < tile.rows ? first + i : tile.rows - 1;
    values[i] = tile.fusion_weights[row][index];
  }
  return load(values);
}

// What 16 candidates are fused from: logits and probabilities [task][stride], and weight(index) with a lane for each.
template <class Weight>
struct Lane16 {
  int32_t tasks;
  const float* logits;
  const float* probs;
  int64_t stride;
  Weight weight;

  Lanes logit(int32_t k) const { return load(logits + k * stride); }
  Lanes prob(int32_t k) const { return load(probs + k * stride); }
};

template <class Weight>
inline Lanes additive(const Lane16<Weight>& of) {
  Lanes score = broadcast(0.0f);
  for (int32_t k = 0; k < of.tasks; ++k) score = multiply_add(of.weight(k), of.prob(k), score);
  return score;
}

template <class Weight>
inline Lanes multiplicative(const Lane16<Weight>& of) {
  // p = 0 has log -inf, and -inf * 0 would be NaN: the bound makes p ^ 0 = 1.
  const Lanes lowest = broadcast(-3.4028235e38f);
  Lanes log_score = broadcast(0.0f);
  for (int32_t k = 0; k < of.tasks; ++k) {
    log_score = multiply_add(of.weight(k), at_least(log_sigmoid(of.logit(k)), lowest), log_score);
  }
  return exp(log_score);
}

template <class Weight>
inline Lanes expected_value(const Lane16<Weight>& of) {
  const Lanes zero = broadcast(0.0f);
  Lanes above = of.prob(0);
  Lanes score = of.weight(0) * (broadcast(1.0f) - above);
  for (int32_t k = 1; k < of.tasks; ++k) {
    const Lanes prob = of.prob(k);
    score = multiply_add(of.weight(k), at_least(above - prob, zero), score);
    above = prob;
  }
  return multiply_add(of.weight(of.tasks), above, score);
}

// Probabilities [task][stride] and the score of 16 candidates, from their logits.
template <class Weight>
inline void fuse_lanes(Fusion fusion, int32_t tasks, const float* logits, int64_t stride, Weight weight, float* probs,
                       float* score) {
  for (int32_t k = 0; k < tasks; ++k) store(probs + k * stride, sigmoid(load(logits + k * stride)));
  const Lane16<Weight> of{tasks, logits, probs, stride, weight};
  switch (fusion) {
    case Fusion::multiplicative:
      return store(score, multiplicative(of));
    case Fusion::expected_value:
      return store(score, expected_value(of));
    default:
      return store(score, additive(of));
  }
}

inline void fuse(const Tile& tile) {
  for (int64_t at = 0; at < tile.stride; at += kLane) {
    const auto weight = [&](int32_t index) { return gather_weight(tile, at, index); };
    fuse_lanes(tile.fusion, tile.plan->tasks, tile.logits + at, tile.stride, weight, tile.probs + at, tile.score + at);
  }
}

}  // namespace resflow::cpu::RESFLOW_TARGET
