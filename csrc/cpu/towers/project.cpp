#include "cpu/towers/project.h"

#include <algorithm>
#include <cmath>

#include "core/number_formats.h"
#include "core/program.h"
#include "core/round_row.h"
#include "cpu/simd/isa.h"
#include "cpu/towers/source.h"
#include "cpu/towers/tiling.h"
#include "cpu/towers/towers.h"

namespace resflow::cpu {
namespace {

// The rows that are projected, and the place of their columns in an input row.
struct Side {
  const Source& x;
  int64_t count;
  int64_t first_input;
  int64_t columns;
};

// Multiplies rows by the first layers' weights of their columns. Each tile's products, in rows of `stride`, are written
// to to(rows), unless none are `wanted`, and passed to done(input rows, products, rows).
template <class To, class Done>
void project_rows(const Model& model, const Side& side, bool wanted, bool with_bias, int64_t stride, int64_t threads,
                  To to, Done done) {
  const auto& [x, count, first_input, columns] = side;
  const Kernels& kernels = cpu::kernels();
  const Tiling tiling(count, threads, kernels.block_rows);
  const int64_t words = model.plan.program ? model.plan.program->words : model.plan.layer[0].words;
  run_parallel(tiling.tiles, tiling.threads, [&](int64_t tile) {
    thread_local Scratch scratch;
    const Tiling::Rows rows = tiling.rows(tile);
    const int64_t pooled = pooled_floats(x, rows.count);
    float* const operand = scratch.floats(pooled + operand_floats(rows.count, words)) + pooled;
    float* const out = to(rows);
    const Rows x_rows = rows_of(kernels, x, rows.first, rows.count, operand - pooled);
    if (wanted) {
      kernels.project(model.plan, model.weights(),
                      {x_rows, rows.count, first_input, columns, with_bias, operand, out, stride});
    }
    done(x_rows, out, rows);
  });
}

}  // namespace

const float* project_users(const ScoringCall& call, int64_t threads, Scratch& scratch) {
  const auto& [model, candidates, weights] = call;
  if (model.plan.program && !candidates.user.exists()) return nullptr;
  const int64_t stride = user_floats_of(call), row_floats = user_row_floats(model.plan, candidates);
  const int64_t requests = candidates.user.exists() ? candidates.requests : 1;
  const int64_t columns = candidates.user.exists() ? candidates.user_columns : 0;
  float* const users = scratch.floats(requests * stride);
  const auto to = [&](Tiling::Rows rows) { return users + rows.first * stride + row_floats; };
  const auto keep_rows = [&](const Rows& user, float* sums, Tiling::Rows rows) {
    if (row_floats > 0) copy_rows(user, rows.count, columns, sums - row_floats, stride);
  };
  const bool wanted = !model.plan.program || splits_rows(model.plan, candidates);
  project_rows(model, {candidates.user, requests, 0, columns}, wanted, true, stride, threads, to, keep_rows);
  return users;
}

void copy_rows(const Rows& rows, int64_t count, int64_t columns, float* to, int64_t stride) {
  for (int64_t r = 0; r < count; ++r, to += stride) {
    const void* const row = rows.from(r).data;
    if (rows.element == Precision::float32) {
      std::copy_n(static_cast<const float*>(row), columns, to);
    } else {
      std::transform(static_cast<const uint16_t*>(row), static_cast<const uint16_t*>(row) + columns, to, from_bfloat16);
    }
  }
}

void catalog_rows(const Model& model, const Rows& item, int64_t count, int64_t item_columns, Precision precision,
                  void* rows, float* scales, int64_t threads) {
  const Program* const program = model.plan.program;
  const int64_t width = table_width(model.plan, item_columns);
  const Rows out{rows, precision, width};
  const auto to = [&](Tiling::Rows tile) {
    thread_local Scratch scratch;
    return precision == Precision::float32 ? static_cast<float*>(rows) + tile.first * width
                                           : scratch.floats(tile.count * width);
  };
  const auto round = [&](const Rows& items, float* products, Tiling::Rows tile) {
    if (program && program->reads_row) {
      copy_rows(items, tile.count, item_columns, products + program->user_sums, width);
    }
    if (precision == Precision::float32) return;
    for (int64_t r = 0; r < tile.count; ++r) {
      auto* const row = const_cast<void*>(out.from(tile.first + r).data);
      round_row(products + r * width, width, precision, row, scales ? scales + tile.first + r : nullptr);
    }
  };
  const Source items{item, {}};
  const Side side{items, count, model.plan.in_features - item_columns, item_columns};
  project_rows(model, side, true, false, width, threads, to, round);
}

}  // namespace resflow::cpu
