// 16 floats in four GCC/Clang vectors of 4 floats, for any machine; see simd_avx512.h.
#pragma once

#include <cstdint>

namespace resflow::cpu::RESFLOW_TARGET {

// SSE2's 16 registers hold 2 rows x 4 registers of 4 floats and their weights.
constexpr int kBlockRows = 2;
constexpr int kBlockLanes = 1;
// Accumulators of dot products, 4 registers each.
constexpr int kSumsAtOnce = 2;

typedef float Quad __attribute__((vector_size(16)));
typedef int32_t IntQuad __attribute__((vector_size(16)));

struct Lanes {
  Quad v[4];
};
struct Ints {
  IntQuad v[4];
};
struct Mask {
  IntQuad v[4];
};

#define RESFLOW_EACH_QUAD(expression)                   \
  Lanes result;                                         \
  for (int q = 0; q < 4; ++q) result.v[q] = expression; \
  return result

inline Lanes broadcast(float value) { RESFLOW_EACH_QUAD((Quad{value, value, value, value})); }
inline Lanes load(const float* from) {
  Lanes result;
  __builtin_memcpy(&result, from, sizeof(result));
  return result;
}
inline void store(float* to, Lanes a) { __builtin_memcpy(to, &a, sizeof(a)); }
inline Lanes operator+(Lanes a, Lanes b) { RESFLOW_EACH_QUAD(a.v[q] + b.v[q]); }
inline Lanes operator-(Lanes a, Lanes b) { RESFLOW_EACH_QUAD(a.v[q] - b.v[q]); }
inline Lanes operator*(Lanes a, Lanes b) { RESFLOW_EACH_QUAD(a.v[q] * b.v[q]); }
inline Lanes operator/(Lanes a, Lanes b) { RESFLOW_EACH_QUAD(a.v[q] / b.v[q]); }
// Rounded twice: SSE2 has no fused instruction, and the build forbids the compiler to contract case by case.
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { RESFLOW_EACH_QUAD(a.v[q] * b.v[q] + c.v[q]); }
inline Mask less(Lanes a, Lanes b) {
  Mask result;
  for (int q = 0; q < 4; ++q) result.v[q] = a.v[q] < b.v[q];
  return result;
}
inline Lanes select(Mask where, Lanes then, Lanes otherwise) {
  RESFLOW_EACH_QUAD((Quad)((where.v[q] & (IntQuad)then.v[q]) | (~where.v[q] & (IntQuad)otherwise.v[q])));
}
inline Lanes max(Lanes a, Lanes b) { return select(less(b, a), a, b); }
inline Lanes min(Lanes a, Lanes b) { return select(less(a, b), a, b); }
inline Lanes in_register(Lanes a) { return a; }
inline Lanes absolute(Lanes a) { RESFLOW_EACH_QUAD((Quad)((IntQuad)a.v[q] & INT32_MAX)); }
inline Lanes copy_sign(Lanes a, Lanes sign) {
  RESFLOW_EACH_QUAD((Quad)(((IntQuad)a.v[q] & INT32_MAX) | ((IntQuad)sign.v[q] & INT32_MIN)));
}
// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer for |a| < 2^22.
inline Lanes round_to_int(Lanes a) {
  const Lanes magic = broadcast(12582912.0f);
  return (a + magic) - magic;
}
inline Lanes exp2_int(Lanes n) { RESFLOW_EACH_QUAD((Quad)((__builtin_convertvector(n.v[q], IntQuad) + 127) << 23)); }

#define RESFLOW_EACH_INT_QUAD(expression)               \
  Ints result;                                          \
  for (int q = 0; q < 4; ++q) result.v[q] = expression; \
  return result

inline Ints broadcast_int(int32_t value) { RESFLOW_EACH_INT_QUAD((IntQuad{value, value, value, value})); }
inline Ints as_ints(Lanes a) { RESFLOW_EACH_INT_QUAD((IntQuad)a.v[q]); }
inline Lanes as_lanes(Ints a) { RESFLOW_EACH_QUAD((Quad)a.v[q]); }
inline Lanes to_float(Ints a) { RESFLOW_EACH_QUAD(__builtin_convertvector(a.v[q], Quad)); }
// NaN and values beyond int32 become 0 (their conversion would be undefined).
inline Ints to_int(Lanes a) {
  const Lanes held = select(less(absolute(a), broadcast(2e9f)), round_to_int(a), broadcast(0.0f));
  RESFLOW_EACH_INT_QUAD(__builtin_convertvector(held.v[q], IntQuad));
}
inline Ints operator+(Ints a, Ints b) { RESFLOW_EACH_INT_QUAD(a.v[q] + b.v[q]); }
inline Ints operator&(Ints a, Ints b) { RESFLOW_EACH_INT_QUAD(a.v[q] & b.v[q]); }
inline Ints operator^(Ints a, Ints b) { RESFLOW_EACH_INT_QUAD(a.v[q] ^ b.v[q]); }
template <int kBits>
inline Ints shift_left(Ints a) {
  RESFLOW_EACH_INT_QUAD(a.v[q] << kBits);
}
template <int kBits>
inline Ints shift_right(Ints a) {
  typedef uint32_t Unsigned __attribute__((vector_size(16)));
  RESFLOW_EACH_INT_QUAD((IntQuad)((Unsigned)a.v[q] >> kBits));
}
inline Ints multiply_add_int16(Ints a, Ints b) {
  RESFLOW_EACH_INT_QUAD(((a.v[q] << 16) >> 16) * ((b.v[q] << 16) >> 16) + (a.v[q] >> 16) * (b.v[q] >> 16));
}
inline Ints max(Ints a, Ints b) { RESFLOW_EACH_INT_QUAD((a.v[q] > b.v[q] ? a.v[q] : b.v[q])); }
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
  Lanes result;
  for (int i = 0; i < 16; ++i) {
    const Quad sum = (rows[i].v[0] + rows[i].v[2]) + (rows[i].v[1] + rows[i].v[3]);
    result.v[i / 4][i % 4] = (sum[0] + sum[2]) + (sum[1] + sum[3]);
  }
  return result;
}
inline Ints horizontal_sums(const Ints (&rows)[16]) {
  Ints result;
  for (int i = 0; i < 16; ++i) {
    const IntQuad sum = (rows[i].v[0] + rows[i].v[2]) + (rows[i].v[1] + rows[i].v[3]);
    result.v[i / 4][i % 4] = (sum[0] + sum[2]) + (sum[1] + sum[3]);
  }
  return result;
}

inline Lanes load_bfloat16(const uint16_t* from) {
  Ints wide;
  int32_t parts[16];
  for (int i = 0; i < 16; ++i) parts[i] = static_cast<int32_t>(static_cast<uint32_t>(from[i]) << 16);
  __builtin_memcpy(&wide, parts, sizeof(wide));
  return as_lanes(wide);
}
inline Lanes load_int8(const int8_t* from) {
  float parts[16];
  for (int i = 0; i < 16; ++i) parts[i] = from[i];
  return load(parts);
}
inline void store_upper_halves(uint16_t* to, Ints a) {
  uint32_t parts[16];
  __builtin_memcpy(parts, &a, sizeof(parts));
  for (int i = 0; i < 16; ++i) to[i] = static_cast<uint16_t>(parts[i] >> 16);
}
inline void store_low_bytes(int8_t* to, Ints a) {
  int32_t parts[16];
  __builtin_memcpy(parts, &a, sizeof(parts));
  for (int i = 0; i < 16; ++i) to[i] = static_cast<int8_t>(parts[i]);
}

#undef RESFLOW_EACH_INT_QUAD
#undef RESFLOW_EACH_QUAD

}  // namespace resflow::cpu::RESFLOW_TARGET

#include "cpu/simd/column_loader-inl.h"
