// 16 floats in one AVX-512 register. The simd_*.h files define the same names; nothing else in the kernels
// depends on the instruction set.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace resflow::cpu::RESFLOW_TARGET {

// 6 rows x 4 registers: 24 accumulators, 4 weights and a broadcast value take 29 of 32 registers.
constexpr int kBlockRows = 6;
constexpr int kBlockLanes = 4;
// Dot products of 16 rows keep one accumulator each in registers.
constexpr int kSumsAtOnce = 16;

struct Lanes {
  __m512 v;
};
struct Ints {
  __m512i v;
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
// False in lanes where either is NaN.
inline Mask less(Lanes a, Lanes b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Lanes select(Mask where, Lanes then, Lanes otherwise) {
  return {_mm512_mask_blend_ps(where.v, otherwise.v, then.v)};
}
// Maximum and minimum; b in lanes where either is NaN.
inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
// Keeps `a` in a register: the compiler must not reload it for each use.
inline Lanes in_register(Lanes a) {
  asm("" : "+v"(a.v));
  return a;
}
inline Lanes absolute(Lanes a) { return {_mm512_abs_ps(a.v)}; }
// The magnitude of `a` with the sign of `sign`.
inline Lanes copy_sign(Lanes a, Lanes sign) {
  const __m512i bit = _mm512_set1_epi32(INT32_MIN);
  return {
      _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign.v), _mm512_castps_si512(a.v), 0xCA))};
}
inline Lanes round_to_int(Lanes a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integers n from -126 to 127.
inline Lanes exp2_int(Lanes n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}

inline Ints broadcast_int(int32_t value) { return {_mm512_set1_epi32(value)}; }
inline Ints as_ints(Lanes a) { return {_mm512_castps_si512(a.v)}; }
inline Lanes as_lanes(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
inline Lanes to_float(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Ints to_int(Lanes a) { return {_mm512_cvtps_epi32(a.v)}; }
inline Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints operator&(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Ints operator^(Ints a, Ints b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int kBits>
inline Ints shift_left(Ints a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
inline Ints shift_right(Ints a) {
  return {_mm512_srli_epi32(a.v, kBits)};
}
// Per word: low half * low half + high half * high half, as signed 16-bit integers.
inline Ints multiply_add_int16(Ints a, Ints b) { return {_mm512_madd_epi16(a.v, b.v)}; }
inline Ints max(Ints a, Ints b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline int32_t horizontal_sum(Ints a) { return _mm512_reduce_add_epi32(a.v); }
inline int32_t horizontal_max(Ints a) { return _mm512_reduce_max_epi32(a.v); }
inline float horizontal_sum(Lanes a) { return _mm512_reduce_add_ps(a.v); }

// Loads columns of 16 rows [16][columns], by permutes of the rows' registers: a gather takes several times as long.
class ColumnLoader {
 public:
  explicit ColumnLoader(int64_t columns) : columns_(static_cast<int32_t>(columns)) {
    const __m512i iota = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    first_ = _mm512_mullo_epi32(iota, _mm512_set1_epi32(columns_));
  }
  Lanes load(const float* rows, int64_t column) const {
    const __m512i index = _mm512_add_epi32(first_, _mm512_set1_epi32(static_cast<int32_t>(column)));
    const __m512i source = _mm512_srli_epi32(index, 4);
    __m512 result = _mm512_setzero_ps();
    for (int32_t r = 0; r < columns_; ++r) {
      const __mmask16 here = _mm512_cmpeq_epi32_mask(source, _mm512_set1_epi32(r));
      result = _mm512_mask_permutexvar_ps(result, here, index, _mm512_loadu_ps(rows + 16 * r));
    }
    return {result};
  }

 private:
  int32_t columns_;
  __m512i first_;
};

// Lane i is the horizontal sum of rows[i]. 4 x 4 transposes within register quarters, then one of the quarters, take 30
// shuffles and 15 additions; 16 separate reductions would take 4 of each.
inline Lanes horizontal_sums(const Lanes (&rows)[16]) {
  __m512 pair[8], quad[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 a = rows[2 * i].v, b = rows[2 * i + 1].v;
    pair[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pair[2 * i]), b = _mm512_castps_pd(pair[2 * i + 1]);
    quad[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto add_halves = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
  };
  const __m512 low = add_halves(quad[0], quad[1]), high = add_halves(quad[2], quad[3]);
  return {_mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xDD))};
}
inline Ints horizontal_sums(const Ints (&rows)[16]) {
  __m512i pair[8], quad[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512i a = rows[2 * i].v, b = rows[2 * i + 1].v;
    pair[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i a = pair[2 * i], b = pair[2 * i + 1];
    quad[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  }
  const auto add_halves = [](__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xEE));
  };
  const __m512i low = add_halves(quad[0], quad[1]), high = add_halves(quad[2], quad[3]);
  return {_mm512_add_epi32(_mm512_shuffle_i32x4(low, high, 0x88), _mm512_shuffle_i32x4(low, high, 0xDD))};
}

inline Lanes load_bfloat16(const uint16_t* from) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}
inline Lanes load_int8(const int8_t* from) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))))};
}
// Store the upper halves of 16 words, and the lowest bytes of 16 words.
inline void store_upper_halves(uint16_t* to, Ints a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(a.v, 16)));
}
inline void store_low_bytes(int8_t* to, Ints a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(a.v));
}

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define RESFLOW_DOT_PRODUCTS
// Per word: sum + 2 products of bfloat16. Assembly, here and below: with the intrinsics GCC 12 copies and spills sums.
inline Lanes dot_bfloat16(Lanes x, Lanes weights, Lanes sum) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum.v) : "v"(weights.v), "v"(x.v));
  return sum;
}
// Per word: sum + 4 products of bytes, weights unsigned and x signed.
inline Ints dot_int8(Ints x, Ints weights, Ints sum) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(weights.v), "v"(x.v));
  return sum;
}
inline void store_bfloat16(uint16_t* to, Lanes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(a.v));
}
#endif

}  // namespace resflow::cpu::RESFLOW_TARGET
