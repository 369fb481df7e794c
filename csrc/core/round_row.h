// Rounding rows to what tables hold.
#pragma once

#include "core/plan.h"

namespace resflow {

// Rounds a row to `element`; in int8 by core/quantize.h's division, to bytes and one scale, written to `scale`.
void round_row(const float* values, int64_t width, Precision element, void* row, float* scale);

}  // namespace resflow
