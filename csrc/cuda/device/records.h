// Plain data that the host makes for one call and kernels read: copied to device memory, and loaded from there.
#pragma once

#include <cstdint>

#include "cuda/device/stream.h"
#include "cuda/device/target.h"

namespace resflow::cuda {

// Copies `bytes`, a multiple of 8, to device memory.
void store_records(const void* from, int64_t bytes, void* to, Stream stream);

template <class T>
RESFLOW_DEVICE T load_record(const T* from) {
  static_assert(sizeof(T) % sizeof(uint64_t) == 0);
  constexpr int kWords = sizeof(T) / sizeof(uint64_t);
  union {
    uint64_t words[kWords];
    T record;
  };
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = load_constant(reinterpret_cast<const uint64_t*>(from) + i);
  return record;
}

}  // namespace resflow::cuda
