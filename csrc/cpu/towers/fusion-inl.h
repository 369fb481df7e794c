// From the tasks' own logits r_k to logits z_k, probabilities and score; 16 candidates at a time.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

// z_k in place of r_k.
inline void join_parents(const Tile& tile) {
  const Plan& plan = *tile.plan;
  for (int32_t k = 0; k < plan.tasks; ++k) {
    if (plan.parents[k] < 0) continue;
    float* const own = tile.logits + k * tile.stride;
    const float* const parent = tile.logits + plan.parents[k] * tile.stride;
    for (int64_t at = 0; at < tile.stride; at += kLane) {
      store(own + at, joined_logit(plan, load(own + at), load(parent + at)));
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

// Probabilities [task][stride] and the score of 16 candidates, from their logits [task][stride]; weight(index) has a
// lane for each candidate.
template <class Weight>
inline void fuse_lanes(Fusion fusion, int32_t tasks, const float* logits, int64_t stride, Weight weight, float* probs,
                       float* score) {
  for (int32_t k = 0; k < tasks; ++k) store(probs + k * stride, sigmoid(load(logits + k * stride)));
  with_fusion(fusion, [&](auto formula) {
    FusionState state{broadcast(0.0f), broadcast(0.0f)};
    for (int32_t k = 0; k < tasks; ++k) {
      formula.add(state, k, load(logits + k * stride), load(probs + k * stride), weight);
    }
    store(score, formula.end(state, tasks, weight));
  });
}

inline void fuse(const Tile& tile) {
  for (int64_t at = 0; at < tile.stride; at += kLane) {
    const auto weight = [&](int32_t index) { return gather_weight(tile, at, index); };
    fuse_lanes(tile.fusion, tile.plan->tasks, tile.logits + at, tile.stride, weight, tile.probs + at, tile.score + at);
  }
}

}  // namespace resflow::cpu::RESFLOW_TARGET
