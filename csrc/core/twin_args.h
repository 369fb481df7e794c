// One twin tower call's arguments, checked; see scoring_args.h.
#pragma once

#include "core/scoring_args.h"

namespace resflow {

// What every scoring op of twins takes after its inputs.
struct TwinArgs {
  const char* op;
  TensorView fusion_weights;
  const int64_t* parents;
  int64_t tasks;
  bool non_increasing;
  int64_t fusion;
  int64_t weights_per;

  // All items of the table for every request.
  TwinCall all(const TensorView& user, const TensorView& table, const TensorView& scales) const {
    TwinCall call = of_vectors(user, table, scales);
    call.count = call.table.items;
    check_weights(call);
    return call;
  }

  // ids [N] of rows of the table, offsets [R + 1].
  TwinCall listed(const TensorView& user, const TensorView& ids, const TensorView& offsets, const TensorView& table,
                  const TensorView& scales) const {
    TwinCall call = of_vectors(user, table, scales);
    check_ids(op, ids, call.table.items);
    check_offsets(op, offsets, call.requests);
    check_offset_values(op, offsets, ids.sizes[0]);
    call.count = ids.sizes[0];
    check_weights(call);
    // Null would mean all items: an empty tensor has no address.
    static const int64_t no_ids = 0;
    call.ids = ids.data ? ids.as<int64_t>() : &no_ids;
    call.offsets = offsets.as<int64_t>();
    return call;
  }

 private:
  TwinCall of_vectors(const TensorView& user, const TensorView& table, const TensorView& scales) const {
    check_twin_parents(op, parents, tasks);
    check_twin_table(op, tasks, table, scales);
    check_matrix(op, "user", user, table.sizes[1]);
    TwinCall call{};
    call.model.tasks = static_cast<int32_t>(tasks);
    call.model.width = table.sizes[1] / tasks;
    for (int64_t k = 0; k < tasks; ++k) call.model.parents[k] = static_cast<int32_t>(parents[k]);
    call.model.non_increasing = non_increasing;
    call.table = {rows_of(table), scales.sizes[0] > 0 ? scales.as<float>() : nullptr, table.sizes[0]};
    call.user = rows_of(user);
    call.requests = user.sizes[0];
    call.weights = {static_cast<Fusion>(fusion), static_cast<WeightsPer>(weights_per), fusion_weights.as<float>()};
    return call;
  }

  void check_weights(const TwinCall& call) const {
    check_fusion(op, tasks, fusion_weights, fusion, weights_per, call.count, call.requests);
  }
};

// What twin_rows is asked for.
inline void check_twin_rows(const char* op, const TensorView& vectors, int64_t tasks, int64_t dtype) {
  check_matrix(op, "vectors", vectors, kAnyColumns);
  check_task_count(op, tasks);
  check_task_columns(op, "vectors", vectors, tasks);
  check_table_dtype(op, dtype);
}

}  // namespace resflow
