// Blocks find the best of chunks of kChunk candidates and write them as sorted lists of keys; then lists are merged,
// level by level, until each request has one. A level's lists are those of windows (segments.h) of 2^shift candidates,
// so every request of a call, long or short, takes the same steps and the host needs no lengths.
//
//   k of up to kChunk / 2   a level's block takes all lists of as many windows as fill a chunk, and selects again
//   a larger k              lists are merged in pairs, a thread a key, which finds its rank in the other list
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

// A block moves the keys of 2^kMergeShift places.
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
    Segment places;
    const Requests& requests = params.requests;
    if (!requests.find(block_index(), kMergeShift, &places)) return;
    const int64_t request = places.request, window = places.first >> params.from_shift;
    const Segment own = requests.segment(request, window, params.from_shift);
    const Segment other = requests.segment(request, window ^ 1, params.from_shift);
    const Segment both = requests.segment(request, window >> 1, params.from_shift + 1);
    const uint64_t* const others = params.from.of(other);
    const int64_t kept = kept_of(own, params.k), kept_others = kept_of(other, params.k);
    const int64_t kept_both = kept_of(both, params.k);
    for (int64_t place = places.first + thread_index(); place < places.end; place += kThreads) {
      const int64_t at = place - own.first;
      if (at >= kept) break;
      const uint64_t key = load_global(params.from.of(own) + at);
      int64_t low = 0, high = kept_others;  // keys of the other list that are larger
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (load_global(others + middle) > key) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      if (at + low < kept_both) store_global(params.to.of(both) + at + low, key);
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
    const int64_t at = index % k;
    const Segment segment = params.requests.segment(index / k, 0, params.shift);
    const uint64_t key = at < kept_of(segment, k) ? load_global(params.from.of(segment) + at) : 0;
    params.output.write(params.requests, segment, at, key);
  }
};

// Levels -------------------------------------------------------------------------------------------------------------

bool selects(int64_t k) { return k <= kChunk / 2; }

// Each level's windows are so many bits longer than those before.
int level_step(int64_t k) { return selects(k) ? std::bit_width(static_cast<uint64_t>(kChunk / k)) - 1 : 1; }

bool is_last(int64_t count, int shift) { return count >> shift == 0; }

int64_t list_keys(int64_t requests, int64_t count, int64_t k, int shift) {
  if (is_last(count, shift) && (selects(k) || shift == kChunkShift)) return 0;  // straight to the output
  return selects(k) ? slots(count, requests, shift) * k : count;
}

// Whether offsets are wrong lies before the lists.
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
  const Requests of = offsets ? checked_requests(offsets, requests, count, static_cast<int32_t*>(workspace), stream)
                              : Requests{nullptr, requests, count, count / requests, nullptr};
  const Output output{scores, out_scores, out_positions, k};
  Lists to{keys, k, selects(k)}, spare{keys + aligned(list_keys(requests, count, k, kChunkShift)), k, selects(k)};
  const Lists nothing{nullptr, k, selects(k)};
  int shift = kChunkShift;
  const auto select = [&](const Lists& from, int from_shift) {
    const Lists& target = list_keys(requests, count, k, shift) > 0 ? to : nothing;
    const SelectParams params{of, shift, scores, from, from_shift, target, output, k};
    const int64_t blocks = slots(count, requests, shift), kept = k < kChunk ? k : kChunk;
    if (from.keys) {
      launch<SelectBest<true>>(params, blocks, SelectShared::bytes(kept), stream);
    } else {
      launch<SelectBest<false>>(params, blocks, SelectShared::bytes(kept), stream);
    }
  };
  select(nothing, 0);
  while (!is_last(count, shift)) {
    const int from_shift = shift;
    const Lists from = to;
    to = spare;
    spare = from;
    shift += level_step(k);
    if (selects(k)) {
      select(from, from_shift);
    } else {
      launch<MergePairs>({of, from, from_shift, to, k}, slots(count, requests, kMergeShift), 0, stream);
    }
  }
  if (!selects(k) && shift > kChunkShift) {
    launch<WriteOutput>({of, to, shift, output}, (requests * k + kThreads - 1) / kThreads, 0, stream);
  }
}

}  // namespace resflow::cuda
