// Packs canonical weights (Plan.weight_shapes in resflow_kernels/core/plan.py) into the layout of core/plan.h.
#pragma once

#include "core/plan.h"
#include "core/tensor_view.h"

namespace resflow {

// Number of canonical weight tensors of a plan.
int64_t weight_count(const Plan& plan);

// Checks the weights one by one (contiguous float32 of the canonical shapes, or of matrices [outputs, inputs], as
// nn.Linear has them); throws InvalidInput.
void check_weights(const char* op, const Plan& plan, const TensorView* weights, int64_t count, bool transposed = false);

// Writes plan.packed_bytes bytes, with zeros as padding.
void pack_towers(const Plan& plan, const TensorView* weights, void* packed);

bool has_header_of(const Plan& plan, const void* packed);

}  // namespace resflow
