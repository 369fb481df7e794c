// Scoring on the CPU: what the torch ops and the NumPy runtime both call. Inputs have been checked.
#pragma once

#include "cpu/kernels.h"

namespace resflow::cpu {

// A catalogue: every item's products with the item's side of all first layers, [items][tasks * first_padded()].
struct Table {
  Rows rows;
  const float* scales;  // [items] of an int8 table, or null
  int64_t items;
};

// Input rows: in memory, or features pooled from their tables, a tile at a time.
struct Source {
  Rows rows;
  Features features;  // none: the rows are in memory

  bool pooled() const { return features.count > 0; }
  bool exists() const { return rows.data || pooled(); }
};

// Candidates of the dense form (no user), the request form, or the catalogue form (ids instead of x).
struct Candidates {
  Source x;  // [count, D], or the items [count, Di]
  int64_t count;
  Source user;  // [requests, user_columns]; does not exist in the dense form
  int64_t user_columns;
  const int64_t* offsets;  // [requests + 1]; null if there are no requests
  int64_t requests;
  const int64_t* ids;  // [count] rows of the table; null in the other forms
  Table table;
};

struct FusionWeights {
  Fusion fusion;
  WeightsPer per;
  const float* values;  // [count] or [rows, count], contiguous
};

struct Model {
  const Plan& plan;
  const void* packed;

  const float* weights() const {
    return reinterpret_cast<const float*>(static_cast<const char*>(packed) + kHeaderBytes);
  }
};

// Writes logits [count, K], probs [count, K] and score [count].
void score(const Model& model, const Candidates& candidates, const FusionWeights& weights, int64_t threads,
           float* logits, float* probs, float* score);

// Writes the k best of each request: scores [requests, k], positions [requests, k].
void score_topk(const Model& model, const Candidates& candidates, const FusionWeights& weights, int64_t threads,
                int64_t k, float* scores, int64_t* positions);

// Writes the rows of a table for items [count, Di]: their products, rounded to `element` (scales in int8).
void project_items(const Model& model, const Rows& item, int64_t count, int64_t item_columns, int64_t threads,
                   Precision element, void* rows, float* scales);

// Measured rate of register-only products on `threads` threads at once, in 10^9 operations a second: the peak that
// benchmarks are held against.
double measure_peak(Precision precision, int64_t threads, double seconds);

}  // namespace resflow::cpu
