// 16 floats in one AVX-512 register. The three simd_*.h files define the same names; nothing else in the
// kernels depends on the instruction set.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace resflow::cpu::RESFLOW_TARGET {

// 6 rows x 4 registers: 24 accumulators, 4 weights and a broadcast in 29 of 32 registers.
constexpr int kBlockRows = 6;
constexpr int kBlockLanes = 4;

struct Lanes {
  __m512 v;
};
struct Mask {
  __mmask16 v;
};

inline Lanes broadcast(float value) { return {_mm512_set1_ps(value)}; }
inline Lanes load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, Lanes a) { _mm512_storeu_ps(to, a.v); }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
// a * b + c
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// False where either is NaN.
inline Mask less(Lanes a, Lanes b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Lanes select(Mask where, Lanes then, Lanes otherwise) {
  return {_mm512_mask_blend_ps(where.v, otherwise.v, then.v)};
}
inline Lanes absolute(Lanes a) { return {_mm512_abs_ps(a.v)}; }
// The sign of `sign` on the magnitude of `a`.
inline Lanes copy_sign(Lanes a, Lanes sign) {
  const __m512i bit = _mm512_set1_epi32(INT32_MIN);
  return {
      _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign.v), _mm512_castps_si512(a.v), 0xCA))};
}
inline Lanes round_to_int(Lanes a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integers n of -126 to 127.
inline Lanes exp2_int(Lanes n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}

}  // namespace resflow::cpu::RESFLOW_TARGET
