// Reads values of a call that are in device memory, which the host has not checked.
#pragma once

#include "core/plan.h"
#include "cuda/device/target.h"

namespace resflow::cuda {

// Whether weights were packed for this plan: the header's second word is its fingerprint (core/pack.cpp).
RESFLOW_DEVICE bool packed_for(const Plan& plan, const void* packed) {
  return load_constant(static_cast<const uint64_t*>(packed) + 1) == plan.fingerprint;
}

// The request that contains this candidate, or -1: offsets on the device are not checked.
RESFLOW_DEVICE int64_t request_of(const int64_t* offsets, int64_t requests, int64_t at) {
  int64_t low = 0, high = requests;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (load_constant(offsets + middle) <= at ? low : high) = middle;
  }
  if (requests < 1 || load_constant(offsets + low) > at || load_constant(offsets + low + 1) <= at) return -1;
  return low;
}

}  // namespace resflow::cuda
