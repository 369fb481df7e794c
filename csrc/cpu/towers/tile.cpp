#include "cpu/towers/tile.h"

#include <algorithm>
#include <vector>

#include "core/check.h"
#include "core/number_formats.h"
#include "core/precision.h"
#include "core/program.h"
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

// Sets each candidate's initial first-layer sums, or its user's row, and its fusion weights.
void point_rows(const PreparedCall& prepared, Tiling::Rows tile, Workspace& workspace) {
  const auto& [model, candidates, weights] = prepared.call;
  const int64_t weight_count = fusion_weight_count(weights.fusion, model.plan.tasks);
  workspace.accum_init.resize(tile.count);
  workspace.fusion_weights.resize(tile.count);
  int64_t request = candidates.offsets ? request_at(candidates, tile.first) : 0;
  for (int64_t r = 0; r < tile.count; ++r) {
    const int64_t candidate = tile.first + r;
    while (candidates.offsets && candidates.offsets[request + 1] <= candidate) ++request;
    workspace.accum_init[r] = prepared.users + request * prepared.user_floats;
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
    const int64_t width = table_width(plan, plan.in_features - candidates.user_columns);
    const int64_t bytes = width * bytes_of(table.rows.element);
    for (int64_t r = next.first; r < next.first + next.count; ++r) {
      spans.add(table.rows.from(candidates.ids[r]).data, bytes);
    }
  } else {
    add_spans(candidates.x, next.first, next.count, plan.in_features - candidates.user_columns, spans);
  }
  return spans.view();
}

int64_t most_hidden_words(const Plan& plan) {
  int64_t most = plan.program ? plan.program->words : 0;
  for (int32_t l = 1; l < plan.layers; ++l) most = std::max(most, plan.layer[l].words);
  return most;
}

// Whether a program's tile needs whole rows in float32 that are nowhere in memory.
bool joins_rows(const Plan& plan, const Candidates& candidates) {
  if (candidates.user.exists()) return reads_users(plan, candidates);
  return plan.program->reads_row && candidates.x.rows.element != Precision::float32;
}

// The places of a tile in the thread's workspace; each begins on a cache line.
Tile place_tile(const PreparedCall& prepared, Tiling::Rows current, Tiling::Rows next, Workspace& workspace) {
  const auto& [model, candidates, weights] = prepared.call;
  const Plan& plan = model.plan;
  const int64_t rows = current.count, stride = pad_to_lane(rows);
  const bool rounds_x = plan.precision != Precision::float32 || candidates.x.rows.element != Precision::float32;
  int64_t hidden_floats = pad_to_lane(plan.slots * rows * plan.hidden_floats);
  int64_t x_floats = rounds_x && !candidates.ids ? operand_floats(rows, plan.layer[0].words) : 0;
  int64_t gathered = 0;
  if (plan.program) {
    hidden_floats = pad_to_lane(rows * plan.program->frame_floats);
    x_floats = joins_rows(plan, candidates) ? rows * pad_to_lane(plan.in_features) : 0;
    gathered = rows * plan.program->gathered_floats;
  }
  const int64_t pooled = pooled_floats(candidates.x, rows);
  const int64_t operand = operand_floats(rows, most_hidden_words(plan));

  Tile tile{};
  tile.hidden =
      workspace.floats.floats(hidden_floats + x_floats + pooled + operand + gathered + (2 * plan.tasks + 1) * stride);
  tile.plan = &plan;
  tile.weights = model.weights();
  tile.rows = rows;
  tile.next = next_spans(plan, candidates, next, workspace.next);
  tile.x_operand = tile.hidden + hidden_floats;
  tile.hidden_operand = tile.x_operand + x_floats + pooled;
  tile.gathered = tile.hidden_operand + operand;
  tile.logits = tile.gathered + gathered;
  tile.probs = tile.logits + plan.tasks * stride;
  tile.score = tile.probs + plan.tasks * stride;
  tile.stride = stride;
  if (candidates.ids) {
    look_up(candidates, current, workspace, tile);
  } else {
    tile.x = rows_of(prepared.kernels, candidates.x, current.first, rows, tile.x_operand + x_floats);
  }
  return tile;
}

// Copies the items' own columns, which follow their sums in a table's rows, to [rows][stride].
void copy_table_columns(const Tile& tile, int64_t columns, float* to, int64_t stride) {
  with_precision<precision_flag::in_tables>(tile.table_element, [&](auto element) {
    for (int64_t r = 0; r < tile.rows; ++r) {
      const auto* const from =
          static_cast<const Stored<element.value>*>(tile.table_rows[r]) + tile.plan->program->user_sums;
      for (int64_t c = 0; c < columns; ++c) {
        if constexpr (element.value == Precision::bfloat16) {
          to[r * stride + c] = from_bfloat16(from[c]);
        } else {
          to[r * stride + c] = tile.table_scales ? from[c] * tile.table_scales[r] : from[c];
        }
      }
    }
  });
}

// Sets a program's whole rows: the candidates' in memory, or the users' columns and theirs, next to each other.
void join_rows(const Candidates& candidates, Tile& tile) {
  tile.row = tile.x;
  if (!joins_rows(*tile.plan, candidates)) return;
  const int64_t stride = pad_to_lane(tile.plan->in_features), columns = candidates.user_columns;
  for (int64_t r = 0; columns > 0 && r < tile.rows; ++r) {
    std::copy_n(tile.accum_init[r], columns, tile.x_operand + r * stride);
  }
  if (tile.table_rows) {
    copy_table_columns(tile, tile.plan->in_features - columns, tile.x_operand + columns, stride);
  } else {
    copy_rows(tile.x, tile.rows, tile.plan->in_features - columns, tile.x_operand + columns, stride);
  }
  tile.row = {tile.x_operand, Precision::float32, stride};
}

}  // namespace

int64_t request_at(const Candidates& candidates, int64_t candidate) {
  const int64_t* const end = candidates.offsets + candidates.requests + 1;
  return std::upper_bound(candidates.offsets, end, candidate) - candidates.offsets - 1;
}

TileScores score_tile(const PreparedCall& prepared, Tiling::Rows current, Tiling::Rows next) {
  thread_local Workspace workspace;
  const auto& [model, candidates, weights] = prepared.call;
  Tile tile = place_tile(prepared, current, next, workspace);
  point_rows(prepared, current, workspace);
  tile.first_input = candidates.user_columns;
  tile.accum_init = workspace.accum_init.data();
  tile.fusion = weights.fusion;
  tile.fusion_weights = workspace.fusion_weights.data();
  if (model.plan.program) {
    tile.user_sums = user_row_floats(model.plan, candidates);
    join_rows(candidates, tile);
  }
  prepared.kernels.score_tile[static_cast<int>(model.plan.precision)](tile);
  return {tile.logits, tile.probs, tile.score, tile.stride};
}

void output_tile(const PreparedCall& prepared, Tiling::Rows current, Tiling::Rows next, float* out) {
  thread_local Workspace workspace;
  const auto& [model, candidates, weights] = prepared.call;
  const Program& program = *model.plan.program;
  Tile tile = place_tile(prepared, current, next, workspace);
  join_rows(candidates, tile);
  prepared.kernels.run_program[static_cast<int>(model.plan.precision)](tile);
  for (const Segment& segment : program.outputs) {
    const ValuePlace& value = program.values[segment.value];
    const float* from =
        segment.value == 0 ? static_cast<const float*>(tile.row.data) : tile.hidden + value.place * tile.rows;
    const int64_t stride = segment.value == 0 ? tile.row.stride : value.padded;
    for (int64_t r = 0; r < tile.rows; ++r) {
      std::copy_n(from + r * stride + segment.column, segment.width, out + r * program.output_columns);
    }
    out += segment.width;
  }
}

}  // namespace resflow::cpu
