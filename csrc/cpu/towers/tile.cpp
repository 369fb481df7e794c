#include "cpu/towers/tile.h"

#include <algorithm>
#include <vector>

#include "core/check.h"
#include "cpu/threads/scratch.h"
#include "cpu/towers/source.h"

namespace resflow::cpu {
namespace {

// A tile's per-candidate pointers and the kernels' outputs; each thread reuses them from tile to tile.
struct Workspace {
  Scratch floats;
  std::vector<const float*> accum_init, fusion_weights;
  std::vector<const void*> table_rows;
  std::vector<float> table_scales;
  SpanList next;
};

// Sets each candidate's initial first-layer sums and fusion weights.
void point_rows(const PreparedCall& prepared, Tiling::Rows tile, Workspace& workspace) {
  const auto& [model, candidates, weights] = prepared.call;
  const int64_t weight_count = fusion_weight_count(weights.fusion, model.plan.tasks);
  const int64_t init_floats = candidates.user.exists() ? model.plan.tasks * model.plan.first_padded() : 0;
  workspace.accum_init.resize(tile.count);
  workspace.fusion_weights.resize(tile.count);
  int64_t request = candidates.offsets ? request_at(candidates, tile.first) : 0;
  for (int64_t r = 0; r < tile.count; ++r) {
    const int64_t candidate = tile.first + r;
    while (candidates.offsets && candidates.offsets[request + 1] <= candidate) ++request;
    workspace.accum_init[r] = prepared.accum_init + request * init_floats;
    const int64_t row = weights_row(weights.per, request, candidate);
    workspace.fusion_weights[r] = weights.values + row * weight_count;
  }
}

// Sets the catalog rows and scales of a tile.
void look_up(const Candidates& candidates, Tiling::Rows current, Workspace& workspace, Tile& tile) {
  const Table& table = candidates.table;
  workspace.table_rows.resize(current.count);
  workspace.table_scales.resize(current.count);
  for (int64_t r = 0; r < current.count; ++r) {
    const int64_t id = candidates.ids[current.first + r];
    workspace.table_rows[r] = table.rows.from(id).data;
    if (table.scales) workspace.table_scales[r] = table.scales[id];
  }
  tile.table_rows = workspace.table_rows.data();
  tile.table_element = table.rows.element;
  tile.table_scales = table.scales ? workspace.table_scales.data() : nullptr;
}

// The memory that the next tile will read.
Spans next_spans(const Plan& plan, const Candidates& candidates, Tiling::Rows next, SpanList& spans) {
  spans.clear();
  if (candidates.ids) {
    const Table& table = candidates.table;
    const int64_t bytes = plan.tasks * plan.first_padded() * bytes_of(table.rows.element);
    for (int64_t r = next.first; r < next.first + next.count; ++r) {
      spans.add(table.rows.from(candidates.ids[r]).data, bytes);
    }
  } else {
    add_spans(candidates.x, next.first, next.count, plan.in_features - candidates.user_columns, spans);
  }
  return spans.view();
}

int64_t most_hidden_words(const Plan& plan) {
  int64_t most = 0;
  for (int32_t l = 1; l < plan.layers; ++l) most = std::max(most, plan.layer[l].words);
  return most;
}

}  // namespace

int64_t request_at(const Candidates& candidates, int64_t candidate) {
  const int64_t* const end = candidates.offsets + candidates.requests + 1;
  return std::upper_bound(candidates.offsets, end, candidate) - candidates.offsets - 1;
}

TileScores score_tile(const PreparedCall& prepared, Tiling::Rows current, Tiling::Rows next) {
  thread_local Workspace workspace;
  const auto& [model, candidates, weights] = prepared.call;
  const Plan& plan = model.plan;
  const int64_t rows = current.count, stride = pad_to_lane(rows);
  // Each part of the workspace begins on a cache line.
  const int64_t hidden_floats = pad_to_lane(plan.slots * rows * plan.hidden_floats);
  const bool rounds_x = plan.precision != Precision::float32 || candidates.x.rows.element != Precision::float32;
  const int64_t x_floats = rounds_x && !candidates.ids ? operand_floats(rows, plan.layer[0].words) : 0;
  const int64_t pooled = pooled_floats(candidates.x, rows);
  const int64_t operand = operand_floats(rows, most_hidden_words(plan));
  float* const hidden =
      workspace.floats.floats(hidden_floats + x_floats + pooled + operand + (2 * plan.tasks + 1) * stride);

  point_rows(prepared, current, workspace);
  Tile tile{};
  tile.plan = &plan;
  tile.weights = model.weights();
  tile.rows = rows;
  tile.next = next_spans(plan, candidates, next, workspace.next);
  tile.first_input = candidates.user_columns;
  tile.accum_init = workspace.accum_init.data();
  tile.hidden = hidden;
  tile.x_operand = hidden + hidden_floats;
  tile.hidden_operand = tile.x_operand + x_floats + pooled;
  tile.logits = tile.hidden_operand + operand;
  tile.probs = tile.logits + plan.tasks * stride;
  tile.score = tile.probs + plan.tasks * stride;
  tile.stride = stride;
  tile.fusion = weights.fusion;
  tile.fusion_weights = workspace.fusion_weights.data();
  if (candidates.ids) {
    look_up(candidates, current, workspace, tile);
  } else {
    tile.x = rows_of(prepared.kernels, candidates.x, current.first, rows, tile.x_operand + x_floats);
  }
  prepared.kernels.score_tile[static_cast<int>(plan.precision)](tile);
  return {tile.logits, tile.probs, tile.score, stride};
}

}  // namespace resflow::cpu
