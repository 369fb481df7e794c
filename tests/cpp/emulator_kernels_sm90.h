// Small kernels of what only Hopper has (see emulator_kernels.h).
#pragma once

#include "cuda/device/tensor_map.h"
#include "emulator_kernels.h"

namespace resflow::testing {

// out [rows][kColumns] = a [rows][depth] x b [kColumns][depth]: a warp copies stages, a warpgroup multiplies them, a
// described or in registers, with the products of one stage running while the next is waited for.
template <class Product, int kColumns, bool kInRegisters>
struct WarpgroupMultiply {
  struct Params {
    TensorMap a, b;
    float* out;
    int64_t rows, depth;
  };
  RESFLOW_KERNEL(160);
  static constexpr int kStages = 3, kABytes = 64 * 128, kStageBytes = kABytes + kColumns * 128;
  static constexpr int kSharedBytes = kStages * kStageBytes + 2 * kStages * 8;

  static RESFLOW_DEVICE void produce(const Params& params, char* shared, uint64_t* full, uint64_t* empty, int stages) {
    prefetch_map(&params.a);
    for (int i = 0; i < stages; ++i) {
      const int at = i % kStages;
      barrier_wait(empty + at, (i / kStages & 1) ^ 1);
      barrier_expect(full + at, kStageBytes);
      char* const stage = shared + at * kStageBytes;
      copy_box(stage, &params.a, 64 * i, static_cast<int32_t>(64 * block_index()), full + at);
      copy_box(stage + kABytes, &params.b, 64 * i, 0, full + at);
    }
  }

  static RESFLOW_DEVICE void multiply(float (&sums)[kColumns / 2], uint32_t (&a)[4][4], const char* stage) {
    const int lane = thread_index() % 32, row = thread_index() / 32 * 16 + lane % 16;
    if constexpr (kInRegisters) {
      for (int step = 0; step < 4; ++step) {
        load_matrices(a[step], stage + row * 128 + ((2 * step + lane / 16) ^ row % 8) * 16);
      }
    }
    products_begin();
    for (int step = 0; step < 4; ++step) {
      const uint64_t b = describe_matrix(stage + kABytes + 32 * step);
      if constexpr (kInRegisters) {
        WarpgroupProduct<Product, kColumns>::multiply(sums, a[step], b);
      } else {
        WarpgroupProduct<Product, kColumns>::multiply(sums, describe_matrix(stage + 32 * step), b);
      }
    }
    products_commit();
  }

  static RESFLOW_DEVICE void consume(const Params& params, char* shared, uint64_t* full, uint64_t* empty, int stages) {
    float sums[kColumns / 2];
    for (float& sum : sums) sum = 1.0f;
    uint32_t a[2][4][4];
    for (int i = 0; i < stages; ++i) {
      const int at = i % kStages;
      barrier_wait(full + at, i / kStages & 1);
      multiply(sums, a[i % 2], shared + at * kStageBytes);
      products_wait<1>();
      if (i > 0) barrier_arrive(empty + (i - 1) % kStages);
    }
    products_wait<0>();
    for (float& sum : sums) touch(sum);
    const int lane = thread_index() % 32;
    for (int i = 0; i < kColumns / 2; ++i) {
      const int64_t row = 64 * block_index() + thread_index() / 32 * 16 + lane / 4 + 8 * (i % 4 / 2);
      const int column = i / 4 * 8 + 2 * (lane % 4) + i % 2;
      if (row < params.rows) store_global(params.out + row * kColumns + column, sums[i]);
    }
  }

  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    auto* const full = reinterpret_cast<uint64_t*>(shared + kStages * kStageBytes);
    uint64_t* const empty = full + kStages;
    if (thread_index() == 0) {
      for (int i = 0; i < kStages; ++i) {
        barrier_init(full + i, 1);
        barrier_init(empty + i, 128);
      }
      barrier_init_done();
    }
    sync_block();
    const int stages = static_cast<int>((params.depth + 63) / 64);
    if (thread_index() < 128) {
      consume(params, shared, full, empty, stages);
    } else if (thread_index() == 128) {
      produce(params, shared, full, empty, stages);
    }
  }
};

// Copies a box and bytes side by side and stores shared memory as it is.
struct CopyEngine {
  struct Params {
    TensorMap map;
    const void* bytes;  // 48 of them
    uint32_t* out;      // [1024 + 12]
    int32_t column, row;
  };
  RESFLOW_KERNEL(32);
  static constexpr int kSharedBytes = 32 * 128 + 64 + 8;
  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    auto* const barrier = reinterpret_cast<uint64_t*>(shared + 32 * 128 + 64);
    if (thread_index() == 0) {
      barrier_init(barrier, 1);
      barrier_init_done();
    }
    sync_block();
    if (thread_index() == 0) {
      copy_box(shared, &params.map, params.column, params.row, barrier);
      copy_bulk(shared + 32 * 128, params.bytes, 48, barrier);
      barrier_expect(barrier, 32 * 128 + 48);
    }
    barrier_wait(barrier, 0);
    const auto* const words = reinterpret_cast<const uint32_t*>(shared);
    for (int i = thread_index(); i < 1024 + 12; i += 32) store_global(params.out + i, words[i]);
  }
};

enum class HopperMistake {
  none,
  reads_before_landing,
  reads_sums_before_wait,
  writes_pending_sums,
  arrives_twice,
  initialises_twice,
  not_initialised,
  not_announced,
  expects_too_much,
  expects_too_little,
  box_misaligned,
  matrix_misaligned,
  map_outside_params,
  no_begin,
  count
};

// out [128]: a sum of each thread.
struct HopperMistaken {
  struct Params {
    TensorMap map;  // of [64][64] 16-bit values
    float* out;
    HopperMistake mistake;
  };
  RESFLOW_KERNEL(128);
  static constexpr int kSharedBytes = 2 * 64 * 128 + 16;

  static RESFLOW_DEVICE void copy(const Params& params, char* shared, uint64_t* barrier) {
    const auto is = [&](HopperMistake mistake) { return params.mistake == mistake; };
    if (!is(HopperMistake::not_initialised)) barrier_init(barrier, 1);
    if (is(HopperMistake::initialises_twice)) barrier_init(barrier, 1);
    if (!is(HopperMistake::not_announced)) barrier_init_done();
    if (is(HopperMistake::map_outside_params)) {
      const TensorMap map = params.map;
      copy_box(shared, &map, 0, 0, barrier);
    }
    copy_box(shared + (is(HopperMistake::box_misaligned) ? 128 : 0), &params.map, 0, 0, barrier);
    barrier_expect(barrier,
                   64 * 128 + 16 * is(HopperMistake::expects_too_much) - 16 * is(HopperMistake::expects_too_little));
    if (is(HopperMistake::arrives_twice)) {
      barrier_arrive(barrier);
      barrier_arrive(barrier);
    }
  }

  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    const auto is = [&](HopperMistake mistake) { return params.mistake == mistake; };
    auto* const barrier = reinterpret_cast<uint64_t*>(shared + 2 * 64 * 128);
    if (thread_index() == 0) copy(params, shared, barrier);
    sync_block();
    if (!is(HopperMistake::reads_before_landing)) barrier_wait(barrier, 0);
    float sums[32] = {};
    const uint64_t matrix = describe_matrix(shared + (is(HopperMistake::matrix_misaligned) ? 128 : 0));
    if (!is(HopperMistake::no_begin)) products_begin();
    WarpgroupProduct<Bfloat16Product, 64>::multiply(sums, matrix, matrix);
    products_commit();
    if (is(HopperMistake::writes_pending_sums)) sums[5] = 0.0f;
    if (is(HopperMistake::reads_sums_before_wait)) store_global(params.out + thread_index(), sums[0]);
    products_wait<0>();
    if (!is(HopperMistake::reads_sums_before_wait)) store_global(params.out + thread_index(), sums[0]);
  }
};

}  // namespace resflow::testing
