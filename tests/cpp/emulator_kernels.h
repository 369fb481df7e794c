// Small kernels, each about one operation of cuda/device/target.h; right ones, and ones with a mistake to be found.
// nvcc compiles them as well.
#pragma once

#include "cuda/device/launch.h"

namespace resflow::testing {

using namespace resflow::cuda;

#define RESFLOW_KERNEL(threads)            \
  static constexpr int kThreads = threads; \
  static constexpr int kMinBlocks = 1;     \
  static constexpr const char* kName = "test kernel"

// a: [16][8] words, b: [8 columns][8] words, out: [16][8].
template <class Product>
struct Multiply {
  struct Params {
    const uint32_t *a, *b;
    float* out;
  };
  RESFLOW_KERNEL(32);
  static RESFLOW_DEVICE void run(const Params& params, char*) {
    const int lane = thread_index(), row = lane / 4, word = lane % 4;
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; ++i) a[i] = load_global(params.a + (row + 8 * (i % 2)) * 8 + word + 4 * (i / 2));
    for (int i = 0; i < 2; ++i) b[i] = load_global(params.b + row * 8 + word + 4 * i);
    float sums[4] = {1.0f, 1.0f, 1.0f, 1.0f};
    Product::multiply(sums, a, b);
    for (int i = 0; i < 4; ++i) store_global(params.out + (row + 8 * (i / 2)) * 8 + 2 * word + i % 2, sums[i]);
  }
};

// The four 8 x 8 matrices of a row-major 16 x 16 one of 16-bit values, as products take their operand a.
struct LoadMatrices {
  struct Params {
    const uint16_t* in;
    uint32_t* out;  // [32 lanes][4]
  };
  RESFLOW_KERNEL(32);
  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    const int lane = thread_index();
    auto* const rows = reinterpret_cast<uint16_t*>(shared);
    for (int i = lane; i < 256; i += 32) rows[i] = load_constant(params.in + i);
    sync_warp();
    uint32_t out[4];
    load_matrices(out, rows + (lane % 16) * 16 + lane / 16 * 8);
    for (int i = 0; i < 4; ++i) store_global(params.out + 4 * lane + i, out[i]);
  }
};

struct Shuffles {
  struct Params {
    int32_t* out;  // [3][32]
  };
  RESFLOW_KERNEL(64);
  static RESFLOW_DEVICE void run(const Params& params, char*) {
    const int thread = thread_index(), lane = thread % 32;
    const int32_t other = shuffle_xor(thread, 5), from = shuffle_from(thread, (lane + 3) % 32);
    const auto votes = static_cast<int32_t>(ballot(lane % 3 == 0));
    if (thread < 32) return;
    store_global(params.out + lane, other);
    store_global(params.out + 32 + lane, from);
    store_global(params.out + 64 + lane, votes);
  }
};

// What a thread sees of its copies of 16 bytes: out is [8] floats a thread.
struct CopyAsync {
  struct Params {
    const float* in;  // 4 a thread
    float* out;
  };
  RESFLOW_KERNEL(64);
  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    const int thread = thread_index();
    auto* const first = reinterpret_cast<float*>(shared) + 8 * thread;
    float* const second = first + 4;
    float* const out = params.out + 8 * thread;
    copy_async_16(first, params.in + 4 * thread, thread % 2 ? 8 : 16);
    copy_async_commit();
    copy_async_16(second, nullptr, 0);
    copy_async_commit();
    store_global(out, first[0]);
    copy_async_wait<1>();
    store_global(out + 1, second[0]);
    for (int i = 0; i < 4; ++i) store_global(out + 2 + i, first[i]);
    copy_async_wait<0>();
    store_global(out + 6, second[0]);
    copy_async_16(first, params.in);  // a group that is never committed never arrives
    copy_async_wait<0>();
    store_global(out + 7, first[0]);
  }
};

// Every thread reads what a thread of another warp wrote; kRight: after a barrier.
template <bool kRight>
struct Neighbours {
  struct Params {
    int32_t* out;
  };
  RESFLOW_KERNEL(256);
  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    auto* const values = reinterpret_cast<int32_t*>(shared);
    values[thread_index()] = thread_index();
    if constexpr (kRight) sync_block();
    store_global(params.out + thread_index(), values[(thread_index() + 100) % kThreads]);
  }
};

// Warps 2 and 3 read what warps 0 and 1 wrote; warp 4 returns at once.
struct SomeOfBlock {
  struct Params {
    int32_t* out;
  };
  RESFLOW_KERNEL(160);
  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    auto* const values = reinterpret_cast<int32_t*>(shared);
    const int thread = thread_index();
    if (thread >= 128) return;
    if (thread < 64) values[thread] = thread;
    sync_some(3, 128);
    if (thread >= 64) store_global(params.out + thread - 64, values[127 - thread]);
  }
};

// Each block adds up to what the block before it left, in the order in which they begin.
struct Tickets {
  struct Params {
    int32_t *next, *done, *total, skip;
  };
  RESFLOW_KERNEL(32);
  static RESFLOW_DEVICE void run(const Params& params, char*) {
    int32_t ticket = 0;
    if (thread_index() == 0) ticket = atomic_add(params.next, 1) + params.skip;
    ticket = shuffle_from(ticket, 0);
    wait_for_count(params.done, ticket);
    if (thread_index()) return;
    store_global(params.total, load_shared_by_blocks(params.total) + ticket);
    fence_device();
    atomic_add(params.done, 1);
  }
};

// Which (block, thread) came when.
struct Order {
  struct Params {
    int32_t *count, *out;
  };
  RESFLOW_KERNEL(64);
  static RESFLOW_DEVICE void run(const Params& params, char*) {
    const auto id = static_cast<int32_t>(block_index() * kThreads + thread_index());
    store_global(params.out + atomic_add(params.count, 1), id);
  }
};

enum class Mistake {
  none,
  read_outside,
  misaligned,
  write_read_only,
  copy_outside,
  copy_beyond_shared,
  different_collectives,
  different_places,
  returns_early,
  returns_before_barrier,
  barriers_crossed,
  barrier_of_unlike_counts,
  writes_beyond_shared,
  count
};

// One of the above by thread 7, or by warp 0.
struct Mistaken {
  struct Params {
    const float* in;  // [4]
    float* out;       // [64]
    Mistake mistake;
  };
  RESFLOW_KERNEL(64);
  static constexpr int kSharedBytes = 1000;
  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    const int thread = thread_index();
    const auto is = [&](Mistake mistake) { return params.mistake == mistake; };
    float value = 0.0f;
    if (thread == 7) {
      if (is(Mistake::read_outside)) value = load_global(params.in + 4);
      if (is(Mistake::misaligned))
        value = load_global(reinterpret_cast<const float*>(reinterpret_cast<const char*>(params.in) + 2));
      if (is(Mistake::write_read_only)) store_global(const_cast<float*>(params.in), 1.0f);
      if (is(Mistake::copy_outside)) copy_async_16(shared, params.in + 4, 4);
      if (is(Mistake::copy_beyond_shared)) copy_async_16(shared + 992, params.in);
      if (is(Mistake::different_collectives)) value = static_cast<float>(ballot(true));
      if (is(Mistake::returns_early)) return;
      if (is(Mistake::writes_beyond_shared)) shared[kSharedBytes] = 0;
    }
    if (is(Mistake::different_places) && thread % 2) {
      value = shuffle_xor(value, 1);
    } else {
      value = shuffle_xor(value, 1);
    }
    if (is(Mistake::returns_before_barrier) && thread < 32) return;
    if (is(Mistake::barriers_crossed)) sync_some(thread < 32 ? 1 : 2, 64);
    if (is(Mistake::barrier_of_unlike_counts)) sync_some(1, thread < 32 ? 64 : 32);
    sync_block();
    store_global(params.out + thread, value);
  }
};

// out: what shared memory holds before anything is written to it.
struct Unwritten {
  struct Params {
    float* out;
  };
  RESFLOW_KERNEL(32);
  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    auto* const values = reinterpret_cast<float*>(shared);
    store_global(params.out + block_index() * kThreads + thread_index(), values[thread_index()]);
    values[thread_index()] = 1.0f;
  }
};

}  // namespace resflow::testing
