// The contract's activations on 16 lanes. Adding one: its formula here, its name in contract/enums.def.
// Comparisons are written so that NaN stays NaN.
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

}  // namespace resflow::cpu::RESFLOW_TARGET
