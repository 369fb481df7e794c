// The twin ops' kernels on the CPU: `twin_scores` and `twin_ids_scores` end in twin_scores, `twin_topk` and
// `twin_ids_topk` in twin_topk. Inputs have been checked.
#pragma once

#include "core/candidates.h"

namespace resflow::cpu {

// Candidates are the ids, or [requests, items].
void twin_scores(const TwinCall& call, const ScoresOut& out, int64_t threads);

void twin_topk(const TwinCall& call, const TopKOut& out, int64_t threads);

// Rounds item vectors [count, tasks * width] to a table's rows, in int8 with scales [count, tasks].
void twin_rows(const Rows& vectors, int64_t count, int64_t tasks, int64_t width, Precision precision, void* rows,
               float* scales, int64_t threads);

// Measured rate of reading `bytes` bytes front to back on `threads` threads, in 10^9 bytes per second.
double measure_read_bandwidth(const void* from, int64_t bytes, int64_t threads);

}  // namespace resflow::cpu
