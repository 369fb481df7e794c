// Blocks find the best of chunks of kChunk candidates and write them as sorted lists of keys; then lists are merged,
// level by level, until each request has one. A level has one list per window (segments.h) of 2^shift candidates, so
// every request of a call, long or short, takes the same steps and the host needs no lengths.
//
//   k of up to kChunk / 2   a level's block takes the lists of as many windows as fill a chunk, and selects again
//   a larger k              lists are merged in pairs by one thread per key, which finds its rank in the other list
#include "cuda/topk/topk.h"

#include <bit>
#include <stdexcept>
#include <string>

#include "cuda/topk/topk_select.h"

namespace resflow::cuda {
namespace {

using namespace best;

// Merging in pairs ---------------------------------------------------------------------------------------------------

constexpr int kMergeShift = 10;

// A block moves 2^kMergeShift keys.
struct MergePairs {
  struct Params {
    Requests requests;
    Lists from;
    int from_shift;
    Lists to;
    int64_t k;
  };
  static constexpr int kThreads = best::kThreads;
  static constexpr int kMinBlocks = 4;
  static constexpr const char* kName = "topk merge";

  static RESFLOW_DEVICE void run(const Params& params, char*) {
    Segment part;
    const Requests& requests = params.requests;
    if (!requests.find(block_index(), kMergeShift, &part)) return;
    const int64_t request = part.request, window = part.first >> params.from_shift;
    const Segment current = requests.segment(request, window, params.from_shift);
    const Segment other = requests.segment(request, window ^ 1, params.from_shift);
    const Segment merged = requests.segment(request, window >> 1, params.from_shift + 1);
    const uint64_t* const others = params.from.of(other);
    const int64_t kept = kept_of(current, params.k), kept_others = kept_of(other, params.k);
    const int64_t kept_merged = kept_of(merged, params.k);
    for (int64_t i = part.first + thread_index(); i < part.end; i += kThreads) {
      const int64_t rank = i - current.first;
      if (rank >= kept) break;
      const uint64_t key = load_global(params.from.of(current) + rank);
      int64_t low = 0, high = kept_others;  // bisects for the number of larger keys in the other list
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (load_global(others + middle) > key) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      if (rank + low < kept_merged) store_global(params.to.of(merged) + rank + low, key);
    }
  }
};

struct WriteOutput {
  struct Params {
    Requests requests;
    Lists from;
    int shift;
    Output output;
  };
  static constexpr int kThreads = best::kThreads;
  static constexpr int kMinBlocks = 4;
  static constexpr const char* kName = "topk output";

  static RESFLOW_DEVICE void run(const Params& params, char*) {
    const int64_t index = block_index() * kThreads + thread_index(), k = params.output.k;
    if (index >= params.requests.requests * k) return;
    const int64_t rank = index % k;
    const Segment segment = params.requests.segment(index / k, 0, params.shift);
    const uint64_t key = rank < kept_of(segment, k) ? load_global(params.from.of(segment) + rank) : 0;
    params.output.write(params.requests, segment, rank, key);
  }
};

// Levels -------------------------------------------------------------------------------------------------------------

bool selects(int64_t k) { return k <= kChunk / 2; }

// Each level's windows are 2^level_step times as long as those of the level before.
int level_step(int64_t k) { return selects(k) ? std::bit_width(static_cast<uint64_t>(kChunk / k)) - 1 : 1; }

bool is_last(int64_t count, int shift) { return count >> shift == 0; }

int64_t list_keys(int64_t requests, int64_t count, int64_t k, int shift) {
  if (is_last(count, shift) && (selects(k) || shift == kChunkShift)) return 0;  // written directly to the output
  return selects(k) ? slots(count, requests, shift) * k : count;
}

// The result of checking the offsets is stored before the lists.
constexpr int64_t kFlagKeys = 2;

int64_t aligned(int64_t keys) { return (keys + 1) / 2 * 2; }

}  // namespace

int64_t topk_workspace_bytes(int64_t requests, int64_t count, int64_t k) {
  const int64_t first = list_keys(requests, count, k, kChunkShift);
  const int64_t second = first > 0 ? list_keys(requests, count, k, kChunkShift + level_step(k)) : 0;
  return 8 * (kFlagKeys + aligned(first) + aligned(second));
}

void topk(const float* scores, const int64_t* offsets, int64_t requests, int64_t count, int64_t k, float* out_scores,
          int64_t* out_positions, void* workspace, Stream stream) {
  if (requests == 0) return;
  if (count >= kMostCandidates) {
    throw std::invalid_argument("topk: candidates must be fewer than " + std::to_string(kMostCandidates) + ", got " +
                                std::to_string(count));
  }
  auto* const keys = static_cast<uint64_t*>(workspace) + kFlagKeys;
  const Requests segments = offsets
                                ? checked_requests(offsets, requests, count, static_cast<int32_t*>(workspace), stream)
                                : Requests{nullptr, requests, count, count / requests, nullptr};
  const Output output{scores, out_scores, out_positions, k};
  Lists to{keys, k, selects(k)}, spare{keys + aligned(list_keys(requests, count, k, kChunkShift)), k, selects(k)};
  const Lists no_lists{nullptr, k, selects(k)};
  int shift = kChunkShift;
  const auto select = [&](const Lists& from, int from_shift) {
    const Lists& target = list_keys(requests, count, k, shift) > 0 ? to : no_lists;
    const SelectParams params{segments, shift, scores, from, from_shift, target, output, k};
    const int64_t blocks = slots(count, requests, shift), kept = k < kChunk ? k : kChunk;
    if (from.keys) {
      launch<SelectBest<true>>(params, blocks, SelectShared::bytes(kept), stream);
    } else {
      launch<SelectBest<false>>(params, blocks, SelectShared::bytes(kept), stream);
    }
  };
  select(no_lists, 0);
  while (!is_last(count, shift)) {
    const int from_shift = shift;
    const Lists from = to;
    to = spare;
    spare = from;
    shift += level_step(k);
    if (selects(k)) {
      select(from, from_shift);
    } else {
      launch<MergePairs>({segments, from, from_shift, to, k}, slots(count, requests, kMergeShift), 0, stream);
    }
  }
  if (!selects(k) && shift > kChunkShift) {
    launch<WriteOutput>({segments, to, shift, output}, (requests * k + kThreads - 1) / kThreads, 0, stream);
  }
}

}  // namespace resflow::cuda
