// A plan's precision as a kernel sees it: the values per 32-bit word of an operand, and the product that multiplies
// them.
#pragma once

#include "core/contract.h"
#include "cuda/device/target.h"

namespace resflow::cuda {

template <Precision kPrecision>
struct Numbers;

template <>
struct Numbers<Precision::bfloat16> {
  using Product = Bfloat16Product;
  static constexpr int kPerWord = 2;
  static RESFLOW_DEVICE uint32_t word(float low, float high) { return bfloat16_pair(low, high); }
};

template <>
struct Numbers<Precision::float16> {
  using Product = Float16Product;
  static constexpr int kPerWord = 2;
  static RESFLOW_DEVICE uint32_t word(float low, float high) { return float16_pair(low, high); }
};

template <>
struct Numbers<Precision::tensorfloat32> {
  using Product = Tensorfloat32Product;
  static constexpr int kPerWord = 1;
  static RESFLOW_DEVICE uint32_t word(float value) { return tensorfloat32_word(value); }
};

// Products of float32 run on the ordinary units: tensor cores have none of this precision.
template <>
struct Numbers<Precision::float32> {
  using Product = void;
  static constexpr int kPerWord = 1;
  static RESFLOW_DEVICE uint32_t word(float value) { return word_of_float(value); }
};

// Two or four contiguous floats, and four contiguous words.
struct alignas(8) Pair {
  float low, high;
};
struct alignas(16) Quad {
  float values[4];
};
struct alignas(16) Words4 {
  uint32_t words[4];
};

}  // namespace resflow::cuda
