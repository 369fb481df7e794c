// Computes logits z_k, probabilities and score from the task logits r_k, 16 candidates at a time.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

// Replaces r_k by z_k.
inline void join_parents(const Tile& tile) {
  const Plan& plan = *tile.plan;
  for (int32_t k = 0; k < plan.tasks; ++k) {
    if (plan.parents[k] < 0) continue;
    float* const logits = tile.logits + k * tile.stride;
    const float* const parent = tile.logits + plan.parents[k] * tile.stride;
    for (int64_t i = 0; i < tile.stride; i += kLane) {
      store(logits + i, joined_logit(plan, load(logits + i), load(parent + i)));
    }
  }
}

// The fusion weight at `index` of 16 candidates.
inline Lanes gather_weight(const Tile& tile, int64_t first, int64_t index) {
  float values[kLane];
  for (int64_t i = 0; i < kLane; ++i) {
    const int64_t row = first + i < tile.rows ? first + i : tile.rows - 1;
    values[i] = tile.fusion_weights[row][index];
  }
  return load(values);
}

// Computes probabilities [task][stride] and the score of 16 candidates from their logits [task][stride]; weight(index)
// has one lane per candidate.
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
  for (int64_t i = 0; i < tile.stride; i += kLane) {
    const auto weight = [&](int32_t index) { return gather_weight(tile, i, index); };
    fuse_lanes(tile.fusion, tile.plan->tasks, tile.logits + i, tile.stride, weight, tile.probs + i, tile.score + i);
  }
}

}  // namespace resflow::cpu::RESFLOW_TARGET
