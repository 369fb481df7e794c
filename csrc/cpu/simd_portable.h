// 16 floats in four GCC/Clang vectors of 4: SSE2 on any x86-64, NEON on Arm; see simd_avx512.h.
#pragma once

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <cstdint>

namespace resflow::cpu::RESFLOW_TARGET {

// 2 rows x 4 registers of 4 floats fit SSE2's 16 registers with their weights; NEON has 32.
#if defined(__aarch64__)
constexpr int kBlockRows = 6;
#else
constexpr int kBlockRows = 2;
#endif
constexpr int kBlockLanes = 1;

typedef float Quad __attribute__((vector_size(16)));
typedef int32_t IntQuad __attribute__((vector_size(16)));

struct Lanes {
  Quad v[4];
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
#if defined(__aarch64__)
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { RESFLOW_EACH_QUAD((Quad)vfmaq_f32(c.v[q], a.v[q], b.v[q])); }
#else
// Two roundings: SSE2 has no fused instruction, and the build forbids the compiler to choose case by case.
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { RESFLOW_EACH_QUAD(a.v[q] * b.v[q] + c.v[q]); }
#endif
inline Mask less(Lanes a, Lanes b) {
  Mask result;
  for (int q = 0; q < 4; ++q) result.v[q] = a.v[q] < b.v[q];
  return result;
}
inline Lanes select(Mask where, Lanes then, Lanes otherwise) {
  RESFLOW_EACH_QUAD((Quad)((where.v[q] & (IntQuad)then.v[q]) | (~where.v[q] & (IntQuad)otherwise.v[q])));
}
inline Lanes absolute(Lanes a) { RESFLOW_EACH_QUAD((Quad)((IntQuad)a.v[q] & INT32_MAX)); }
inline Lanes copy_sign(Lanes a, Lanes sign) {
  RESFLOW_EACH_QUAD((Quad)(((IntQuad)a.v[q] & INT32_MAX) | ((IntQuad)sign.v[q] & INT32_MIN)));
}
// Adding and taking away 1.5 * 2^23 rounds to the nearest integer for |a| < 2^22.
inline Lanes round_to_int(Lanes a) {
  const Lanes magic = broadcast(12582912.0f);
  return (a + magic) - magic;
}
inline Lanes exp2_int(Lanes n) { RESFLOW_EACH_QUAD((Quad)((__builtin_convertvector(n.v[q], IntQuad) + 127) << 23)); }

#undef RESFLOW_EACH_QUAD

}  // namespace resflow::cpu::RESFLOW_TARGET
