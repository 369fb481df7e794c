// Reads values of rows of any dtype.
#pragma once

#include "core/candidates.h"
#include "core/precision.h"
#include "core/quantize.h"
#include "cuda/device/math.h"

namespace resflow::cuda {

template <Precision kElement>
RESFLOW_DEVICE float value_as(const void* row, int64_t at) {
  if constexpr (kElement == Precision::bfloat16) {
    return float_of_bfloat16(load_constant(static_cast<const uint16_t*>(row) + at));
  } else if constexpr (kElement == Precision::float16) {
    return float_of_float16(load_constant(static_cast<const uint16_t*>(row) + at));
  } else if constexpr (kElement == Precision::int8) {
    return static_cast<float>(load_constant(static_cast<const int8_t*>(row) + at));
  } else {
    static_assert(kElement == Precision::float32, "a precision of rows or tables without its value");
    return load_constant(static_cast<const float*>(row) + at);
  }
}

// Value `at` of a row of any dtype.
RESFLOW_DEVICE float value_of(const void* row, Precision element, int64_t at) {
  using namespace precision_flag;
  return with_precision < in_rows | in_gpu_rows |
         in_tables > (element, [&](auto own) { return value_as<own.value>(row, at); });
}

// A row's address; Rows::from is host code.
RESFLOW_DEVICE const char* row_at(const Rows& rows, int64_t row) {
  return static_cast<const char*>(rows.data) + row * rows.stride * bytes_of(rows.element);
}

// The scale of a row's columns first to first + width - 1 in int8. A warp's lanes share the work, and all return it.
RESFLOW_DEVICE float scale_of_row(const void* row, Precision element, int64_t first, int64_t width, int lane) {
  uint32_t largest = 0;  // magnitudes are ordered as their bits, NaN last
  for (int64_t i = lane; i < width; i += 32) {
    const uint32_t magnitude = word_of_float(value_of(row, element, first + i)) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const uint32_t other = shuffle_xor(largest, mask);
    largest = other > largest ? other : largest;
  }
  return int8_scale(float_of_word(largest));
}

}  // namespace resflow::cuda
