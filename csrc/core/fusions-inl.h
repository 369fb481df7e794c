// Formulas that turn the tasks' own logits r_k into logits z_k, and probabilities into one score: written once for the
// CPU's lanes and the GPU's floats.
//
// To add a fusion: its name in contract/enums.def, its formula here, its class with its formulas for PyTorch, Triton
// and ONNX in resflow_kernels/core/fusion.py, and the class's name in resflow_kernels/__init__.py.
//
// This file is included like core/activations-inl.h, and after it. It also uses these functions of the backend:
// log_sigmoid, logit_of_product.

// z_k from r_k and the parent's logit.
RESFLOW_FORMULA Value residual_logit(Value own, Value parent, bool non_increasing) {
  return (non_increasing ? at_most(own, constant(0.0f)) : own) + parent;
}

// z_k of a task that has a parent.
RESFLOW_FORMULA Value joined_logit(const Plan& plan, Value own, Value parent) {
  switch (plan.head) {
    case Head::residual:
      return plan.logit_residual ? residual_logit(own, parent, plan.non_increasing) : own;
    case Head::conditional:
      return logit_of_product(parent, own);
    case Head::count:
      break;
  }
  return own;
}

// A score that is being accumulated task by task; both members begin as 0.
struct FusionState {
  Value sum;
  Value former;  // the probability of the task before
};

// The formula of one fusion: add() takes the tasks in order, end() returns the score. weight(i) is the i-th of the
// candidate's fusion weights, 0 to fusion_weight_count - 1.
template <Fusion kFusion>
struct FusionFormula {
  static_assert(kFusion == Fusion::count, "a fusion of contract/enums.def without its formula in core/fusions-inl.h");
};

template <>
struct FusionFormula<Fusion::additive> {
  template <class Weight>
  static RESFLOW_FORMULA void add(FusionState& state, int32_t task, Value, Value prob, Weight weight) {
    state.sum = multiply_add(weight(task), prob, state.sum);
  }
  template <class Weight>
  static RESFLOW_FORMULA Value end(const FusionState& state, int32_t, Weight) {
    return state.sum;
  }
};

template <>
struct FusionFormula<Fusion::multiplicative> {
  template <class Weight>
  static RESFLOW_FORMULA void add(FusionState& state, int32_t task, Value logit, Value, Weight weight) {
    // The logarithm of p = 0 is -inf, and -inf * 0 would be NaN: with the bound p ^ 0 is 1.
    state.sum = multiply_add(weight(task), at_least(log_sigmoid(logit), constant(-3.4028235e38f)), state.sum);
  }
  template <class Weight>
  static RESFLOW_FORMULA Value end(const FusionState& state, int32_t, Weight) {
    return exp(state.sum);
  }
};

template <>
struct FusionFormula<Fusion::expected_value> {
  template <class Weight>
  static RESFLOW_FORMULA void add(FusionState& state, int32_t task, Value, Value prob, Weight weight) {
    if (task == 0) {
      state.sum = weight(0) * (constant(1.0f) - prob);
    } else {
      state.sum = multiply_add(weight(task), at_least(state.former - prob, constant(0.0f)), state.sum);
    }
    state.former = prob;
  }
  template <class Weight>
  static RESFLOW_FORMULA Value end(const FusionState& state, int32_t tasks, Weight weight) {
    return multiply_add(weight(tasks), state.former, state.sum);
  }
};

// Calls run(FusionFormula<...>{}) with the fusion's formula.
template <class Run>
RESFLOW_FORMULA void with_fusion(Fusion fusion, Run run) {
  switch (fusion) {
#define RESFLOW_FUSION(name, extra_weights) \
  case Fusion::name:                        \
    return run(FusionFormula<Fusion::name>{});
#include "contract/enums.def"
    case Fusion::count:
      return;
  }
}
