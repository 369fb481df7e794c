// Scoring by twin towers on the CPU: what the torch ops and the NumPy runtime both call. Inputs have been checked.
#pragma once

#include "cpu/simd/kernels.h"
#include "cpu/towers/score.h"

namespace resflow::cpu {

// Writes logits [candidates, K], probs [candidates, K] and score [candidates]; candidates are the ids, or
// [requests, items].
void twin_score(const TwinCall& call, float* logits, float* probs, float* score);

// Writes the k best of each request: scores [requests, k], positions [requests, k].
void twin_topk(const TwinCall& call, int64_t k, float* scores, int64_t* positions);

// Rounds item vectors [count, tasks * width] to a table's rows, in int8 with scales [count, tasks].
void twin_rows(const Rows& vectors, int64_t count, int64_t tasks, int64_t width, int64_t threads, Precision element,
               void* rows, float* scales);

// Measured rate of reading `bytes` bytes front to back on `threads` threads, in 10^9 bytes a second.
double measure_read_bandwidth(const void* from, int64_t bytes, int64_t threads);

}  // namespace resflow::cpu
