// A tile program (contract/program.def), decoded: steps over the values of a candidate, and where each value and weight
// lies. Plain data behind pointers, which instruction-set-specific translation units can read without the STL.
#pragma once

#include <cstdint>

#include "core/plan.h"

namespace resflow {

enum class StepKind : int32_t {
#define RESFLOW_STEP(name) name,
#include "contract/program.def"
  count
};

namespace program_limit {
#define RESFLOW_PROGRAM_LIMIT(name, value) constexpr int64_t name = value;
#include "contract/program.def"
}  // namespace program_limit

// Consecutive columns of a value.
struct Segment {
  int64_t value;
  int64_t column;
  int64_t width;
};

struct Segments {
  const Segment* all;
  int64_t count;

  const Segment* begin() const { return all; }
  const Segment* end() const { return all + count; }
};

struct Step {
  StepKind kind;
  int64_t width;
  int64_t groups;
  int64_t columns;  // of all inputs together
  float epsilon;
  bool affine;
  Segments inputs, factors, addends;

  // Where a linear step over columns of the input row alone has its sums of a user's columns, which are computed once
  // per request, among a user's sums of all such steps, and those of an item's columns in a catalog; -1 for other
  // steps.
  int64_t user_sums;
  LayerLayout layer;  // width, activation and weights; the matrix in a linear step alone
};

// A value of a candidate: `width` floats at `place` of its frame, `padded` floats apart from the next candidate's.
struct ValuePlace {
  int64_t place;
  int64_t width;
  int64_t padded;
};

struct Program {
  const Step* steps;
  int64_t step_count;
  Segments outputs;
  int64_t output_columns;
  const ValuePlace* values;  // [step_count + 1]; value 0 is the input row

  // Of one candidate: its values (but the row, which is a tile's own), some of them in the place of others that are
  // not read any more; the widest row that a linear step gathers from several segments; its most words.
  int64_t frame_floats;
  int64_t gathered_floats;
  int64_t words;
  int64_t user_sums;  // floats of all steps that have some
  bool reads_row;     // a step that has no user_sums, or the outputs, read the input row
  int64_t panels;     // of all linear steps: units of work for prefetching
};

// Columns of a catalog's table: its items' products with the item columns of all first layers; of a program the sums of
// all steps that have user_sums, and the items' columns if steps read them.
inline int64_t table_width(const Plan& plan, int64_t item_columns) {
  if (!plan.program) return plan.tasks * plan.first_padded();
  return plan.program->user_sums + (plan.program->reads_row ? item_columns : 0);
}

}  // namespace resflow
