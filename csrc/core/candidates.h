// What is scored: checked arguments as plain pointers, on whatever device they lie.
#pragma once

#include <cstdint>

#include "core/plan.h"

namespace resflow {

// Rows [rows][columns] of one kind.
struct Rows {
  const void* data;
  Precision element;
  int64_t stride;  // in elements

  Rows from(int64_t row) const {
    return {static_cast<const char*>(data) + row * stride * bytes_of(element), element, stride};
  }
};

// A feature of the input row: which rows of an embedding table a candidate has, summed.
struct Feature {
  Rows table;
  int64_t width;
  int64_t rows;         // of the table
  int64_t elements;     // from the table's first on that may be read: a row's tail is loaded with what follows it
  const float* scales;  // [rows] of an int8 table, or null

  // Candidate c has ids[c * stride], or a list: ids[offsets[c]] to ids[offsets[c + 1] - 1].
  const int64_t* ids;
  int64_t stride;
  const int64_t* offsets;  // null in a feature of one id
  int64_t listed;          // ids in all lists
};

// Features side by side: rows of `width` columns.
struct Features {
  const Feature* all;
  int64_t count;
  int64_t width;
};

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

  constexpr bool pooled() const { return features.count > 0; }
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

// Which row of the fusion weights is a candidate's.
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

// One call of the towers, checked: what cpu:: and cuda::towers_scores and towers_topk take.
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

// Requests and their candidates: the items of a list each, or (ids is null) every item of the table for every request.
struct TwinCall {
  TwinModel model;
  TwinTable table;
  Rows user;  // [requests, tasks * width]
  int64_t requests;
  const int64_t* ids;      // [count]
  const int64_t* offsets;  // [requests + 1]
  int64_t count;           // of candidates a request, or of ids in all
  FusionWeights weights;   // a candidate's: its item's where ids is null

  int64_t tasks() const { return model.tasks; }
  int64_t scored() const { return ids ? count : requests * count; }
  int64_t request_count() const { return requests; }
};

// What a call that ends in scores writes.
struct ScoresOut {
  float* logits;  // [candidates, tasks]; on a GPU null together with the next, if nobody asks for them
  float* probs;   // [candidates, tasks]
  float* score;   // [candidates]
};

// What a call that ends in the k best of each request writes.
struct TopKOut {
  int64_t k;
  float* scores;       // [requests, k]
  int64_t* positions;  // [requests, k]
};

}  // namespace resflow
