// The contract's formulas on one float, and the functions that they are made of; cpu/simd/math-inl.h has those for
// lanes. NaN propagates through all of them: bounds are comparisons that are false for NaN (fminf and fmaxf would drop
// it). Multiply-adds are written out, so that a value does not depend on what the compiler contracts.
#pragma once

#include <cmath>
#include <limits>

#include "core/plan.h"
#include "cuda/device/target.h"

namespace resflow::cuda {

constexpr float kLargestFloat = 3.4028235e38f;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

RESFLOW_DEVICE float at_least(float value, float bound) { return value < bound ? bound : value; }
RESFLOW_DEVICE float at_most(float value, float bound) { return value > bound ? bound : value; }

RESFLOW_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The sum of a value of each lane of a warp: every lane returns it.
RESFLOW_DEVICE float warp_sum(float sum) {
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  return sum;
}

// log(1 + x) for x from 0 to 1, in few registers: with log1pf, and with logf, Hopper's kernels spill.
RESFLOW_DEVICE float log1p_unit(float x) { return 0.693147181f * log2f(1.0f + x); }

// log(sigmoid(x)) = min(x, 0) - log(1 + e^-|x|)
RESFLOW_DEVICE float log_sigmoid(float x) { return at_most(x, 0.0f) - log1pf(expf(-fabsf(x))); }

// -log(e^-a + e^-b + e^-(a+b)): the logit of sigmoid(a) * sigmoid(b).
RESFLOW_DEVICE float logit_of_product(float a, float b) {
  const float both = a + b;
  const float lowest = at_most(at_most(a, b), both);
  // An infinite `lowest` is the answer itself (below, inf - inf would be NaN); adding 0 or NaN keeps b's NaN.
  if (fabsf(lowest) > kLargestFloat) return lowest + at_most(fabsf(b), 0.0f);
  return lowest - logf(expf(lowest - a) + expf(lowest - b) + expf(lowest - both));
}

// erf with an absolute error of 1e-7: for sums with 1. It takes fewer registers than erff.
RESFLOW_DEVICE float erf_beside_one(float x) {
  // 1 - 2^(-|x| Q(|x|)) on |x| <= 4, where erf rounds to 1; a minimax fit, error 2e-8.
  constexpr float kQ[] = {1.627908593e+00f, 9.184163933e-01f, 1.484816150e-01f,  -2.825368095e-02f,
                          7.746295569e-04f, 1.489441665e-03f, -4.455076487e-04f, 4.535859779e-05f};
  const float magnitude = at_most(fabsf(x), 4.0f);
  float q = kQ[7];
  for (int i = 6; i >= 0; --i) q = fmaf(q, magnitude, kQ[i]);
  return copysignf(1.0f - exp2f(-magnitude * q), x);
}

// The operations, on one float, in which the contract's formulas are written.
using Value = float;

RESFLOW_DEVICE float constant(float value) { return value; }
RESFLOW_DEVICE float negative(float x) { return -x; }
RESFLOW_DEVICE float absolute(float x) { return fabsf(x); }
RESFLOW_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
RESFLOW_DEVICE bool less(float a, float b) { return a < b; }
RESFLOW_DEVICE float select(bool where, float then, float otherwise) { return where ? then : otherwise; }
RESFLOW_DEVICE float exp(float x) { return expf(x); }
RESFLOW_DEVICE float tanh(float x) { return tanhf(x); }

// (1 + tanh(u)) / 2 is sigmoid(2 u).
template <class Argument>
RESFLOW_DEVICE float gated_by_tanh(float v, Argument argument) {
  return v / (1.0f + expf(-argument(2.0f)));
}

#define RESFLOW_FORMULA RESFLOW_DEVICE
#include "core/activations-inl.h"
#include "core/fusions-inl.h"
#undef RESFLOW_FORMULA

RESFLOW_DEVICE float activate(Activation activation, float value, float slope) {
  with_activation(activation, [&](auto own) { value = activate<own.value>(value, slope); });
  return value;
}

}  // namespace resflow::cuda
