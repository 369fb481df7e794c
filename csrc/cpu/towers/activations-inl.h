// The contract's activations and their derivatives on 16 lanes. Adding one: its two formulas here, its name in
// contract/enums.def. Comparisons are written so that NaN stays NaN.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

template <Activation kActivation>
inline Lanes activate(Lanes v, [[maybe_unused]] Lanes slope) {
  const Lanes zero = broadcast(0.0f);
  if constexpr (kActivation == Activation::identity) {
    return v;
  } else if constexpr (kActivation == Activation::relu) {
    return at_least(v, zero);
  } else if constexpr (kActivation == Activation::prelu) {
    return multiply_add(at_most(v, zero), slope, at_least(v, zero));
  } else if constexpr (kActivation == Activation::silu) {
    return v / (broadcast(1.0f) + exp(zero - v));
  } else if constexpr (kActivation == Activation::gelu) {
    return broadcast(0.5f) * v * (broadcast(1.0f) + erf(v * broadcast(0.707106781f)));
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    const Lanes inner = v * multiply_add(v * v, broadcast(0.044715f * 0.797884561f), broadcast(0.797884561f));
    return broadcast(0.5f) * v * (broadcast(1.0f) + tanh(inner));
  } else if constexpr (kActivation == Activation::tanh) {
    return tanh(v);
  } else {
    static_assert(kActivation == Activation::sigmoid, "an activation of contract/enums.def without its formula");
    return sigmoid(v);
  }
}

// d activate(v) / dv; where there is a kink, or v is NaN, that of the negative side.
template <Activation kActivation>
inline Lanes activation_derivative(Lanes v, [[maybe_unused]] Lanes slope) {
  const Lanes zero = broadcast(0.0f), one = broadcast(1.0f);
  if constexpr (kActivation == Activation::identity) {
    return one;
  } else if constexpr (kActivation == Activation::relu) {
    return select(less(zero, v), one, zero);
  } else if constexpr (kActivation == Activation::prelu) {
    return select(less(zero, v), one, slope);
  } else if constexpr (kActivation == Activation::silu) {
    const Lanes share = sigmoid(v);
    return multiply_add(v * share, one - share, share);
  } else if constexpr (kActivation == Activation::gelu) {
    const Lanes density = broadcast(0.398942280f) * exp(broadcast(-0.5f) * v * v);
    return multiply_add(v, density, broadcast(0.5f) * (one + erf(v * broadcast(0.707106781f))));
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    const Lanes square = v * v, root = broadcast(0.797884561f);
    const Lanes share = tanh(v * multiply_add(square, broadcast(0.044715f * 0.797884561f), root));
    const Lanes inner = root * multiply_add(square, broadcast(3.0f * 0.044715f), one);
    return broadcast(0.5f) * multiply_add(v * (one - share * share), inner, one + share);
  } else if constexpr (kActivation == Activation::tanh) {
    const Lanes share = tanh(v);
    return one - share * share;
  } else {
    static_assert(kActivation == Activation::sigmoid, "an activation of contract/enums.def without its derivative");
    const Lanes share = sigmoid(v);
    return share * (one - share);
  }
}

}  // namespace resflow::cpu::RESFLOW_TARGET
