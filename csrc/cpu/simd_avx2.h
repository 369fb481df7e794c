// 16 floats in two AVX2 registers; see simd_avx512.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace resflow::cpu::RESFLOW_TARGET {

// 6 rows x 2 registers: 12 accumulators, 2 weights and a broadcast in 15 of 16 registers.
constexpr int kBlockRows = 6;
constexpr int kBlockLanes = 1;

struct Lanes {
  __m256 v[2];
};
struct Mask {
  __m256 v[2];
};

#define RESFLOW_EACH_HALF(expression)                   \
  Lanes result;                                         \
  for (int h = 0; h < 2; ++h) result.v[h] = expression; \
  return result

inline Lanes broadcast(float value) { RESFLOW_EACH_HALF(_mm256_set1_ps(value)); }
inline Lanes load(const float* from) { RESFLOW_EACH_HALF(_mm256_loadu_ps(from + 8 * h)); }
inline void store(float* to, Lanes a) {
  for (int h = 0; h < 2; ++h) _mm256_storeu_ps(to + 8 * h, a.v[h]);
}
inline Lanes operator+(Lanes a, Lanes b) { RESFLOW_EACH_HALF(_mm256_add_ps(a.v[h], b.v[h])); }
inline Lanes operator-(Lanes a, Lanes b) { RESFLOW_EACH_HALF(_mm256_sub_ps(a.v[h], b.v[h])); }
inline Lanes operator*(Lanes a, Lanes b) { RESFLOW_EACH_HALF(_mm256_mul_ps(a.v[h], b.v[h])); }
inline Lanes operator/(Lanes a, Lanes b) { RESFLOW_EACH_HALF(_mm256_div_ps(a.v[h], b.v[h])); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { RESFLOW_EACH_HALF(_mm256_fmadd_ps(a.v[h], b.v[h], c.v[h])); }
inline Mask less(Lanes a, Lanes b) {
  Mask result;
  for (int h = 0; h < 2; ++h) result.v[h] = _mm256_cmp_ps(a.v[h], b.v[h], _CMP_LT_OQ);
  return result;
}
inline Lanes select(Mask where, Lanes then, Lanes otherwise) {
  RESFLOW_EACH_HALF(_mm256_blendv_ps(otherwise.v[h], then.v[h], where.v[h]));
}
inline Lanes absolute(Lanes a) { RESFLOW_EACH_HALF(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v[h])); }
inline Lanes copy_sign(Lanes a, Lanes sign) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  RESFLOW_EACH_HALF(_mm256_or_ps(_mm256_andnot_ps(bit, a.v[h]), _mm256_and_ps(bit, sign.v[h])));
}
inline Lanes round_to_int(Lanes a) {
  RESFLOW_EACH_HALF(_mm256_round_ps(a.v[h], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline Lanes exp2_int(Lanes n) {
  RESFLOW_EACH_HALF(
      _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v[h]), _mm256_set1_epi32(127)), 23)));
}

#undef RESFLOW_EACH_HALF

}  // namespace resflow::cpu::RESFLOW_TARGET
