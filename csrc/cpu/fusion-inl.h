// From the tasks' own logits r_k to logits z_k, probabilities and score; 16 candidates at a time.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

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
        if (plan.non_increasing) logit = at_most(logit, broadcast(0.0f));
        logit = logit + load(parent + at);
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

inline Lanes additive(const Tile& tile, int64_t at) {
  Lanes score = broadcast(0.0f);
  for (int32_t k = 0; k < tile.plan->tasks; ++k) {
    score = multiply_add(gather_weight(tile, at, k), load(tile.probs + k * tile.stride + at), score);
  }
  return score;
}

inline Lanes multiplicative(const Tile& tile, int64_t at) {
  // p = 0 has log -inf, and -inf * 0 would be NaN: the bound makes p ^ 0 = 1.
  const Lanes lowest = broadcast(-3.4028235e38f);
  Lanes log_score = broadcast(0.0f);
  for (int32_t k = 0; k < tile.plan->tasks; ++k) {
    const Lanes log_prob = at_least(log_sigmoid(load(tile.logits + k * tile.stride + at)), lowest);
    log_score = multiply_add(gather_weight(tile, at, k), log_prob, log_score);
  }
  return exp(log_score);
}

inline Lanes expected_value(const Tile& tile, int64_t at) {
  const Lanes zero = broadcast(0.0f);
  Lanes above = load(tile.probs + at);
  Lanes score = gather_weight(tile, at, 0) * (broadcast(1.0f) - above);
  for (int32_t k = 1; k < tile.plan->tasks; ++k) {
    const Lanes prob = load(tile.probs + k * tile.stride + at);
    score = multiply_add(gather_weight(tile, at, k), at_least(above - prob, zero), score);
    above = prob;
  }
  return multiply_add(gather_weight(tile, at, tile.plan->tasks), above, score);
}

inline void fuse(const Tile& tile) {
  for (int64_t at = 0; at < tile.stride; at += kLane) {
    for (int32_t k = 0; k < tile.plan->tasks; ++k) {
      const int64_t place = k * tile.stride + at;
      store(tile.probs + place, sigmoid(load(tile.logits + place)));
    }
    Lanes score;
    switch (tile.fusion) {
      case Fusion::multiplicative:
        score = multiplicative(tile, at);
        break;
      case Fusion::expected_value:
        score = expected_value(tile, at);
        break;
      default:
        score = additive(tile, at);
    }
    store(tile.score + at, score);
  }
}

}  // namespace resflow::cpu::RESFLOW_TARGET
