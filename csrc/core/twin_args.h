// The arguments of the model `twin` (contract/ops.def), and how a form's checked inputs become a call of it.
#pragma once

#include "core/scoring_args.h"

namespace resflow {

struct TwinArgs {
  // The op's name, followed by the arguments in the order of the model's row.
  const char* op;
  TensorView fusion_weights;
  const Integers& parents;
  bool non_increasing;
  int64_t fusion;
  int64_t weights_per;

  int64_t tasks() const { return static_cast<int64_t>(parents.size()); }

  // A call for users and items; the caller fills in the candidates.
  TwinCall of_vectors(const TensorView& user, const TensorView& table, const TensorView& scales) const {
    check_twin_parents(op, parents.data(), tasks());
    check_twin_table(op, tasks(), table, scales);
    check_matrix(op, "user", user, table.sizes[1]);
    TwinCall call{};
    call.model.tasks = static_cast<int32_t>(tasks());
    call.model.width = table.sizes[1] / tasks();
    for (int64_t k = 0; k < tasks(); ++k) call.model.parents[k] = static_cast<int32_t>(parents[k]);
    call.model.non_increasing = non_increasing;
    call.table = {rows_of(table), scales.sizes[0] > 0 ? scales.as<float>() : nullptr, table.sizes[0]};
    call.user = rows_of(user);
    call.requests = user.sizes[0];
    call.weights = {static_cast<Fusion>(fusion), static_cast<WeightsPer>(weights_per), fusion_weights.as<float>()};
    return call;
  }

  // Returns the call after checking the fusion weights for its candidates.
  TwinCall weighed(const TwinCall& call) const {
    check_fusion(op, tasks(), fusion_weights, fusion, weights_per, call.count, call.requests);
    return call;
  }
};

// Checks the arguments of twin_rows.
inline void check_twin_rows(const char* op, const TensorView& vectors, int64_t tasks, int64_t dtype) {
  check_matrix(op, "vectors", vectors, kAnyColumns);
  check_task_count(op, tasks);
  check_task_columns(op, "vectors", vectors, tasks);
  check_table_dtype(op, dtype);
}

}  // namespace resflow
