// What a tensor map of the copy engine says, as tensor_map.h makes it.
#pragma once

#include <cstdint>

namespace resflow::cuda {

struct alignas(64) TensorMap {
  const char* base;
  int64_t columns, rows, row_stride_bytes;
  int element_bytes, box_columns, box_rows;
};

}  // namespace resflow::cuda
