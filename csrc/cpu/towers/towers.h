// The tower ops' kernels on the CPU: `dense_topk`, `request_topk` and every other op whose model is `towers` in
// contract/ops.def end in towers_scores or towers_topk. Inputs have been checked.
#pragma once

#include "core/candidates.h"

namespace resflow::cpu {

void towers_scores(const ScoringCall& call, const ScoresOut& out, int64_t threads);

void towers_topk(const ScoringCall& call, const TopKOut& out, int64_t threads);

// Writes a tile program's outputs [count, output_columns] of rows x [count, in_features].
void program_outputs(const Model& model, const Rows& x, int64_t count, float* outputs, int64_t threads);

// Writes the rows of a table for items [count, Di]: their products with the first layers, rounded to `precision`
// (scales in int8).
void catalog_rows(const Model& model, const Rows& item, int64_t count, int64_t item_columns, Precision precision,
                  void* rows, float* scales, int64_t threads);

// Measured rate of register-only products on `threads` threads at once, in 10^9 operations per second: the peak that
// benchmarks are compared with.
double measure_peak(Precision precision, int64_t threads, double seconds);

}  // namespace resflow::cpu
