// Rounding rows to what tables hold, as core/round_row.h does.
#pragma once

#include "core/candidates.h"
#include "cuda/device/stream.h"

namespace resflow::cuda {

// Rounds `count` rows of `parts` side by side, each of `width` values, to `element`: float32, bfloat16, or int8 with
// scales [count][parts], which are NaN where a part has a value that is not finite. Rows of float32, bfloat16 or
// float16 in, [count][parts * width] out.
void round_rows(const Rows& from, int64_t count, int64_t parts, int64_t width, Precision element, void* to,
                float* scales, Stream stream);

}  // namespace resflow::cuda
