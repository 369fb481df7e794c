// Rounds rows to the precisions of tables.
#pragma once

#include "core/plan.h"

namespace resflow {

// Rounds a row to `element`. In int8, core/quantize.h's division gives bytes and one scale, written to `scale`.
void round_row(const float* values, int64_t width, Precision element, void* row, float* scale);

}  // namespace resflow
