// exp, sigmoid, tanh, erf and logarithms on 16 lanes, accurate to about 2 units in the last place.
//
// The polynomials are minimax fits made for this file (Lawson iteration in 40-digit arithmetic); each comment gives
// the range and largest error. NaN propagates through all functions: bounds are applied by comparisons that are false
// for NaN, and exp multiplies its meaningless 2^n of NaN by NaN.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

template <int kCount>
inline Lanes polynomial(const float (&coefficients)[kCount], Lanes x) {
  Lanes value = broadcast(coefficients[kCount - 1]);
  for (int i = kCount - 2; i >= 0; --i) value = multiply_add(value, x, broadcast(coefficients[i]));
  return value;
}

inline Lanes at_least(Lanes a, Lanes bound) { return max(bound, a); }
inline Lanes at_most(Lanes a, Lanes bound) { return min(bound, a); }

inline Lanes exp(Lanes x) {
  // e^r = 1 + r + r^2 P(r) on |r| <= ln(2)/2, error 3e-9.
  static constexpr float kP[] = {5.000000095e-01f, 1.666651868e-01f, 4.166620534e-02f, 8.368908422e-03f,
                                 1.395052184e-03f};
  // e^-104 rounds to 0 and e^89 to infinity; in between, 2^n is applied in two factors so that neither overflows.
  x = at_most(at_least(x, broadcast(-104.0f)), broadcast(89.0f));
  const Lanes n = round_to_int(x * broadcast(1.44269504f));
  Lanes r = multiply_add(n, broadcast(-0.693145752f), x);  // ln 2 in two parts, the first exact in n's products
  r = multiply_add(n, broadcast(-1.42860677e-6f), r);
  const Lanes value = multiply_add(r * r, polynomial(kP, r), r) + broadcast(1.0f);
  const Lanes half = round_to_int(n * broadcast(0.5f));
  return value * exp2_int(half) * exp2_int(n - half);
}

inline Lanes sigmoid(Lanes x) { return broadcast(1.0f) / (broadcast(1.0f) + exp(broadcast(0.0f) - x)); }

inline Lanes tanh(Lanes x) {
  // x + x^3 P(x^2) on |x| < 0.625, error 5e-9; beyond that, 1 - 2 / (e^2|x| + 1).
  static constexpr float kP[] = {-3.333327831e-01f, 1.333132892e-01f, -5.372922705e-02f, 2.060199917e-02f,
                                 -5.660780474e-03f};
  const Lanes magnitude = absolute(x);
  const Lanes square = x * x;
  const Lanes near = multiply_add(x * square, polynomial(kP, square), x);
  const Lanes far = broadcast(1.0f) - broadcast(2.0f) / (exp(magnitude + magnitude) + broadcast(1.0f));
  return select(less(magnitude, broadcast(0.625f)), near, copy_sign(far, x));
}

inline Lanes erf(Lanes x) {
  // x P(x^2) on |x| < 1, error 1e-9; beyond that, 1 - exp(-|x| Q(|x|)) up to 4, where erf rounds to 1, error 4e-10.
  static constexpr float kP[] = {1.128379166e+00f, -3.761262714e-01f, 1.128360018e-01f, -2.685444459e-02f,
                                 5.189535339e-03f, -8.020841275e-04f, 7.889119516e-05f};
  static constexpr float kQ[] = {1.128697159e+00f, 6.349582970e-01f,  1.065491038e-01f, -2.402550919e-02f,
                                 3.764660313e-03f, -3.523321990e-04f, 1.413384266e-05f};
  const Lanes near = x * polynomial(kP, x * x);
  const Lanes magnitude = at_most(absolute(x), broadcast(4.0f));
  const Lanes far = broadcast(1.0f) - exp(broadcast(0.0f) - magnitude * polynomial(kQ, magnitude));
  return select(less(absolute(x), broadcast(1.0f)), near, copy_sign(far, x));
}

// log(1 + x) for x from 0 to 1.
inline Lanes log1p_unit(Lanes x) {
  // log((1 + s) / (1 - s)) = 2 s + s^3 P(s^2) with s = x / (2 + x) <= 1/3, error 2e-10.
  static constexpr float kP[] = {6.666667562e-01f, 3.999887774e-01f, 2.861688490e-01f, 2.142765687e-01f,
                                 2.430093811e-01f};
  const Lanes s = x / (broadcast(2.0f) + x);
  const Lanes square = s * s;
  return multiply_add(s * square, polynomial(kP, square), s + s);
}

// log(sigmoid(x)) = min(x, 0) - log(1 + e^-|x|)
inline Lanes log_sigmoid(Lanes x) {
  return at_most(x, broadcast(0.0f)) - log1p_unit(exp(broadcast(0.0f) - absolute(x)));
}

// -log(e^-a + e^-b + e^-(a+b)): the logit of sigmoid(a) * sigmoid(b).
inline Lanes logit_of_product(Lanes a, Lanes b) {
  const Lanes zero = broadcast(0.0f);
  const Lanes both = a + b;
  const Lanes lowest = at_most(at_most(a, b), both);
  const Lanes sum = exp(lowest - a) + exp(lowest - b) + exp(lowest - both);  // 1 to 3
  const Lanes halved = sum * broadcast(0.5f);
  const Mask small = less(sum, broadcast(2.0f));
  const Lanes log_sum =
      log1p_unit(select(small, sum, halved) - broadcast(1.0f)) + select(small, zero, broadcast(0.693147181f));
  // An infinite `lowest` is the answer itself (below, inf - inf would be NaN); adding 0 or NaN keeps b's NaN.
  const Lanes nan_of_b = at_most(absolute(b), zero);
  const Mask finite = less(absolute(lowest), broadcast(__builtin_huge_valf()));
  const Mask infinite = less(broadcast(3.4028235e38f), absolute(lowest));
  return select(finite, lowest - log_sum, select(infinite, lowest + nan_of_b, lowest));
}

}  // namespace resflow::cpu::RESFLOW_TARGET
