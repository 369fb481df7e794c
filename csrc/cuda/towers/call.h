// One scoring call as kernels take it: passed by value, with every pointer into device memory.
#pragma once

#include <cstdint>

#include "core/candidates.h"
#include "core/plan.h"

namespace resflow::cuda {

struct TowerCall {
  Plan plan;
  const void* packed;     // 16-byte aligned, its header included
  Candidates candidates;  // Features::all in device memory as well
  FusionWeights fusion;
  int64_t fusion_weight_count;  // of one candidate
  // Initial values of first-layer sums, [requests][tasks * first_padded()]; null: the biases (no user).
  const float* accum_init;

  // Outputs of [count] candidates; the first two may be null.
  float* logits;  // [count][tasks]
  float* probs;   // [count][tasks]
  float* score;   // [count]
};

}  // namespace resflow::cuda
