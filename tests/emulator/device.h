// The operations of target.h on a CPU: the same names as device/ptx.h, checked. Errors are thrown by launch().
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/number_formats.h"
#include "emulator/async_copy.h"
#include "emulator/block.h"
#include "emulator/product.h"
#include "emulator/warp.h"

#define RESFLOW_DEVICE inline

namespace resflow::cuda {

using emulator::Site;

// Threads and blocks ---------------------------------------------------------------------------------------------

inline int thread_index() { return emulator::block().thread_index(); }
inline int64_t block_index() { return emulator::block().index(); }
inline int64_t block_count() { return emulator::block().grid().blocks; }

inline void sync_block(Site site = Site::current()) { emulator::block().sync_block(site); }
inline void sync_warp(Site site = Site::current()) { emulator::sync_warp(site); }
inline void sync_some(int barrier, int threads, Site site = Site::current()) {
  emulator::block().sync_some(barrier, threads, site);
}

namespace emulator {

template <class T>
T exchange_value(T value, int from, const char* what, const Site& site) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(bits, from, what, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulator

template <class T>
T shuffle_xor(T value, int mask, Site site = Site::current()) {
  return emulator::exchange_value(value, thread_index() % emulator::kWarp ^ mask, "shuffle_xor", site);
}
template <class T>
T shuffle_from(T value, int lane, Site site = Site::current()) {
  return emulator::exchange_value(value, lane, "shuffle_from", site);
}
inline uint32_t ballot(bool holds, Site site = Site::current()) { return emulator::ballot(holds, site); }

// Global memory --------------------------------------------------------------------------------------------------

namespace emulator {

template <class T>
void require_access(const T* address, bool write, const char* what, const Site& site) {
  static_assert(std::is_trivially_copyable_v<T> &&
                (sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16));
  block().require_global(address, sizeof(T), sizeof(T), write, what, site);
}

template <class T>
T load(const T* from, const char* what, const Site& site) {
  require_access(from, false, what, site);
  block().maybe_yield(64);
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

}  // namespace emulator

template <class T>
T load_global(const T* from, Site site = Site::current()) {
  return emulator::load(from, "load_global", site);
}
template <class T>
T load_constant(const T* from, Site site = Site::current()) {
  return emulator::load(from, "load_constant", site);
}
template <class T>
T load_shared_by_blocks(const T* from, Site site = Site::current()) {
  return emulator::load(from, "load_shared_by_blocks", site);
}
template <class T>
void store_global(T* to, T value, Site site = Site::current()) {
  emulator::require_access(to, true, "store_global", site);
  emulator::block().maybe_yield(64);
  std::memcpy(to, &value, sizeof(T));
}

inline void prefetch_sector(const void* from, Site site = Site::current()) {
  emulator::require_access(static_cast<const char*>(from), false, "prefetch_sector", site);
}

inline int32_t atomic_add(int32_t* to, int32_t value, Site site = Site::current()) {
  emulator::require_access(to, true, "atomic_add", site);
  emulator::block().maybe_yield(4);
  const int32_t before = *to;
  *to = static_cast<int32_t>(static_cast<uint32_t>(before) + static_cast<uint32_t>(value));
  return before;
}

inline void fence_device() {}

inline void wait_for_count(const int32_t* counter, int32_t count, Site site = Site::current()) {
  struct Wait {
    const int32_t* counter;
    int32_t count;
  };
  emulator::require_access(counter, false, "wait_for_count", site);
  const Wait wait = {counter, count};
  emulator::block().wait_until(
      [](const void* argument) {
        const auto* const wait = static_cast<const Wait*>(argument);
        return *wait->counter >= wait->count;
      },
      &wait, emulator::kOtherBlocks, site);
}

// Asynchronous copies ----------------------------------------------------------------------------------------------

inline uint32_t shared_address(const void* shared, Site site = Site::current()) {
  emulator::block().require_shared(shared, 0, 1, "shared_address", site);
  return emulator::block().shared_address(shared);
}

inline void copy_async_16(void* shared, const void* from, int bytes = 16, Site site = Site::current()) {
  emulator::copy_async_16(shared, from, bytes, site);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int kLeft>
void copy_async_wait() {
  emulator::copy_async_wait(kLeft);
}

// Tensor cores -----------------------------------------------------------------------------------------------------

namespace emulator {

template <class WordsOfProduct>
struct Product {
  using Words = WordsOfProduct;
  static void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::current()) {
    emulator::multiply<Words>(sums, a, b, site);
  }
};

}  // namespace emulator

struct Bfloat16Product : emulator::Product<emulator::Bfloat16Words> {};
struct Float16Product : emulator::Product<emulator::Float16Words> {};
struct Tensorfloat32Product : emulator::Product<emulator::Tensorfloat32Words> {};

inline void load_matrices(uint32_t (&out)[4], const void* row, Site site = Site::current()) {
  emulator::load_matrices(out, row, site);
}

// Rounding ---------------------------------------------------------------------------------------------------------

inline uint32_t word_of_float(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof(word));
  return word;
}
inline float float_of_word(uint32_t word) {
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}
inline uint32_t bfloat16_pair(float low, float high) {
  return to_bfloat16(low) | static_cast<uint32_t>(to_bfloat16(high)) << 16;
}
inline uint32_t float16_pair(float low, float high) {
  return to_float16(low) | static_cast<uint32_t>(to_float16(high)) << 16;
}
inline uint32_t tensorfloat32_word(float value) { return word_of_float(to_tensorfloat32(value)); }
inline float float_of_bfloat16(uint16_t bits) { return from_bfloat16(bits); }
inline float float_of_float16(uint16_t bits) { return from_float16(bits); }

}  // namespace resflow::cuda
