// The kernel that finds the best of a chunk: of scores, or of the lists that it found before. See topk.cu.
#pragma once

#include <bit>

#include "cuda/device/launch.h"
#include "cuda/device/math.h"
#include "cuda/towers/segments.h"

namespace resflow::cuda::best {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kKeysAThread = 16;
constexpr int kChunkShift = 12;
constexpr int kChunk = 1 << kChunkShift;
static_assert(kChunk == kThreads * kKeysAThread);

// A key is larger the better the candidate: an orderable score, then the position inverted. 0 is no candidate.
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

RESFLOW_DEVICE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
RESFLOW_DEVICE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// The sorted keys of segments: k places for each, or (k is large) as many as it has candidates, where those lie.
struct Lists {
  uint64_t* keys;
  int64_t k;
  bool packed;

  RESFLOW_DEVICE uint64_t* of(const Segment& segment) const {
    return keys + (packed ? (segment.window + segment.request) * k : segment.first);
  }
};

RESFLOW_DEVICE int64_t kept_of(const Segment& segment, int64_t k) { return smaller(k, segment.end - segment.first); }

struct Output {
  const float* scores;  // of all candidates
  float* best;
  int64_t* positions;
  int64_t k;

  RESFLOW_DEVICE void write(const Requests& requests, const Segment& segment, int64_t at, uint64_t key) const {
    const int64_t position = position_of(key), to = segment.request * k + at;
    // Offsets that do not grow leave lists that nothing wrote.
    const bool found = key != 0 && requests.valid() && position < segment.request_end - segment.begin;
    store_global(best + to, found ? load_constant(scores + segment.begin + position) : kNan);
    store_global(positions + to, found ? position : int64_t(-1));
  }
};

// Sums and places of a block, and the keys it keeps.
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
  Lists from;  // of windows of 2^from_shift, if lists are selected from
  int from_shift;
  Lists to;  // no keys: the output
  Output output;
  int64_t k;
};

template <bool kOfLists>
struct SelectBest {
  using Params = SelectParams;
  static constexpr int kThreads = best::kThreads;
  static constexpr int kMinBlocks = 3;  // at 4 registers spill
  static constexpr const char* kName = "topk select";

  using Keys = uint64_t[kKeysAThread];

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
      const int64_t places = kOfLists ? lists * params.k : segment.end - segment.first;
      const bool all = !kOfLists && places <= kept;
      const uint64_t least = all ? 1 : threshold(shared, keys, places, static_cast<int32_t>(kept));
      const int32_t size = power_of_two(static_cast<int32_t>(kept));
      gather(shared, keys, least, static_cast<int32_t>(kept), size);
      sort(shared.kept(), size);
    }
    for (int64_t at = thread_index(); at < kept; at += kThreads) write(params, segment, at, shared.kept()[at]);
    if (params.to.keys) return;
    for (int64_t at = kept + thread_index(); at < params.k; at += kThreads)
      params.output.write(params.requests, segment, at, 0);
  }

  static RESFLOW_DEVICE void write(const Params& params, const Segment& segment, int64_t at, uint64_t key) {
    if (params.to.keys) {
      store_global(params.to.of(segment) + at, key);
    } else {
      params.output.write(params.requests, segment, at, key);
    }
  }

  // A thread has the keys of places thread, thread + kThreads, ...
  static RESFLOW_DEVICE void load_scores(const Params& params, const Segment& segment, Keys& keys) {
#pragma unroll
    for (int i = 0; i < kKeysAThread; ++i) {
      const int64_t at = segment.first + thread_index() + i * kThreads;
      keys[i] = at < segment.end ? key_of(load_constant(params.scores + at), at - segment.begin) : 0;
    }
  }

  // Returns the number of lists: those of the windows side by side in this one, whose lists lie side by side.
  static RESFLOW_DEVICE int32_t load_lists(const Params& params, const Segment& segment, Keys& keys) {
    const auto part = [&](int64_t place) {
      return params.requests.segment(segment.request, place >> params.from_shift, params.from_shift);
    };
    const Segment lowest = part(segment.first), highest = part(larger(segment.first, segment.end - 1));
    const auto lists = static_cast<int32_t>(highest.window - lowest.window + 1), k = static_cast<int32_t>(params.k);
    // Windows between the first and the last are whole: their lists are full.
    const auto in_lowest = static_cast<int32_t>(kept_of(lowest, k));
    const int32_t in_highest = (lists - 1) * k + static_cast<int32_t>(kept_of(highest, k));
    const uint64_t* const from = params.from.of(lowest);
#pragma unroll
    for (int i = 0; i < kKeysAThread; ++i) {
      const int32_t place = thread_index() + i * kThreads;
      keys[i] = place < in_lowest || (place >= k && place < in_highest) ? load_global(from + place) : 0;
    }
    return lists;
  }

  static RESFLOW_DEVICE void copy(Shared& shared, Keys& keys, int64_t kept) {
#pragma unroll
    for (int i = 0; i < kKeysAThread; ++i) {
      const int place = thread_index() + i * kThreads;
      if (place < kept) shared.kept()[place] = keys[i];
    }
    sync_block();
  }

  // The largest key that at least `kept` of those at the first `places` places reach, found bit by bit.
  static RESFLOW_DEVICE uint64_t threshold(Shared& shared, Keys& keys, int64_t places, int32_t kept) {
    uint64_t reached = 0;
    for (int bit = 63; bit >= 0; --bit) {
      const uint64_t next = reached | uint64_t(1) << bit;
      int32_t count = 0;
#pragma unroll
      for (int i = 0; i < kKeysAThread; ++i) {
        if (i % 4 == 1 && i * kThreads >= places) break;  // a short request fills few of a thread's keys
        count += keys[i] >= next;
      }
#pragma unroll
      for (int mask = 16; mask > 0; mask /= 2) count += shuffle_xor(count, mask);
      int32_t* const counts = shared.counts[bit & 1];  // two in turns: the other may still be read
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

  // Keys that reach `least` to shared.kept(), in no order that counts, and zeros up to `size`.
  static RESFLOW_DEVICE void gather(Shared& shared, Keys& keys, uint64_t least, int32_t kept, int32_t size) {
    const int lane = thread_index() % 32, warp = thread_index() / 32;
    int32_t own = 0;
#pragma unroll
    for (int i = 0; i < kKeysAThread; ++i) own += keys[i] != 0 && keys[i] >= least;
    int32_t before = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int32_t other = shuffle_from(before, lane >= step ? lane - step : lane);
      if (lane >= step) before += other;
    }
    if (lane == 31) shared.gathered[warp] = before;
    for (int32_t at = thread_index(); at < size; at += kThreads) shared.kept()[at] = 0;
    sync_block();
    int32_t to = before - own;
#pragma unroll
    for (int other = 0; other < kWarps; ++other) {
      if (other < warp) to += shared.gathered[other];
    }
#pragma unroll
    for (int i = 0; i < kKeysAThread; ++i) {
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

  // Bitonic, the largest first.
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
