// Rounding rows to what tables hold.
#pragma once

#include "core/plan.h"

namespace resflow {

// Rounds a row to `element`; in int8 to bytes times its largest magnitude over 127, written to `scale` (NaN where a
// value is not finite).
void round_row(const float* values, int64_t width, Precision element, void* row, float* scale);

}  // namespace resflow
