// Multiplies a 16-byte piece of an item's row with a user's vector, like TwinProduct in cpu/twin/twin-inl.h. A sum runs
// through a vector front to back, so it depends only on the two vectors.
#pragma once

#include <cmath>

#include "cuda/device/numbers.h"

namespace resflow::cuda {

// The user's words for a piece of an item: one float per value, or in int8 one byte per value.
template <Precision kElement>
struct TwinProduct {
  static_assert(kElement == Precision::float32, "a precision of tables without its TwinProduct");
  using Sum = float;
  static constexpr int kUserPieces = 1;

  static RESFLOW_DEVICE void add(float& sum, const Words4& item, const Words4* user) {
    const Words4 of = *user;
#pragma unroll
    for (int i = 0; i < 4; ++i) sum = fmaf(float_of_word(item.words[i]), float_of_word(of.words[i]), sum);
  }
};

template <>
struct TwinProduct<Precision::bfloat16> {
  using Sum = float;
  static constexpr int kUserPieces = 2;

  static RESFLOW_DEVICE void add(float& sum, const Words4& item, const Words4* user) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Words4& of = user[i / 2];
      sum = fmaf(float_of_word(item.words[i] << 16), float_of_word(of.words[i % 2 * 2]), sum);
      sum = fmaf(float_of_word(item.words[i] & 0xffff0000u), float_of_word(of.words[i % 2 * 2 + 1]), sum);
    }
  }
};

// sum + the products of four signed bytes.
RESFLOW_DEVICE int32_t dot_bytes(uint32_t a, uint32_t b, int32_t sum) {
#if defined(RESFLOW_EMULATED)
  for (int i = 0; i < 32; i += 8) sum += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return sum;
#else
  return __dp4a(static_cast<int32_t>(a), static_cast<int32_t>(b), sum);
#endif
}

template <>
struct TwinProduct<Precision::int8> {
  using Sum = int32_t;
  static constexpr int kUserPieces = 1;

  static RESFLOW_DEVICE void add(int32_t& sum, const Words4& item, const Words4* user) {
    const Words4 of = *user;
#pragma unroll
    for (int i = 0; i < 4; ++i) sum = dot_bytes(item.words[i], of.words[i], sum);
  }
};

}  // namespace resflow::cuda
