// Scoring on the CPU: what the torch ops and the NumPy runtime both call. Inputs have been checked.
#pragma once

#include "core/candidates.h"
#include "cpu/simd/kernels.h"

namespace resflow::cpu {

// Writes logits [count, K], probs [count, K] and score [count].
void score(const Model& model, const Candidates& candidates, const FusionWeights& weights, int64_t threads,
           float* logits, float* probs, float* score);

// Writes the k best of each request: scores [requests, k], positions [requests, k].
void score_topk(const Model& model, const Candidates& candidates, const FusionWeights& weights, int64_t threads,
                int64_t k, float* scores, int64_t* positions);

// Writes the rows of a table for items [count, Di]: their products, rounded to `element` (scales in int8).
void project_items(const Model& model, const Rows& item, int64_t count, int64_t item_columns, int64_t threads,
                   Precision element, void* rows, float* scales);

// Measured rate of register-only products on `threads` threads at once, in 10^9 operations a second: the peak that
// benchmarks are held against.
double measure_peak(Precision precision, int64_t threads, double seconds);

}  // namespace resflow::cpu
