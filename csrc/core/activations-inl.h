// The contract's activations and their derivatives: one formula for the CPU's lanes and the GPU's floats.
//
// To add an activation: its name in contract/enums.def, its formula here, and its row and Triton formulas in
// resflow_kernels/reference/activations.py.
//
// This file is included once in the namespace of each backend (cpu/simd/formulas-inl.h, cuda/device/math.h), which must
// first define:
//
//   Value                        16 lanes or one float, with + - * /
//   constant(float)              a Value
//   RESFLOW_FORMULA              what a function of the backend begins with
//   multiply_add, at_least, at_most, less, select, negative, absolute, exp, tanh, sigmoid
//   log1p_unit(v)                log(1 + v) of v from 0 to 1, exact to a few units of float32 beside 1
//   erf_beside_one(v)            erf with an absolute error of a few units in the last place of 1: for sums with 1
//   gated_by_tanh(v, argument)   v (1 + tanh(u)) / 2, where argument(f) is f u: one backend computes the tanh of u, the
//                                other the sigmoid of 2 u
//
// Bounds are comparisons that are false for NaN, so NaN stays NaN.

// The formulas of one activation: value(v, slope), and derivative(v, slope) = d value / dv. At a kink, or where v is
// NaN, the derivative is that of the negative side. kManyRegisters: see TowerGroup in cuda/towers/tower_sm90.h.
template <Activation kActivation>
struct ActivationFormula {
  static_assert(kActivation == Activation::count,
                "an activation of contract/enums.def without its formula in core/activations-inl.h");
};

template <>
struct ActivationFormula<Activation::identity> {
  static constexpr bool kManyRegisters = false;
  static RESFLOW_FORMULA Value value(Value v, Value) { return v; }
  static RESFLOW_FORMULA Value derivative(Value, Value) { return constant(1.0f); }
};

template <>
struct ActivationFormula<Activation::relu> {
  static constexpr bool kManyRegisters = false;
  static RESFLOW_FORMULA Value value(Value v, Value) { return at_least(v, constant(0.0f)); }
  static RESFLOW_FORMULA Value derivative(Value v, Value) {
    return select(less(constant(0.0f), v), constant(1.0f), constant(0.0f));
  }
};

template <>
struct ActivationFormula<Activation::prelu> {
  static constexpr bool kManyRegisters = false;
  static RESFLOW_FORMULA Value value(Value v, Value slope) {
    return multiply_add(at_most(v, constant(0.0f)), slope, at_least(v, constant(0.0f)));
  }
  static RESFLOW_FORMULA Value derivative(Value v, Value slope) {
    return select(less(constant(0.0f), v), constant(1.0f), slope);
  }
};

template <>
struct ActivationFormula<Activation::silu> {
  static constexpr bool kManyRegisters = false;
  static RESFLOW_FORMULA Value value(Value v, Value) { return v / (constant(1.0f) + exp(negative(v))); }
  static RESFLOW_FORMULA Value derivative(Value v, Value) {
    const Value share = sigmoid(v);
    return multiply_add(v * share, constant(1.0f) - share, share);
  }
};

template <>
struct ActivationFormula<Activation::gelu> {
  static constexpr bool kManyRegisters = true;
  static RESFLOW_FORMULA Value value(Value v, Value) { return constant(0.5f) * v * one_plus_erf(v); }
  static RESFLOW_FORMULA Value derivative(Value v, Value) {
    const Value density = constant(0.398942280f) * exp(constant(-0.5f) * v * v);
    return multiply_add(v, density, constant(0.5f) * one_plus_erf(v));
  }

 private:
  // 1 + erf(v / sqrt(2))
  static RESFLOW_FORMULA Value one_plus_erf(Value v) {
    return constant(1.0f) + erf_beside_one(v * constant(0.707106781f));
  }
};

// u = sqrt(2 / pi) (v + 0.044715 v^3)
template <>
struct ActivationFormula<Activation::gelu_tanh> {
  static constexpr bool kManyRegisters = false;
  static RESFLOW_FORMULA Value value(Value v, Value) {
    return gated_by_tanh(v, [&](float factor) {
      return v * multiply_add(v * v, constant(factor * 0.044715f * 0.797884561f), constant(factor * 0.797884561f));
    });
  }
  static RESFLOW_FORMULA Value derivative(Value v, Value) {
    const Value square = v * v, one = constant(1.0f), root = constant(0.797884561f);
    const Value share = tanh(v * multiply_add(square, constant(0.044715f * 0.797884561f), root));
    const Value inner = root * multiply_add(square, constant(3.0f * 0.044715f), one);
    return constant(0.5f) * multiply_add(v * (one - share * share), inner, one + share);
  }
};

template <>
struct ActivationFormula<Activation::tanh> {
  static constexpr bool kManyRegisters = true;
  static RESFLOW_FORMULA Value value(Value v, Value) { return tanh(v); }
  static RESFLOW_FORMULA Value derivative(Value v, Value) {
    const Value share = tanh(v);
    return constant(1.0f) - share * share;
  }
};

template <>
struct ActivationFormula<Activation::sigmoid> {
  static constexpr bool kManyRegisters = false;
  static RESFLOW_FORMULA Value value(Value v, Value) { return sigmoid(v); }
  static RESFLOW_FORMULA Value derivative(Value v, Value) {
    const Value share = sigmoid(v);
    return share * (constant(1.0f) - share);
  }
};

// v, or e^v - 1 below 0
template <>
struct ActivationFormula<Activation::elu> {
  static constexpr bool kManyRegisters = false;
  static RESFLOW_FORMULA Value value(Value v, Value) {
    return at_least(v, constant(0.0f)) + (exp(at_most(v, constant(0.0f))) - constant(1.0f));
  }
  static RESFLOW_FORMULA Value derivative(Value v, Value) {
    return select(less(constant(0.0f), v), constant(1.0f), exp(at_most(v, constant(0.0f))));
  }
};

// log(1 + e^v)
template <>
struct ActivationFormula<Activation::softplus> {
  static constexpr bool kManyRegisters = true;
  static RESFLOW_FORMULA Value value(Value v, Value) {
    return at_least(v, constant(0.0f)) + log1p_unit(exp(negative(absolute(v))));
  }
  static RESFLOW_FORMULA Value derivative(Value v, Value) { return sigmoid(v); }
};

template <Activation kActivation>
RESFLOW_FORMULA Value activate(Value v, Value slope) {
  return ActivationFormula<kActivation>::value(v, slope);
}

template <Activation kActivation>
RESFLOW_FORMULA Value activation_derivative(Value v, Value slope) {
  return ActivationFormula<kActivation>::derivative(v, slope);
}

template <Activation kActivation>
struct ActivationConstant {
  static constexpr Activation value = kActivation;
};

// Calls run with the activation as a compile-time constant.
template <class Run>
RESFLOW_FORMULA void with_activation(Activation activation, Run run) {
  switch (activation) {
#define RESFLOW_ACTIVATION(name) \
  case Activation::name:         \
    return run(ActivationConstant<Activation::name>{});
#include "contract/enums.def"
    case Activation::count:
      return;
  }
}
