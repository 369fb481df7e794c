// What is computed once per user, before candidates are scored: products with one side of the first layers.
#pragma once

#include "core/candidates.h"
#include "core/program.h"
#include "cpu/threads/scratch.h"

namespace resflow::cpu {

// Whether a program's first layers are computed in two parts, the user's and the item's. In int8 rows are rounded
// whole, except in the catalog form, where the items' part is given.
inline bool splits_rows(const Plan& plan, const Candidates& candidates) {
  return candidates.user.exists() && (plan.precision != Precision::int8 || candidates.ids);
}

// Whether a program's calls read users' rows themselves, not only products with them.
inline bool reads_users(const Plan& plan, const Candidates& candidates) {
  return plan.program->reads_row || !splits_rows(plan, candidates);
}

// Floats of a user's row among the user's floats; 0 where nothing reads it.
inline int64_t user_row_floats(const Plan& plan, const Candidates& candidates) {
  return plan.program && reads_users(plan, candidates) ? pad_to_lane(candidates.user_columns) : 0;
}

// Floats of a user: the initial values of first-layer sums [tasks * first_padded()]; of a program the user's row in
// float32, if it is read, and the initial values of the sums of all steps that have user_sums.
inline int64_t user_floats_of(const ScoringCall& call) {
  const Plan& plan = call.model.plan;
  if (!plan.program) return plan.tasks * plan.first_padded();
  const int64_t sums = splits_rows(plan, call.candidates) ? plan.program->user_sums : 0;
  return user_row_floats(plan, call.candidates) + sums;
}

// The floats of all users, [requests][user_floats]; without users those of one, whose first-layer sums are the biases,
// or nothing for a program.
const float* project_users(const ScoringCall& call, int64_t threads, Scratch& scratch);

// Copies rows [count][columns] to float32 [count][stride].
void copy_rows(const Rows& rows, int64_t count, int64_t columns, float* to, int64_t stride);

}  // namespace resflow::cpu
