// The tower ops' kernels on a GPU: `dense_topk`, `request_topk` and every other op whose model is `towers` in
// contract/ops.def end in towers_scores or towers_topk. Arguments have been checked; pointers are device memory, except
// Features::all, which is in host memory.
#pragma once

#include "core/candidates.h"
#include "cuda/device/queue.h"

namespace resflow::cuda {

void towers_scores(const ScoringCall& call, const ScoresOut& out, Queue& queue);

// The scores are in the workspace meanwhile, 4 bytes per candidate.
void towers_topk(const ScoringCall& call, const TopKOut& out, Queue& queue);

// Writes a tile program's outputs [count, output_columns] of rows x [count, in_features].
void program_outputs(const Model& model, const Rows& x, int64_t count, float* outputs, Queue& queue);

// Writes the rows of a table for items [count, item_columns], the last columns of input rows: their products with the
// first layers, rounded to `precision` (scales in int8).
void catalog_rows(const Model& model, const Rows& item, int64_t count, int64_t item_columns, Precision precision,
                  void* rows, float* scales, Queue& queue);

}  // namespace resflow::cuda
