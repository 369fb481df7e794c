// The kernel that selects the best of a chunk of scores, or of lists from the level before. See topk.cu.
#pragma once

#include <bit>

#include "cuda/device/launch.h"
#include "cuda/device/math.h"
#include "cuda/towers/segments.h"

namespace resflow::cuda::best {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kKeysPerThread = 16;
constexpr int kChunkShift = 12;
constexpr int kChunk = 1 << kChunkShift;
static_assert(kChunk == kThreads * kKeysPerThread);

// A better candidate has a larger key: the score as an ordered integer, then the inverted position. 0 is no candidate.
constexpr int64_t kMostCandidates = 0xffffffff;

RESFLOW_DEVICE uint64_t key_of(float score, int64_t position) {
  uint32_t order = 0;  // NaN: below -inf, whose order is 0x007fffff
  if (score == score) {
    const uint32_t bits = word_of_float(score == 0.0f ? 0.0f : score);
    order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }
  return static_cast<uint64_t>(order) << 32 | static_cast<uint32_t>(~static_cast<uint32_t>(position));
}

RESFLOW_DEVICE int64_t position_of(uint64_t key) { return static_cast<uint32_t>(~static_cast<uint32_t>(key)); }

RESFLOW_DEVICE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
RESFLOW_DEVICE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// The sorted keys of segments. Packed lists have room for k keys each; otherwise (k is large) a list has room for all
// of its segment's candidates, at their offset.
struct Lists {
  uint64_t* keys;
  int64_t k;
  bool packed;

  RESFLOW_DEVICE uint64_t* of(const Segment& segment) const {
    return keys + (packed ? (segment.window + segment.request) * k : segment.first);
  }
};

RESFLOW_DEVICE int64_t kept_of(const Segment& segment, int64_t k) { return min_of(k, segment.end - segment.first); }

struct Output {
  const float* scores;  // of all candidates
  float* best;
  int64_t* positions;
  int64_t k;

  RESFLOW_DEVICE void write(const Requests& requests, const Segment& segment, int64_t rank, uint64_t key) const {
    const int64_t position = position_of(key), to = segment.request * k + rank;
    // Offsets that do not increase leave lists that no block wrote.
    const bool found = key != 0 && requests.valid() && position < segment.request_end - segment.begin;
    store_global(best + to, found ? load_constant(scores + segment.begin + position) : kNan);
    store_global(positions + to, found ? position : int64_t(-1));
  }
};

// A block's counts, followed by the keys it keeps.
struct alignas(16) SelectShared {
  int32_t counts[2][kWarps];
  int32_t gathered[kWarps];

  RESFLOW_DEVICE uint64_t* kept() { return reinterpret_cast<uint64_t*>(this + 1); }
  static int64_t bytes(int64_t k) {
    return static_cast<int64_t>(sizeof(SelectShared)) +
           8 * static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(k)));
  }
};

struct SelectParams {
  Requests requests;
  int shift;
  const float* scores;
  Lists from;  // lists of windows of 2^from_shift candidates, when selecting from lists
  int from_shift;
  Lists to;  // without keys, the result goes to the output
  Output output;
  int64_t k;
};

template <bool kOfLists>
struct SelectBest {
  using Params = SelectParams;
  static constexpr int kThreads = best::kThreads;
  static constexpr int kMinBlocks = 3;  // with 4, registers spill
  static constexpr const char* kName = "topk select";

  using Keys = uint64_t[kKeysPerThread];

  using Shared = SelectShared;

  static RESFLOW_DEVICE void run(const Params& params, char* memory) {
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    Segment segment;
    if (!params.requests.find(block_index(), params.shift, &segment)) return;
    const int64_t kept = kept_of(segment, params.k);
    Keys keys;
    int32_t lists = 0;
    if constexpr (kOfLists) {
      lists = load_lists(params, segment, keys);
    } else {
      load_scores(params, segment, keys);
    }
    if (lists == 1) {
      copy(shared, keys, kept);
    } else {
      const int64_t total = kOfLists ? lists * params.k : segment.end - segment.first;
      const bool all = !kOfLists && total <= kept;
      const uint64_t least = all ? 1 : threshold(shared, keys, total, static_cast<int32_t>(kept));
      const int32_t size = power_of_two(static_cast<int32_t>(kept));
      gather(shared, keys, least, static_cast<int32_t>(kept), size);
      sort(shared.kept(), size);
    }
    for (int64_t i = thread_index(); i < kept; i += kThreads) write(params, segment, i, shared.kept()[i]);
    if (params.to.keys) return;
    for (int64_t i = kept + thread_index(); i < params.k; i += kThreads)
      params.output.write(params.requests, segment, i, 0);
  }

  static RESFLOW_DEVICE void write(const Params& params, const Segment& segment, int64_t rank, uint64_t key) {
    if (params.to.keys) {
      store_global(params.to.of(segment) + rank, key);
    } else {
      params.output.write(params.requests, segment, rank, key);
    }
  }

  // Thread t holds the keys of candidates t, t + kThreads, ...
  static RESFLOW_DEVICE void load_scores(const Params& params, const Segment& segment, Keys& keys) {
#pragma unroll
    for (int i = 0; i < kKeysPerThread; ++i) {
      const int64_t candidate = segment.first + thread_index() + i * kThreads;
      keys[i] =
          candidate < segment.end ? key_of(load_constant(params.scores + candidate), candidate - segment.begin) : 0;
    }
  }

  // Returns the number of lists: those of the consecutive windows that make up this one; the lists are contiguous.
  static RESFLOW_DEVICE int32_t load_lists(const Params& params, const Segment& segment, Keys& keys) {
    const auto part = [&](int64_t candidate) {
      return params.requests.segment(segment.request, candidate >> params.from_shift, params.from_shift);
    };
    const Segment lowest = part(segment.first), highest = part(max_of(segment.first, segment.end - 1));
    const auto lists = static_cast<int32_t>(highest.window - lowest.window + 1), k = static_cast<int32_t>(params.k);
    // Windows between the first and the last are complete, so their lists are full.
    const auto in_lowest = static_cast<int32_t>(kept_of(lowest, k));
    const int32_t in_highest = (lists - 1) * k + static_cast<int32_t>(kept_of(highest, k));
    const uint64_t* const from = params.from.of(lowest);
#pragma unroll
    for (int i = 0; i < kKeysPerThread; ++i) {
      const int32_t index = thread_index() + i * kThreads;
      keys[i] = index < in_lowest || (index >= k && index < in_highest) ? load_global(from + index) : 0;
    }
    return lists;
  }

  static RESFLOW_DEVICE void copy(Shared& shared, Keys& keys, int64_t kept) {
#pragma unroll
    for (int i = 0; i < kKeysPerThread; ++i) {
      const int index = thread_index() + i * kThreads;
      if (index < kept) shared.kept()[index] = keys[i];
    }
    sync_block();
  }

  // The largest key that at least `kept` of the first `total` keys reach, found bit by bit.
  static RESFLOW_DEVICE uint64_t threshold(Shared& shared, Keys& keys, int64_t total, int32_t kept) {
    uint64_t reached = 0;
    for (int bit = 63; bit >= 0; --bit) {
      const uint64_t next = reached | uint64_t(1) << bit;
      int32_t count = 0;
#pragma unroll
      for (int i = 0; i < kKeysPerThread; ++i) {
        if (i % 4 == 1 && i * kThreads >= total) break;  // a short request fills few of a thread's keys
        count += keys[i] >= next;
      }
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) count += shuffle_xor(count, mask);
      int32_t* const counts = shared.counts[bit & 1];  // double-buffered: the other may still be read
      if (thread_index() % 32 == 0) counts[thread_index() / 32] = count;
      sync_block();
      count = 0;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) count += counts[warp];
      if (count >= kept) reached = next;
      if (count == kept) break;
    }
    return reached;
  }

  // Writes keys of at least `least` to shared.kept(), unordered, and zeros up to `size`.
  static RESFLOW_DEVICE void gather(Shared& shared, Keys& keys, uint64_t least, int32_t kept, int32_t size) {
    const int lane = thread_index() % 32, warp = thread_index() / 32;
    int32_t count = 0;
#pragma unroll
    for (int i = 0; i < kKeysPerThread; ++i) count += keys[i] != 0 && keys[i] >= least;
    int32_t prefix = count;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int32_t other = shuffle_from(prefix, lane >= step ? lane - step : lane);
      if (lane >= step) prefix += other;
    }
    if (lane == 31) shared.gathered[warp] = prefix;
    for (int32_t i = thread_index(); i < size; i += kThreads) shared.kept()[i] = 0;
    sync_block();
    int32_t to = prefix - count;
#pragma unroll
    for (int other = 0; other < kWarps; ++other) {
      if (other < warp) to += shared.gathered[other];
    }
#pragma unroll
    for (int i = 0; i < kKeysPerThread; ++i) {
      if (keys[i] != 0 && keys[i] >= least) {
        if (to < kept) shared.kept()[to] = keys[i];
        ++to;
      }
    }
    sync_block();
  }

  static RESFLOW_DEVICE int32_t power_of_two(int32_t at_least) {
    int32_t size = 1;
    while (size < at_least) size *= 2;
    return size;
  }

  // Bitonic sort, largest first.
  static RESFLOW_DEVICE void sort(uint64_t* keys, int32_t size) {
    for (int32_t run = 2; run <= size; run *= 2) {
      for (int32_t stride = run / 2; stride > 0; stride /= 2) {
        for (int32_t i = thread_index(); i < size / 2; i += kThreads) {
          const int32_t low = 2 * i - (i & (stride - 1)), high = low + stride;
          const uint64_t a = keys[low], b = keys[high];
          if ((a < b) == ((low & run) == 0)) {
            keys[low] = b;
            keys[high] = a;
          }
        }
        sync_block();
      }
    }
  }
};

}  // namespace resflow::cuda::best
