// Scoring on the CPU: what the torch ops and the NumPy runtime both call. Inputs have been checked.
#pragma once

#include "core/plan.h"

namespace resflow::cpu {

// Candidates of the dense form (user is null) or the request form.
struct Candidates {
  const float* x;  // [count, D] or the items [count, Di]
  int64_t stride;
  int64_t count;
  const float* user;  // [requests, user_columns] or null
  int64_t user_stride;
  int64_t user_columns;
  const int64_t* offsets;  // [requests + 1]; null if there are no requests
  int64_t requests;
};

struct FusionWeights {
  Fusion fusion;
  WeightsPer per;
  const float* values;  // [count] or [rows, count], contiguous
};

struct Model {
  const Plan& plan;
  const void* packed;
};

// Writes logits [count, K], probs [count, K] and score [count].
void score(const Model& model, const Candidates& candidates, const FusionWeights& weights, int64_t threads,
           float* logits, float* probs, float* score);

// Writes the k best of each request: scores [requests, k], positions [requests, k].
void score_topk(const Model& model, const Candidates& candidates, const FusionWeights& weights, int64_t threads,
                int64_t k, float* scores, int64_t* positions);

// Measured rate of register-only fused multiply-adds on `threads` threads at once, in GFLOP/s: the peak that
// benchmarks are held against.
double measure_fma_gflops(int64_t threads, double seconds);

}  // namespace resflow::cpu
