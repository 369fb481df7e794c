// The twin ops' kernels on a GPU, as cpu/twin/twin.h: every pointer of a TwinCall is device memory.
//
// Ids that are no rows of the table give NaN, and so does every candidate of a call whose offsets do not grow from 0 to
// count.
#pragma once

#include "core/candidates.h"
#include "cuda/device/queue.h"

namespace resflow::cuda {

// Candidates are the ids, or [requests, items].
void twin_scores(const TwinCall& call, const ScoresOut& out, Queue& queue);

void twin_topk(const TwinCall& call, const TopKOut& out, Queue& queue);

// Scores that top-k over all items keeps at once: it goes over the items in passes of so many that these fit, or k.
constexpr int64_t kTwinPassBytes = 64 << 20;

// twin_topk where there are no ids, in passes of another size.
void stream_topk(const TwinCall& call, const TopKOut& out, int64_t pass_bytes, Queue& queue);

// Rounds item vectors [count, tasks * width] to a table's rows, in int8 with scales [count, tasks].
void twin_rows(const Rows& vectors, int64_t count, int64_t tasks, int64_t width, Precision precision, void* rows,
               float* scales, Queue& queue);

}  // namespace resflow::cuda
