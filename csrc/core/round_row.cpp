#include "core/round_row.h"

#include <algorithm>

#include "core/precision.h"
#include "core/quantize.h"

namespace resflow {

void round_row(const float* values, int64_t width, Precision element, void* row, float* scale) {
  with_precision<precision_flag::in_tables>(element, [&](auto own) {
    auto* const to = static_cast<Stored<own.value>*>(row);
    if constexpr (has(own.value, precision_flag::column_scales)) {
      float largest = 0.0f;
      for (int64_t i = 0; i < width; ++i) largest = larger_magnitude(largest, values[i]);
      const float own_scale = int8_scale(largest);
      *scale = own_scale;
      std::transform(values, values + width, to,
                     [own_scale](float value) { return static_cast<int8_t>(int8_divide(value, own_scale)); });
    } else {
      std::transform(values, values + width, to, StoredAs<own.value>::rounded);
    }
  });
}

}  // namespace resflow
