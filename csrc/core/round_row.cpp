#include "core/round_row.h"

#include <algorithm>

#include "core/number_formats.h"
#include "core/quantize.h"

namespace resflow {

void round_row(const float* values, int64_t width, Precision element, void* row, float* scale) {
  if (element == Precision::float32) {
    std::copy(values, values + width, static_cast<float*>(row));
    return;
  }
  if (element == Precision::bfloat16) {
    std::transform(values, values + width, static_cast<uint16_t*>(row), to_bfloat16);
    return;
  }
  float largest = 0.0f;
  for (int64_t i = 0; i < width; ++i) largest = larger_magnitude(largest, values[i]);
  const float own_scale = int8_scale(largest);
  *scale = own_scale;
  std::transform(values, values + width, static_cast<int8_t*>(row),
                 [own_scale](float value) { return static_cast<int8_t>(int8_divide(value, own_scale)); });
}

}  // namespace resflow
