// All kernels of one instruction set. A translation unit defines RESFLOW_TARGET (the namespace) and
// RESFLOW_KERNELS (the table's name), includes its simd_*.h and then this file.

// Separated by blank lines to keep clang-format from sorting them: each needs those before it.
#include "cpu/simd/kernels.h"

#include "cpu/simd/math-inl.h"

#include "cpu/simd/formulas-inl.h"

#include "cpu/towers/precision-inl.h"

#include "cpu/towers/pairs-inl.h"

#include "cpu/towers/fusion-inl.h"

#include "cpu/towers/tower-inl.h"

#include "cpu/towers/program-inl.h"

#include "cpu/towers/score-inl.h"

#include "cpu/towers/features-inl.h"

#include "cpu/twin/twin-inl.h"

#include "cpu/training/training_product-inl.h"

#include "cpu/training/training-inl.h"

namespace resflow::cpu {
namespace RESFLOW_TARGET {

// Keeps sums as they are, in rows of a stride.
struct SumsKept {
  float* out;
  int64_t stride;

  void operator()(const float* sums, int64_t row, const Block& block) const {
    for (int64_t r = 0; r < block.rows; ++r) {
      for (int64_t c = 0; c < block.width; c += kLane) {
        store(out + (row + r) * stride + block.column + c, load(sums + r * kPanelWidth + c));
      }
    }
  }
};

// Some columns of the input row, as far as steps that have user_sums read them.
template <Precision kPrecision>
void project_program_in(const Plan& plan, const float* weights, const Projection& projection) {
  const float zeros[kPanelWidth] = {};
  for (int64_t s = 0; s < plan.program->step_count; ++s) {
    const Step& step = plan.program->steps[s];
    if (step.user_sums < 0) continue;
    const Segment& segment = step.inputs.all[0];
    const int64_t first = columns_before(segment, projection.first_input);
    const int64_t end = columns_before(segment, projection.first_input + projection.columns);
    const Rows x = projection.x.from_column(first < end ? segment.column + first - projection.first_input : 0);
    const FirstLayerRows rows =
        first_layer_rows<kPrecision>(x, projection.rows, first, end - first, projection.operand);
    const AccumInit start = projection.with_bias ? AccumInit{weights + step.layer.bias} : AccumInit::zeros(zeros);
    multiply<kPrecision>(
        {&step.layer, weights, rows.first_word, rows.words, rows.operand, projection.rows}, start, [] {},
        SumsKept{projection.out + step.user_sums, projection.out_stride});
  }
}

template <Precision kPrecision>
void project_in(const Plan& plan, const float* weights, const Projection& projection) {
  const LayerLayout& layer = plan.layer[0];
  const FirstLayerRows rows = first_layer_rows<kPrecision>(projection.x, projection.rows, projection.first_input,
                                                           projection.columns, projection.operand);
  const float zeros[kPanelWidth] = {};
  for (int32_t k = 0; k < plan.tasks; ++k) {
    const float* const task = weights + k * plan.task_floats;
    const AccumInit start = projection.with_bias ? AccumInit{task + layer.bias} : AccumInit::zeros(zeros);
    multiply<kPrecision>(
        {&layer, task, rows.first_word, rows.words, rows.operand, projection.rows}, start, [] {},
        SumsKept{projection.out + k * layer.padded, projection.out_stride});
  }
}

void project(const Plan& plan, const float* weights, const Projection& projection) {
  with_precision<precision_flag::on_cpu>(plan.precision, [&](auto precision) {
    plan.program ? project_program_in<precision.value>(plan, weights, projection)
                 : project_in<precision.value>(plan, weights, projection);
  });
}

template <Precision kPrecision>
double peak_operations_in(int64_t count, float* sink) {
  using P = PeakProduct<kPrecision>;
  constexpr int kSums = kBlockRows * kBlockLanes;
  const int32_t zero = 0;
  const Operand row{sink, 1, sink, &zero};
  typename P::Sum sum[kSums];
  for (int i = 0; i < kSums; ++i) sum[i] = P::begin(row, broadcast(static_cast<float>(i)));
  for (int64_t n = 0; n < count; ++n) {
    for (int part = 0; part < P::kParts; ++part) {
      const auto value = P::value(sink[0], part);
      const auto weight = P::weights(sink, part);
#pragma GCC unroll 32
      for (int i = 0; i < kSums; ++i) sum[i] = P::add(value, weight, sum[i]);
    }
  }
  Lanes total = broadcast(0.0f);
  for (int i = 0; i < kSums; ++i) total = total + P::end(sum[i], row, sink, sink);
  store(sink, total);
  return 2.0 * kLane * P::kWordsPerLane * inputs_per_word(kPrecision) * kSums * static_cast<double>(count);
}

double peak_operations(Precision precision, int64_t count, float* sink) {
  return with_precision<precision_flag::on_cpu>(precision,
                                                [&](auto p) { return peak_operations_in<p.value>(count, sink); });
}

using RunTile = void (*)(const Tile& tile);

template <Precision kPrecision>
constexpr RunTile score_tile_in() {
  if constexpr (has(kPrecision, precision_flag::on_cpu)) {
    return score_tile<kPrecision>;
  } else {
    return nullptr;
  }
}

template <Precision kPrecision>
constexpr RunTile run_program_in() {
  if constexpr (has(kPrecision, precision_flag::on_cpu)) {
    return run_program<kPrecision>;
  } else {
    return nullptr;
  }
}

}  // namespace RESFLOW_TARGET

#define RESFLOW_TEXT_(name) #name
#define RESFLOW_TEXT(name) RESFLOW_TEXT_(name)
const Kernels RESFLOW_KERNELS = {RESFLOW_TEXT(RESFLOW_TARGET),
                                 RESFLOW_TARGET::kBlockRows,
                                 {
#define RESFLOW_PRECISION(name, code, bytes, flags) RESFLOW_TARGET::score_tile_in<Precision::name>(),
#include "contract/enums.def"
                                 },
                                 {
#define RESFLOW_PRECISION(name, code, bytes, flags) RESFLOW_TARGET::run_program_in<Precision::name>(),
#include "contract/enums.def"
                                 },
                                 RESFLOW_TARGET::pool,
                                 RESFLOW_TARGET::project,
                                 RESFLOW_TARGET::peak_operations,
                                 RESFLOW_TARGET::twin_user,
                                 RESFLOW_TARGET::score_twin_tile,
                                 RESFLOW_TARGET::read_memory,
                                 RESFLOW_TARGET::kTraining};

}  // namespace resflow::cpu
