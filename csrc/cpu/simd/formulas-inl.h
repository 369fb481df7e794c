// Defines the contract's formulas on 16 lanes.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

using Value = Lanes;

inline Lanes constant(float value) { return broadcast(value); }
inline Lanes negative(Lanes x) { return broadcast(0.0f) - x; }
inline Lanes erf_beside_one(Lanes x) { return erf(x); }

template <class Argument>
inline Lanes gated_by_tanh(Lanes v, Argument argument) {
  return broadcast(0.5f) * v * (broadcast(1.0f) + tanh(argument(1.0f)));
}

#define RESFLOW_FORMULA inline
#include "core/activations-inl.h"
#include "core/fusions-inl.h"
#undef RESFLOW_FORMULA

}  // namespace resflow::cpu::RESFLOW_TARGET
