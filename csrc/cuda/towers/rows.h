// Rounds rows to a table's type, like core/round_row.h.
#pragma once

#include "core/candidates.h"
#include "cuda/device/stream.h"

namespace resflow::cuda {

// Rounds `count` rows of `parts` contiguous parts of `width` values each to `element`: float32, bfloat16, or int8 with
// scales [count][parts], which are NaN where a part has a value that is not finite. Input rows are float32, bfloat16 or
// float16; the output is [count][parts * width].
void round_rows(const Rows& from, int64_t count, int64_t parts, int64_t width, Precision element, void* to,
                float* scales, Stream stream);

}  // namespace resflow::cuda
