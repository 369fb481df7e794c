// Checks of the feature form's inputs; see check.h.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/plan.h"
#include "core/tensor_view.h"

namespace resflow {

// The tables of all features in the order of the input row's columns; those at `ragged` places take lists of ids, each
// with a code of Pooling and a padding id (-1 for none). No codes: all are summed; no paddings: none has one.
struct FeatureTables {
  std::vector<TensorView> tables, scales;
  const std::vector<int64_t>&ragged, &pooling, &padding;

  int64_t count() const { return static_cast<int64_t>(tables.size()); }
  bool is_ragged(int64_t table) const;
  // Of a ragged table.
  Pooling pooling_of(int64_t table) const;
  int64_t padding_of(int64_t table) const;
  // The scales of an int8 table, or null.
  const float* scales_of(int64_t table) const;
};

// The ids by which candidates (or users) look up tables `first` to `last`: ids [rows, features that are not ragged],
// and for the ragged features values [total] and value_offsets [lists * rows + 1], first the lists of the first ragged
// feature, then those of the next. Every value may have a weight. Messages put `prefix` before the arguments' names.
struct FeatureIds {
  std::string prefix;
  TensorView ids, values, value_offsets;
  std::optional<TensorView> value_weights;
  int64_t first, last;

  int64_t rows() const { return ids.sizes[0]; }
};

// Checks tables [rows, width] of any table precision that make up the plan's input row, the scales of int8 ones, one
// per row, and how lists are pooled.
void check_feature_tables(const char* op, const Plan& plan, const FeatureTables& tables);

// Checks shapes and dtypes, that the offsets partition the values, and that no id is outside its table.
void check_feature_ids(const char* op, const FeatureTables& tables, const FeatureIds& ids);
void check_feature_id_values(const char* op, const FeatureTables& tables, const FeatureIds& ids);

void check_user_features(const char* op, const FeatureTables& tables, int64_t user_features);

}  // namespace resflow
