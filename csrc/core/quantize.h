// Symmetric int8: values as bytes of -127 to 127 times one scale for all of them. Weights have one scale per column,
// tables one per row (and task), candidates one per row.
//
//   scale = the largest magnitude / 127; not a number where a value is infinite or not a number
//   byte  = the step nearest to value / scale, even at a tie, kept within -127 to 127
//
// The bytes are 0 where the scale cannot be divided by: a scale of 0 (of zeros), and one that is not a number, which
// makes every score of such values not a number. A subnormal scale is rounded so coarsely that quotients may exceed 127
// (1.49 * 127 * 2^-149 over 2^-149); their bytes are 127. The step is computed in one of two ways:
//
//   divide       for stored values, weights and tables: value / scale, as exact as a float32 division.
//   reciprocal   for rows rounded in each call: value * (1 / scale), one product per value where a division takes ten
//                times as long. It may differ by one step where the quotient is within two roundings of a tie. A scale
//                below 2^-128 has no finite reciprocal; the largest float stands for it, and the product still ends at
//                127, because the largest magnitude is 127 scales.
//
// resflow_kernels/reference/rounding.py is the same in PyTorch, by division.
#pragma once

#include <cstdint>

#include "core/both.h"

namespace resflow {

constexpr float kInt8Steps = 127.0f;
constexpr float kLargestFinite = 3.4028235e38f;

// The larger of the magnitude so far and a value's; once a value was not finite, the result is not either.
RESFLOW_BOTH float larger_magnitude(float largest, float value) {
  const float magnitude = value < 0.0f ? -value : value;
  return magnitude <= largest || largest != largest ? largest : magnitude;
}

RESFLOW_BOTH float int8_scale(float largest) {
  return largest <= kLargestFinite ? largest / kInt8Steps : __builtin_nanf("");
}

RESFLOW_BOTH int32_t int8_step(float quotient) {
  if (!(quotient > -kInt8Steps)) return quotient < 0.0f ? -127 : 0;
  if (quotient >= kInt8Steps) return 127;
#if defined(__CUDA_ARCH__)
  return static_cast<int32_t>(rintf(quotient));
#else
  return static_cast<int32_t>(__builtin_rintf(quotient));
#endif
}

RESFLOW_BOTH int32_t int8_divide(float value, float scale) { return scale > 0.0f ? int8_step(value / scale) : 0; }

// The reciprocal for int8_step(value * reciprocal). Vector code may omit int8_step's bounds, which the product keeps;
// but where the reciprocal is 0, values may be infinite or not a number, and their bytes must be 0.
RESFLOW_BOTH float int8_reciprocal(float scale) {
  if (!(scale > 0.0f)) return 0.0f;
  const float reciprocal = 1.0f / scale;
  return reciprocal <= kLargestFinite ? reciprocal : kLargestFinite;
}

}  // namespace resflow
