// Number formats narrower than a float: bfloat16 is the upper half of one, tensorfloat32 a float whose last 13 bits are
// zero, float16 is IEEE binary16.
#pragma once

#include <cstdint>
#include <cstring>

namespace resflow {

// Rounds to nearest, ties to even; NaN stays NaN.
inline uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bfloat16(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// Rounds to nearest, ties to even; magnitudes from 65520 on become infinity; NaN stays NaN.
inline uint16_t to_float16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;  // 65520: half a step above the largest number, 65504
  if (bits < 0x38800000) {
    // Below 2^-14 float16's steps are 2^-24: adding 0.5, at which a float's steps are as large, rounds.
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(bits));
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof(bits));
    return sign | static_cast<uint16_t>(bits - 0x3f000000);
  }
  bits += 0xfff + (bits >> 13 & 1);
  return sign | static_cast<uint16_t>((bits - 0x38000000) >> 13);
}

inline float from_float16(uint16_t value) {
  const uint32_t magnitude = value & 0x7fff;
  // The factor 2^112 moves float16's exponents, subnormal numbers included, to those of a float.
  const uint32_t bits = magnitude << 13;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  result *= 5.192296858534828e33f;
  uint32_t scaled;
  std::memcpy(&scaled, &result, sizeof(scaled));
  if (magnitude >= 0x7c00) scaled = 0x7f800000 | (magnitude & 0x3ff) << 13;
  scaled |= static_cast<uint32_t>(value & 0x8000) << 16;
  std::memcpy(&result, &scaled, sizeof(result));
  return result;
}

// Rounds to nearest, ties away from zero, as GPUs do; infinities and NaN are unchanged.
inline float to_tensorfloat32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7f800000) != 0x7f800000) bits += 0x1000;
  bits &= 0xffffe000 | (value != value ? 0x1fff : 0);
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

}  // namespace resflow
