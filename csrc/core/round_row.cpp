#include "core/round_row.h"

#include <algorithm>
#include <cmath>

#include "core/number_formats.h"

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
  float largest = 0.0f, not_finite = 0.0f;
  for (int64_t i = 0; i < width; ++i) {
    largest = std::max(largest, std::abs(values[i]));
    not_finite += 0.0f * values[i];
  }
  *scale = largest / 127.0f + not_finite;
  const float step = *scale;
  std::transform(values, values + width, static_cast<int8_t*>(row),
                 [step](float value) { return static_cast<int8_t>(step > 0 ? std::nearbyint(value / step) : 0.0f); });
}

}  // namespace resflow
