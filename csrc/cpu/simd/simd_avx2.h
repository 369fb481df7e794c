// 16 floats in two AVX2 registers; see simd_avx512.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace resflow::cpu::RESFLOW_TARGET {

// 6 rows x 2 registers: 12 accumulators, 2 weights and a broadcast value take 15 of 16 registers.
constexpr int kBlockRows = 6;
constexpr int kBlockLanes = 1;
// 4 accumulators of 2 registers each, 2 to 4 registers of the user's and 2 of a row's.
constexpr int kSumsAtOnce = 4;

struct Lanes {
  __m256 v[2];
};
struct Ints {
  __m256i v[2];
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
inline Lanes max(Lanes a, Lanes b) { RESFLOW_EACH_HALF(_mm256_max_ps(a.v[h], b.v[h])); }
inline Lanes min(Lanes a, Lanes b) { RESFLOW_EACH_HALF(_mm256_min_ps(a.v[h], b.v[h])); }
inline Lanes in_register(Lanes a) { return a; }
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

#define RESFLOW_EACH_INT_HALF(expression)               \
  Ints result;                                          \
  for (int h = 0; h < 2; ++h) result.v[h] = expression; \
  return result

inline Ints broadcast_int(int32_t value) { RESFLOW_EACH_INT_HALF(_mm256_set1_epi32(value)); }
inline Ints as_ints(Lanes a) { RESFLOW_EACH_INT_HALF(_mm256_castps_si256(a.v[h])); }
inline Lanes as_lanes(Ints a) { RESFLOW_EACH_HALF(_mm256_castsi256_ps(a.v[h])); }
inline Lanes to_float(Ints a) { RESFLOW_EACH_HALF(_mm256_cvtepi32_ps(a.v[h])); }
inline Ints to_int(Lanes a) { RESFLOW_EACH_INT_HALF(_mm256_cvtps_epi32(a.v[h])); }
inline Ints operator+(Ints a, Ints b) { RESFLOW_EACH_INT_HALF(_mm256_add_epi32(a.v[h], b.v[h])); }
inline Ints operator&(Ints a, Ints b) { RESFLOW_EACH_INT_HALF(_mm256_and_si256(a.v[h], b.v[h])); }
inline Ints operator^(Ints a, Ints b) { RESFLOW_EACH_INT_HALF(_mm256_xor_si256(a.v[h], b.v[h])); }
template <int kBits>
inline Ints shift_left(Ints a) {
  RESFLOW_EACH_INT_HALF(_mm256_slli_epi32(a.v[h], kBits));
}
template <int kBits>
inline Ints shift_right(Ints a) {
  RESFLOW_EACH_INT_HALF(_mm256_srli_epi32(a.v[h], kBits));
}
inline Ints multiply_add_int16(Ints a, Ints b) { RESFLOW_EACH_INT_HALF(_mm256_madd_epi16(a.v[h], b.v[h])); }
inline Ints max(Ints a, Ints b) { RESFLOW_EACH_INT_HALF(_mm256_max_epi32(a.v[h], b.v[h])); }
inline int32_t horizontal_sum(Ints a) {
  int32_t parts[16], sum = 0;
  __builtin_memcpy(parts, &a, sizeof(parts));
  for (const int32_t part : parts) sum += part;
  return sum;
}
inline int32_t horizontal_max(Ints a) {
  int32_t parts[16], most = INT32_MIN;
  __builtin_memcpy(parts, &a, sizeof(parts));
  for (const int32_t part : parts) most = part > most ? part : most;
  return most;
}
inline float horizontal_sum(Lanes a) {
  float parts[16];
  store(parts, a);
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) parts[i] += parts[i + half];
  }
  return parts[0];
}

// Lane i is the horizontal sum of rows[i].
inline Lanes horizontal_sums(const Lanes (&rows)[16]) {
  const auto quad = [&](int first) {
    __m256 sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = _mm256_add_ps(rows[first + i].v[0], rows[first + i].v[1]);
    return _mm256_hadd_ps(_mm256_hadd_ps(sum[0], sum[1]), _mm256_hadd_ps(sum[2], sum[3]));
  };
  const __m256 quads[2][2] = {{quad(0), quad(4)}, {quad(8), quad(12)}};
  RESFLOW_EACH_HALF(_mm256_add_ps(_mm256_permute2f128_ps(quads[h][0], quads[h][1], 0x20),
                                  _mm256_permute2f128_ps(quads[h][0], quads[h][1], 0x31)));
}
inline Ints horizontal_sums(const Ints (&rows)[16]) {
  const auto quad = [&](int first) {
    __m256i sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = _mm256_add_epi32(rows[first + i].v[0], rows[first + i].v[1]);
    return _mm256_hadd_epi32(_mm256_hadd_epi32(sum[0], sum[1]), _mm256_hadd_epi32(sum[2], sum[3]));
  };
  const __m256i quads[2][2] = {{quad(0), quad(4)}, {quad(8), quad(12)}};
  RESFLOW_EACH_INT_HALF(_mm256_add_epi32(_mm256_permute2x128_si256(quads[h][0], quads[h][1], 0x20),
                                         _mm256_permute2x128_si256(quads[h][0], quads[h][1], 0x31)));
}

inline Lanes load_bfloat16(const uint16_t* from) {
  RESFLOW_EACH_HALF(_mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8 * h))), 16)));
}
inline Lanes load_int8(const int8_t* from) {
  RESFLOW_EACH_HALF(
      _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * h)))));
}
inline void store_upper_halves(uint16_t* to, Ints a) {
  const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(a.v[0], 16), _mm256_srli_epi32(a.v[1], 16));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xD8));
}
inline void store_low_bytes(int8_t* to, Ints a) {
  int32_t parts[16];
  __builtin_memcpy(parts, &a, sizeof(parts));
  for (int i = 0; i < 16; ++i) to[i] = static_cast<int8_t>(parts[i]);
}

#undef RESFLOW_EACH_INT_HALF
#undef RESFLOW_EACH_HALF

}  // namespace resflow::cpu::RESFLOW_TARGET

#include "cpu/simd/column_loader-inl.h"
