// Values of rows in any of the float formats.
#pragma once

#include "core/candidates.h"
#include "cuda/math.h"

namespace resflow::cuda {

RESFLOW_DEVICE float row_value(const Rows& rows, int64_t row, int64_t column) {
  const int64_t at = row * rows.stride + column;
  switch (rows.element) {
    case Precision::bfloat16:
      return float_of_bfloat16(load_constant(static_cast<const uint16_t*>(rows.data) + at));
    case Precision::float16:
      return float_of_float16(load_constant(static_cast<const uint16_t*>(rows.data) + at));
    default:
      return load_constant(static_cast<const float*>(rows.data) + at);
  }
}

// The largest magnitude of a row's columns first to first + width - 1 over 127, or NaN if one is not finite: the scale
// of its bytes. A warp's lanes share the work, and all return it.
RESFLOW_DEVICE float scale_of_row(const Rows& rows, int64_t row, int64_t first, int64_t width, int lane) {
  uint32_t largest = 0;  // magnitudes are ordered as their bits, NaN last
  for (int64_t i = lane; i < width; i += 32) {
    const uint32_t magnitude = word_of_float(row_value(rows, row, first + i)) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    const uint32_t other = shuffle_xor(largest, mask);
    largest = other > largest ? other : largest;
  }
  return largest < 0x7f800000u ? float_of_word(largest) / 127.0f : kNan;
}

}  // namespace resflow::cuda
