// The candidates of a call: checked arguments as plain pointers, in host or device memory.
#pragma once

#include <cstdint>

#include "core/plan.h"

namespace resflow {

// A matrix [rows][columns] of one element type with contiguous rows.
struct Rows {
  const void* data;
  Precision element;
  int64_t stride;  // in elements

  Rows from_column(int64_t column) const {
    return {static_cast<const char*>(data) + column * bytes_of(element), element, stride};
  }
  Rows from(int64_t row) const {
    return {static_cast<const char*>(data) + row * stride * bytes_of(element), element, stride};
  }
};

// One feature of the input row: the embedding-table row that a candidate refers to, or the pooled rows of its list.
struct Feature {
  Rows table;
  int64_t width;
  int64_t rows;         // of the table
  int64_t elements;     // readable elements from the table's first on: loads of a row's tail include what follows it
  const float* scales;  // [rows] of an int8 table, or null

  // Candidate c has ids[c * stride], or a list: ids[offsets[c]] to ids[offsets[c + 1] - 1].
  const int64_t* ids;
  int64_t stride;
  const int64_t* offsets;  // null in a feature of one id
  int64_t listed;          // total number of ids in all lists

  // Of a list. An id that is the padding is left out, and does not count in a mean.
  Pooling pooling;
  int64_t padding;       // -1 for none
  const float* weights;  // [listed], by which rows are multiplied, or null
};

// Concatenated features: input rows of `width` columns.
struct Features {
  const Feature* all;
  int64_t count;
  int64_t width;
};

// A catalog: every item's products with the item columns of all first layers, [items][table_width()].
struct Table {
  Rows rows;
  const float* scales;  // [items] of an int8 table, or null
  int64_t items;
};

// Input rows: in memory, or pooled from the features' tables one tile at a time.
struct Source {
  Rows rows;
  Features features;  // none: the rows are in memory

  constexpr bool pooled() const { return features.count > 0; }
  bool exists() const { return rows.data || pooled(); }
};

// Candidates of the dense form (no user), the request form, or the catalog form (ids instead of x).
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

// Returns the row of the fusion weights that applies to a candidate.
constexpr int64_t weights_row(WeightsPer per, int64_t request, int64_t candidate) {
  static_assert(static_cast<int>(WeightsPer::count) == 3, "a name of contract/enums.def without its row");
  return per == WeightsPer::call ? 0 : per == WeightsPer::request ? request : candidate;
}

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

// One checked call of the towers: the argument of cpu:: and cuda::towers_scores and towers_topk.
struct ScoringCall {
  Model model;
  Candidates candidates;
  FusionWeights weights;

  int64_t tasks() const { return model.plan.tasks; }
  int64_t scored() const { return candidates.count; }
  int64_t request_count() const { return candidates.requests; }
};

// Twin towers: a task's logit is the dot product of the user's vector and the item's.
struct TwinModel {
  int32_t tasks;
  int64_t width;                      // of one task's vectors
  int32_t parents[limit::max_tasks];  // of the logit residual, -1 for none
  bool non_increasing;
};

// Item vectors [items][tasks * width]; int8 ones have scales [items][tasks].
struct TwinTable {
  Rows rows;
  const float* scales;
  int64_t items;
};

// Requests and their candidates: one list of items per request, or (ids is null) every item of the table for every
// request.
struct TwinCall {
  TwinModel model;
  TwinTable table;
  Rows user;  // [requests, tasks * width]
  int64_t requests;
  const int64_t* ids;      // [count]
  const int64_t* offsets;  // [requests + 1]
  int64_t count;           // candidates per request if ids is null, else the total number of ids
  FusionWeights weights;   // "per candidate" means per item if ids is null

  int64_t tasks() const { return model.tasks; }
  int64_t scored() const { return ids ? count : requests * count; }
  int64_t request_count() const { return requests; }
};

// Outputs of a call that ends in scores.
struct ScoresOut {
  float* logits;  // [candidates, tasks]; on a GPU, logits and probs are both null if they are not needed
  float* probs;   // [candidates, tasks]
  float* score;   // [candidates]
};

// Outputs of a call that ends in the k best of each request.
struct TopKOut {
  int64_t k;
  float* scores;       // [requests, k]
  int64_t* positions;  // [requests, k]
};

}  // namespace resflow
