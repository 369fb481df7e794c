// 16 floats in four NEON registers, on any AArch64; see simd_avx512.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace resflow::cpu::RESFLOW_TARGET {

// 6 rows x 4 registers: 24 accumulators, 4 weights and a value, by which fmla multiplies out of a lane, take 29 of 32
// registers; 7 rows would take 33. In matrix products (towers/pairs-inl.h) 3 pairs of rows x 8 registers of 2 x 2 sums
// are 24 accumulators too, with 3 registers of rows and one quarter's weights at a time: 2 loaded, 2 interleaved.
constexpr int kBlockRows = 6;
constexpr int kBlockLanes = 1;
// 4 accumulators of 4 registers each, 4 to 8 registers of the user's and 4 of a row's.
constexpr int kSumsAtOnce = 4;

struct Lanes {
  float32x4_t v[4];
};
struct Ints {
  int32x4_t v[4];
};
struct Mask {
  uint32x4_t v[4];
};

#define RESFLOW_EACH_QUAD(Result, expression)           \
  Result result;                                        \
  for (int q = 0; q < 4; ++q) result.v[q] = expression; \
  return result

inline Lanes broadcast(float value) { RESFLOW_EACH_QUAD(Lanes, vdupq_n_f32(value)); }
inline Lanes load(const float* from) { RESFLOW_EACH_QUAD(Lanes, vld1q_f32(from + 4 * q)); }
inline void store(float* to, Lanes a) {
  for (int q = 0; q < 4; ++q) vst1q_f32(to + 4 * q, a.v[q]);
}
inline Lanes operator+(Lanes a, Lanes b) { RESFLOW_EACH_QUAD(Lanes, vaddq_f32(a.v[q], b.v[q])); }
inline Lanes operator-(Lanes a, Lanes b) { RESFLOW_EACH_QUAD(Lanes, vsubq_f32(a.v[q], b.v[q])); }
inline Lanes operator*(Lanes a, Lanes b) { RESFLOW_EACH_QUAD(Lanes, vmulq_f32(a.v[q], b.v[q])); }
inline Lanes operator/(Lanes a, Lanes b) { RESFLOW_EACH_QUAD(Lanes, vdivq_f32(a.v[q], b.v[q])); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { RESFLOW_EACH_QUAD(Lanes, vfmaq_f32(c.v[q], a.v[q], b.v[q])); }
inline Mask less(Lanes a, Lanes b) { RESFLOW_EACH_QUAD(Mask, vcltq_f32(a.v[q], b.v[q])); }
inline Lanes select(Mask where, Lanes then, Lanes otherwise) {
  RESFLOW_EACH_QUAD(Lanes, vbslq_f32(where.v[q], then.v[q], otherwise.v[q]));
}
// NEON's own maximum and minimum are NaN where either is.
inline Lanes max(Lanes a, Lanes b) { return select(less(b, a), a, b); }
inline Lanes min(Lanes a, Lanes b) { return select(less(a, b), a, b); }
inline Lanes in_register(Lanes a) { return a; }
inline Lanes absolute(Lanes a) { RESFLOW_EACH_QUAD(Lanes, vabsq_f32(a.v[q])); }
inline Lanes copy_sign(Lanes a, Lanes sign) {
  RESFLOW_EACH_QUAD(Lanes, vbslq_f32(vdupq_n_u32(0x80000000), sign.v[q], a.v[q]));
}
inline Lanes round_to_int(Lanes a) { RESFLOW_EACH_QUAD(Lanes, vrndnq_f32(a.v[q])); }
inline Lanes exp2_int(Lanes n) {
  RESFLOW_EACH_QUAD(Lanes, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v[q]), vdupq_n_s32(127)), 23)));
}

inline Ints broadcast_int(int32_t value) { RESFLOW_EACH_QUAD(Ints, vdupq_n_s32(value)); }
inline Ints as_ints(Lanes a) { RESFLOW_EACH_QUAD(Ints, vreinterpretq_s32_f32(a.v[q])); }
inline Lanes as_lanes(Ints a) { RESFLOW_EACH_QUAD(Lanes, vreinterpretq_f32_s32(a.v[q])); }
inline Lanes to_float(Ints a) { RESFLOW_EACH_QUAD(Lanes, vcvtq_f32_s32(a.v[q])); }
inline Ints to_int(Lanes a) { RESFLOW_EACH_QUAD(Ints, vcvtnq_s32_f32(a.v[q])); }
inline Ints operator+(Ints a, Ints b) { RESFLOW_EACH_QUAD(Ints, vaddq_s32(a.v[q], b.v[q])); }
inline Ints operator&(Ints a, Ints b) { RESFLOW_EACH_QUAD(Ints, vandq_s32(a.v[q], b.v[q])); }
inline Ints operator^(Ints a, Ints b) { RESFLOW_EACH_QUAD(Ints, veorq_s32(a.v[q], b.v[q])); }
template <int kBits>
inline Ints shift_left(Ints a) {
  RESFLOW_EACH_QUAD(Ints, vshlq_n_s32(a.v[q], kBits));
}
template <int kBits>
inline Ints shift_right(Ints a) {
  RESFLOW_EACH_QUAD(Ints, vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a.v[q]), kBits)));
}
inline int32x4_t multiply_add_int16(int16x8_t a, int16x8_t b) {
  return vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
}
inline Ints multiply_add_int16(Ints a, Ints b) {
  RESFLOW_EACH_QUAD(Ints, multiply_add_int16(vreinterpretq_s16_s32(a.v[q]), vreinterpretq_s16_s32(b.v[q])));
}
inline Ints max(Ints a, Ints b) { RESFLOW_EACH_QUAD(Ints, vmaxq_s32(a.v[q], b.v[q])); }

// The sums, and the largest values, of the four registers' lanes.
inline float32x4_t joined(Lanes a) { return vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3])); }
inline int32x4_t joined(Ints a) { return vaddq_s32(vaddq_s32(a.v[0], a.v[2]), vaddq_s32(a.v[1], a.v[3])); }
inline int32_t horizontal_sum(Ints a) { return vaddvq_s32(joined(a)); }
inline int32_t horizontal_max(Ints a) {
  return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[2]), vmaxq_s32(a.v[1], a.v[3])));
}
inline float horizontal_sum(Lanes a) {
  const float32x4_t sum = joined(a);
  return vpadds_f32(vadd_f32(vget_low_f32(sum), vget_high_f32(sum)));
}
// Lane i is the horizontal sum of rows[i].
inline Lanes horizontal_sums(const Lanes (&rows)[16]) {
  const auto pair = [&](int i) { return vpaddq_f32(joined(rows[i]), joined(rows[i + 1])); };
  RESFLOW_EACH_QUAD(Lanes, vpaddq_f32(pair(4 * q), pair(4 * q + 2)));
}
inline Ints horizontal_sums(const Ints (&rows)[16]) {
  const auto pair = [&](int i) { return vpaddq_s32(joined(rows[i]), joined(rows[i + 1])); };
  RESFLOW_EACH_QUAD(Ints, vpaddq_s32(pair(4 * q), pair(4 * q + 2)));
}

inline Lanes load_bfloat16(const uint16_t* from) {
  RESFLOW_EACH_QUAD(Lanes, vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from + 4 * q), 16)));
}
inline Lanes load_int8(const int8_t* from) {
  const int8x16_t bytes = vld1q_s8(from);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
  return to_float(
      {vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)});
}
inline void store_upper_halves(uint16_t* to, Ints a) {
  for (int q = 0; q < 4; ++q) vst1_u16(to + 4 * q, vshrn_n_u32(vreinterpretq_u32_s32(a.v[q]), 16));
}
inline void store_low_bytes(int8_t* to, Ints a) {
  const int16x8_t low = vmovn_high_s32(vmovn_s32(a.v[0]), a.v[1]), high = vmovn_high_s32(vmovn_s32(a.v[2]), a.v[3]);
  vst1q_s8(to, vmovn_high_s16(vmovn_s16(low), high));
}

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(__ARM_FEATURE_MATMUL_INT8)
#define RESFLOW_DOT_PRODUCTS
// A register's words of weights times those of x; the sum's type tells their precision. A dot product adds 2 products
// of bfloat16, or 4 of bytes, weights unsigned and x signed, to each word of the sum (bfdot, usdot).
inline float32x4_t dot_product(float32x4_t weights, float32x4_t x, float32x4_t sum) {
  return vbfdotq_f32(sum, vreinterpretq_bf16_f32(weights), vreinterpretq_bf16_f32(x));
}
inline int32x4_t dot_product(float32x4_t weights, float32x4_t x, int32x4_t sum) {
  return vusdotq_s32(sum, vreinterpretq_u8_f32(weights), vreinterpretq_s8_f32(x));
}
inline Lanes dot_bfloat16(Lanes x, Lanes weights, Lanes sum) {
  RESFLOW_EACH_QUAD(Lanes, dot_product(weights.v[q], x.v[q], sum.v[q]));
}
inline Ints dot_int8(Ints x, Ints weights, Ints sum) {
  RESFLOW_EACH_QUAD(Ints, dot_product(as_lanes(weights).v[q], as_lanes(x).v[q], sum.v[q]));
}
inline void store_bfloat16(uint16_t* to, Lanes a) {
  for (int q = 0; q < 4; ++q) vst1_u16(to + 4 * q, vreinterpret_u16_bf16(vcvt_bf16_f32(a.v[q])));
}

#define RESFLOW_MATRIX_PRODUCTS
// Weights are 2 words of each of 2 columns, x 2 words of each of 2 rows, sums are [column][row] (bfmmla, usmmla).
inline float32x4_t matrix_product(float32x4_t weights, float32x4_t x, float32x4_t sum) {
  return vbfmmlaq_f32(sum, vreinterpretq_bf16_f32(weights), vreinterpretq_bf16_f32(x));
}
inline int32x4_t matrix_product(float32x4_t weights, float32x4_t x, int32x4_t sum) {
  return vusmmlaq_s32(sum, vreinterpretq_u8_f32(weights), vreinterpretq_s8_f32(x));
}
// Alternates the words of the lower halves of each register of a and b, and of the upper ones.
inline Lanes zip_low(Lanes a, Lanes b) { RESFLOW_EACH_QUAD(Lanes, vzip1q_f32(a.v[q], b.v[q])); }
inline Lanes zip_high(Lanes a, Lanes b) { RESFLOW_EACH_QUAD(Lanes, vzip2q_f32(a.v[q], b.v[q])); }
inline Ints zip_low(Ints a, Ints b) { RESFLOW_EACH_QUAD(Ints, vzip1q_s32(a.v[q], b.v[q])); }
inline Ints zip_high(Ints a, Ints b) { RESFLOW_EACH_QUAD(Ints, vzip2q_s32(a.v[q], b.v[q])); }
// What was alternated: a and b again from zip_low(a, b) and zip_high(a, b).
inline Lanes unzip_first(Lanes low, Lanes high) { RESFLOW_EACH_QUAD(Lanes, vuzp1q_f32(low.v[q], high.v[q])); }
inline Lanes unzip_second(Lanes low, Lanes high) { RESFLOW_EACH_QUAD(Lanes, vuzp2q_f32(low.v[q], high.v[q])); }
inline Ints unzip_first(Ints low, Ints high) { RESFLOW_EACH_QUAD(Ints, vuzp1q_s32(low.v[q], high.v[q])); }
inline Ints unzip_second(Ints low, Ints high) { RESFLOW_EACH_QUAD(Ints, vuzp2q_s32(low.v[q], high.v[q])); }
#endif

#undef RESFLOW_EACH_QUAD

}  // namespace resflow::cpu::RESFLOW_TARGET

#include "cpu/simd/column_loader-inl.h"
