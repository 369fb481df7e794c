// Divides work by request and by window: one block for each window of 2^shift consecutive candidates that a request
// overlaps, without the host knowing where requests begin.
//
// Windows are aligned to the call's candidates, not to the request. Along the candidates either the window or the
// request advances, so window + request numbers the overlapping pairs, and a slot's pair is found by bisection.
#pragma once

#include "cuda/device/launch.h"

namespace resflow::cuda {

// Candidates first to end - 1 of a request that has candidates begin to request_end - 1; `end` is at least `first`.
struct Segment {
  int64_t request;
  int64_t begin, request_end;
  int64_t window;
  int64_t first, end;
};

// The requests of a call. Offsets come unchecked from the caller: whatever they hold, begin and end stay within the
// candidates, and bisection terminates, though it may find the wrong slots: see `wrong`.
struct Requests {
  const int64_t* offsets;  // [requests + 1]; null: requests of `length` candidates each
  int64_t requests;
  int64_t count;  // number of candidates
  int64_t length;
  const int32_t* wrong;  // nonzero if CheckOffsets found the offsets wrong; null without offsets

  RESFLOW_DEVICE bool valid() const { return !wrong || load_global(wrong) == 0; }

  RESFLOW_DEVICE int64_t offset(int64_t at) const {
    if (!offsets) return at * length;
    const int64_t value = load_constant(offsets + at);
    return value < 0 ? 0 : value < count ? value : count;
  }
  RESFLOW_DEVICE int64_t begin(int64_t request) const { return offset(request); }
  RESFLOW_DEVICE int64_t end(int64_t request) const {
    const int64_t first = offset(request), last = offset(request + 1);
    return last > first ? last : first;
  }

  // The part of a request in a window; empty if they do not overlap.
  RESFLOW_DEVICE Segment segment(int64_t request, int64_t window, int shift) const {
    Segment found{request, begin(request), end(request), window, window << shift, (window + 1) << shift};
    if (found.first < found.begin) found.first = found.begin;
    if (found.end > found.request_end) found.end = found.request_end;
    if (found.end < found.first) found.end = found.first;
    return found;
  }

  // Finds the segment of one of slots(count, requests, shift). Returns false if the slot has none. A request without
  // candidates has one slot, with an empty segment.
  RESFLOW_DEVICE bool find(int64_t slot, int shift, Segment* found) const {
    int64_t low = 0, high = requests;
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      if ((begin(middle) >> shift) + middle <= slot) {
        low = middle;
      } else {
        high = middle;
      }
    }
    *found = segment(low, slot - low, shift);
    const int64_t last = found->request_end > found->begin ? found->request_end - 1 : found->begin;
    return found->window >= found->begin >> shift && found->window <= last >> shift;
  }
};

// Checks that offsets increase from 0 to the number of candidates: one block, before the kernels that use them.
struct CheckOffsets {
  struct Params {
    const int64_t* offsets;
    int64_t requests, count;
    int32_t* wrong;
  };
  static constexpr int kThreads = 1024;
  static constexpr int kMinBlocks = 1;
  static constexpr const char* kName = "check offsets";
  static constexpr int64_t kSharedBytes = kThreads / 32 * sizeof(uint32_t);

  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    bool wrong = thread_index() == 0 && (load_constant(params.offsets) != 0 ||
                                         load_constant(params.offsets + params.requests) != params.count);
    for (int64_t at = thread_index(); at < params.requests; at += kThreads) {
      wrong |= load_constant(params.offsets + at) > load_constant(params.offsets + at + 1);
    }
    auto* const of_warps = reinterpret_cast<uint32_t*>(shared);
    const uint32_t any = ballot(wrong);
    if (thread_index() % 32 == 0) of_warps[thread_index() / 32] = any;
    sync_block();
    if (thread_index() != 0) return;
    uint32_t all = 0;
    for (int warp = 0; warp < kThreads / 32; ++warp) all |= of_warps[warp];
    store_global(params.wrong, static_cast<int32_t>(all != 0));
  }
};

inline int64_t slots(int64_t count, int64_t requests, int shift) { return (count >> shift) + requests; }

// Requests whose offsets are checked by a kernel that is queued here; `wrong` is memory for its result.
inline Requests checked_requests(const int64_t* offsets, int64_t requests, int64_t count, int32_t* wrong,
                                 Stream stream) {
  launch<CheckOffsets>({offsets, requests, count, wrong}, 1, CheckOffsets::kSharedBytes, stream);
  return {offsets, requests, count, 0, wrong};
}

}  // namespace resflow::cuda
