// The twin ops' kernels on a GPU, like cpu/twin/twin.h; every pointer of a TwinCall is device memory.
//
// Ids that are no rows of the table give NaN, and so does every candidate of a call whose offsets do not increase from
// 0 to count.
#pragma once

#include "core/candidates.h"
#include "cuda/device/queue.h"

namespace resflow::cuda {

// Candidates are the ids, or [requests, items].
void twin_scores(const TwinCall& call, const ScoresOut& out, Queue& queue);

void twin_topk(const TwinCall& call, const TopKOut& out, Queue& queue);

// Bytes of scores that top-k over all items keeps at once: a pass covers as many items as fit, and at least k.
constexpr int64_t kTwinPassBytes = 64 << 20;

// twin_topk without ids, in passes of `pass_bytes` bytes of scores.
void stream_topk(const TwinCall& call, const TopKOut& out, int64_t pass_bytes, Queue& queue);

// Rounds item vectors [count, tasks * width] to a table's rows, in int8 with scales [count, tasks].
void twin_rows(const Rows& vectors, int64_t count, int64_t tasks, int64_t width, Precision precision, void* rows,
               float* scales, Queue& queue);

}  // namespace resflow::cuda
