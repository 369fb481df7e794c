#include "cuda/towers/rows.h"

#include "cuda/device/launch.h"

#include <cmath>

#include "cuda/towers/row_value.h"

namespace resflow::cuda {
namespace {

RESFLOW_DEVICE uint16_t bfloat16_of(float value) {
  const uint32_t bits = word_of_float(value);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Rounds one part of a row per warp.
struct RoundRows {
  struct Params {
    Rows from;
    int64_t count, parts, width;
    Precision element;
    void* to;
    float* scales;
  };
  static constexpr int kThreads = 256;
  static constexpr int kMinBlocks = 4;
  static constexpr const char* kName = "round rows";
  static constexpr int kWarps = kThreads / 32;

  static RESFLOW_DEVICE void run(const Params& params, char*) {
    const int64_t part = block_index() * kWarps + thread_index() / 32;
    if (part >= params.count * params.parts) return;
    const char* const row = row_at(params.from, part / params.parts);
    const int64_t first = part % params.parts * params.width;
    const int lane = thread_index() % 32;
    float scale = 0.0f;
    if (params.element == Precision::int8) {
      scale = scale_of_row(row, params.from.element, first, params.width, lane);
      if (lane == 0) store_global(params.scales + part, scale);
    }
    for (int64_t i = lane; i < params.width; i += 32) {
      const float value = value_of(row, params.from.element, first + i);
      with_precision<precision_flag::in_tables>(
          params.element, [&](auto element) { store<element.value>(params, part * params.width + i, value, scale); });
    }
  }

  template <Precision kElement>
  static RESFLOW_DEVICE void store(const Params& params, int64_t at, float value, float scale) {
    if constexpr (kElement == Precision::bfloat16) {
      store_global(static_cast<uint16_t*>(params.to) + at, bfloat16_of(value));
    } else if constexpr (kElement == Precision::int8) {
      store_global(static_cast<int8_t*>(params.to) + at, static_cast<int8_t>(int8_divide(value, scale)));
    } else {
      static_assert(kElement == Precision::float32, "a precision of tables without its rounding");
      store_global(static_cast<float*>(params.to) + at, value);
    }
  }
};

}  // namespace

void round_rows(const Rows& from, int64_t count, int64_t parts, int64_t width, Precision element, void* to,
                float* scales, Stream stream) {
  const int64_t blocks = (count * parts + RoundRows::kWarps - 1) / RoundRows::kWarps;
  launch<RoundRows>({from, count, parts, width, element, to, scales}, blocks, 0, stream);
}

}  // namespace resflow::cuda
