// The k best of each request, in the order of core/topk.h.
#pragma once

#include <cstdint>

#include "cuda/device/stream.h"

namespace resflow::cuda {

int64_t topk_workspace_bytes(int64_t requests, int64_t count, int64_t k);

// Writes the k best of scores [count] to out_scores and out_positions [requests, k]. All pointers are device memory;
// offsets [requests + 1] may be null for requests of count / requests candidates each. Offsets that do not increase
// from 0 to count give positions -1. A k beyond 2048 needs a workspace of 16 bytes per candidate, aligned to 16 bytes.
void topk(const float* scores, const int64_t* offsets, int64_t requests, int64_t count, int64_t k, float* out_scores,
          int64_t* out_positions, void* workspace, Stream stream);

}  // namespace resflow::cuda
