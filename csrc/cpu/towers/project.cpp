#include "cpu/towers/project.h"

#include <algorithm>
#include <cmath>

#include "core/round_row.h"
#include "cpu/simd/isa.h"
#include "cpu/towers/source.h"
#include "cpu/towers/tiling.h"
#include "cpu/towers/towers.h"

namespace resflow::cpu {
namespace {

// Multiplies rows [count, columns] by the first layers' weights from first_input on. Each tile's products, [rows][tasks
// * first_padded()], are written to to(rows) and passed to done(products, rows).
template <class To, class Done>
void project_rows(const Model& model, const Source& x, int64_t count, int64_t first_input, int64_t columns,
                  bool with_bias, int64_t threads, To to, Done done) {
  const Kernels& kernels = cpu::kernels();
  const Tiling tiling(count, threads, kernels.block_rows);
  run_parallel(tiling.tiles, tiling.threads, [&](int64_t tile) {
    thread_local Scratch scratch;
    const Tiling::Rows rows = tiling.rows(tile);
    const int64_t pooled = pooled_floats(x, rows.count);
    float* const operand = scratch.floats(pooled + operand_floats(rows.count, model.plan.layer[0].words)) + pooled;
    float* const out = to(rows);
    const Rows x_rows = rows_of(kernels, x, rows.first, rows.count, operand - pooled);
    kernels.project(model.plan, model.weights(), {x_rows, rows.count, first_input, columns, with_bias, operand, out});
    done(out, rows);
  });
}

}  // namespace

const float* project_users(const ScoringCall& call, int64_t threads, Scratch& scratch) {
  const auto& [model, candidates, weights] = call;
  const int64_t row_floats = model.plan.tasks * model.plan.first_padded();
  const int64_t requests = candidates.user.exists() ? candidates.requests : 1;
  const int64_t columns = candidates.user.exists() ? candidates.user_columns : 0;
  float* const accum_init = scratch.floats(requests * row_floats);
  const auto to = [&](Tiling::Rows rows) { return accum_init + rows.first * row_floats; };
  project_rows(model, candidates.user, requests, 0, columns, true, threads, to, [](float*, Tiling::Rows) {});
  return accum_init;
}

void catalog_rows(const Model& model, const Rows& item, int64_t count, int64_t item_columns, Precision precision,
                  void* rows, float* scales, int64_t threads) {
  const int64_t width = model.plan.tasks * model.plan.first_padded();
  const Rows out{rows, precision, width};
  const auto to = [&](Tiling::Rows tile) {
    thread_local Scratch scratch;
    return precision == Precision::float32 ? static_cast<float*>(rows) + tile.first * width
                                           : scratch.floats(tile.count * width);
  };
  const auto round = [&](const float* products, Tiling::Rows tile) {
    if (precision == Precision::float32) return;
    for (int64_t r = 0; r < tile.count; ++r) {
      auto* const row = const_cast<void*>(out.from(tile.first + r).data);
      round_row(products + r * width, width, precision, row, scales ? scales + tile.first + r : nullptr);
    }
  };
  project_rows(model, {item, {}}, count, model.plan.in_features - item_columns, item_columns, false, threads, to,
               round);
}

}  // namespace resflow::cpu
