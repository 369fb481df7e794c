// The operations of target.h under nvcc that every GPU from sm_80 on has.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#define RESFLOW_DEVICE __device__ __forceinline__

namespace resflow::cuda {

// Threads and blocks ---------------------------------------------------------------------------------------------

RESFLOW_DEVICE int thread_index() { return threadIdx.x; }
RESFLOW_DEVICE int64_t block_index() { return blockIdx.x; }
RESFLOW_DEVICE int64_t block_count() { return gridDim.x; }

RESFLOW_DEVICE void sync_block() { __syncthreads(); }
RESFLOW_DEVICE void sync_warp() { __syncwarp(); }

// Synchronises `threads` threads of whole warps; `barrier` is 1 to 15.
RESFLOW_DEVICE void sync_some(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Shuffles and votes of a full warp: every lane takes part.
template <class T>
RESFLOW_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T>
RESFLOW_DEVICE T shuffle_from(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
RESFLOW_DEVICE uint32_t ballot(bool holds) { return __ballot_sync(0xffffffffu, holds); }

// Global memory --------------------------------------------------------------------------------------------------

// The type of each size that the compiler has cached loads for.
template <int kBytes>
struct Bits;
template <>
struct Bits<1> {
  using Type = unsigned char;
};
template <>
struct Bits<2> {
  using Type = unsigned short;
};
template <>
struct Bits<4> {
  using Type = unsigned;
};
template <>
struct Bits<8> {
  using Type = uint2;
};
template <>
struct Bits<16> {
  using Type = uint4;
};

// Plain data of 1, 2, 4, 8 or 16 bytes, aligned to its size.
template <class T>
RESFLOW_DEVICE T load_global(const T* from) {
  return *from;
}
// Loads data that no thread writes while the kernel runs.
template <class T>
RESFLOW_DEVICE T load_constant(const T* from) {
  const auto bits = __ldg(reinterpret_cast<const typename Bits<sizeof(T)>::Type*>(from));
  return reinterpret_cast<const T&>(bits);
}
// Loads data that another block of the same launch wrote, after wait_for_count; bypasses the L1 cache.
template <class T>
RESFLOW_DEVICE T load_shared_by_blocks(const T* from) {
  const auto bits = __ldcg(reinterpret_cast<const typename Bits<sizeof(T)>::Type*>(from));
  return reinterpret_cast<const T&>(bits);
}
template <class T>
RESFLOW_DEVICE void store_global(T* to, T value) {
  *to = value;
}

// Prefetches the 32 bytes around an address into the L2 cache.
RESFLOW_DEVICE void prefetch_sector(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// Integers only: sums of floats must not depend on the order of blocks. Returns the old value.
RESFLOW_DEVICE int32_t atomic_add(int32_t* to, int32_t value) { return atomicAdd(to, value); }

// Global stores before it, by this thread and threads it has synchronised with, are visible before stores after it.
RESFLOW_DEVICE void fence_device() { __threadfence(); }

// Waits until a counter that other blocks add to holds at least `count`; those blocks must have begun earlier.
RESFLOW_DEVICE void wait_for_count(const int32_t* counter, int32_t count) {
  int32_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  } while (seen < count);
}

// Asynchronous copies ----------------------------------------------------------------------------------------------

RESFLOW_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Copies 16 bytes, both addresses aligned to 16: `bytes` from global memory (0: `from` is not read), then zeros.
RESFLOW_DEVICE void copy_async_16(void* shared, const void* from, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(from), "r"(bytes)
               : "memory");
}
RESFLOW_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but this thread's last kLeft groups have arrived; other threads see them after a barrier.
template <int kLeft>
RESFLOW_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Tensor cores -----------------------------------------------------------------------------------------------------
//
// sums[4] += a[4] * b[2], a tile of 16 rows x 8 columns over 8 words (32 bits) of depth: 16 bfloat16 or float16, or 8
// tensorfloat32. With row = lane / 4 and word = lane % 4, a lane holds for each of these types
//   a: (row, word), (row + 8, word), (row, word + 4), (row + 8, word + 4)
//   b: (word, column lane / 4), (word + 4, column lane / 4)
//   sums: (row, 2 word), (row, 2 word + 1), (row + 8, 2 word), (row + 8, 2 word + 1)

struct Bfloat16Product {
  static RESFLOW_DEVICE void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

struct Float16Product {
  static RESFLOW_DEVICE void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

struct Tensorfloat32Product {
  static RESFLOW_DEVICE void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

// Loads four 8 x 8 matrices of 16-bit values: lane i passes the address (16-byte aligned, shared) of row i % 8 of
// matrix i / 8; a lane receives in out[m] the values of matrix m, row lane / 4, columns 2 (lane % 4) and the next.
RESFLOW_DEVICE void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// Rounding ---------------------------------------------------------------------------------------------------------

// Round to nearest, ties to even; two values per word, the first in its lower half.
RESFLOW_DEVICE uint32_t bfloat16_pair(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
RESFLOW_DEVICE uint32_t float16_pair(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
// Rounds to nearest, ties away from zero; the result is a float whose lower 13 bits are zero.
RESFLOW_DEVICE uint32_t tensorfloat32_word(float value) {
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
  return word;
}
RESFLOW_DEVICE float float_of_bfloat16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
RESFLOW_DEVICE float float_of_float16(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
RESFLOW_DEVICE uint32_t word_of_float(float value) { return __float_as_uint(value); }
RESFLOW_DEVICE float float_of_word(uint32_t word) { return __uint_as_float(word); }

}  // namespace resflow::cuda
