// Scoring by twin towers. The functions are those of cpu/twin.h; every pointer of a TwinCall is device memory.
//
// Ids that are no rows of the table give NaN, and so does every candidate of a call whose offsets do not increase from
// 0 to count. Workspaces are aligned to 16 bytes.
#pragma once

#include "core/candidates.h"
#include "cuda/device/stream.h"

namespace resflow::cuda {

int64_t twin_score_workspace_bytes(const TwinCall& call);

// Writes logits [candidates, K] and probs [candidates, K], which may be null, and score [candidates]; the candidates
// are the ids, or [requests, items].
void twin_score(const TwinCall& call, float* logits, float* probs, float* score, void* workspace, Stream stream);

// Bytes of scores that top-k over all items keeps at once: a pass covers as many items as fit, and at least k.
constexpr int64_t kTwinPassBytes = 64 << 20;

int64_t twin_topk_workspace_bytes(const TwinCall& call, int64_t k, int64_t pass_bytes = kTwinPassBytes);

// Writes the k best of each request: scores [requests, k], positions [requests, k].
void twin_topk(const TwinCall& call, int64_t k, float* scores, int64_t* positions, void* workspace, Stream stream,
               int64_t pass_bytes = kTwinPassBytes);

// Rounds item vectors [count, tasks * width] to a table's rows, in int8 with scales [count, tasks].
void twin_rows(const Rows& vectors, int64_t count, int64_t tasks, int64_t width, Precision element, void* rows,
               float* scales, Stream stream);

}  // namespace resflow::cuda
