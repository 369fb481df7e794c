// One twin tower call's arguments, checked: the steps the torch ops and the NumPy runtime share.
//
// The order of the checks is that of resflow_kernels/_twin_ops.py.
#pragma once

#include "core/check.h"
#include "core/request.h"

namespace resflow {

struct TwinRequest {
  const char* op;
  TensorView user;
  TensorView table;
  TensorView scales;
  TensorView fusion_weights;
  const int64_t* parents;
  int64_t tasks;
  bool non_increasing;
  int64_t fusion;
  int64_t weights_per;
  int64_t threads;

  // All items of the table for every request.
  TwinCall all() const {
    TwinCall call = checked_vectors();
    call.count = call.table.items;
    check_weights(call);
    return call;
  }

  // ids [N] of rows of the table, offsets [R + 1].
  TwinCall listed(const TensorView& ids, const TensorView& offsets) const {
    TwinCall call = checked_vectors();
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
  TwinCall checked_vectors() const {
    check_twin_parents(op, parents, tasks);
    check_twin_table(op, tasks, table, scales);
    check_matrix(op, "user", user, table.sizes[1]);
    TwinCall call{};
    call.model.tasks = static_cast<int32_t>(tasks);
    call.model.width = table.sizes[1] / tasks;
    for (int64_t k = 0; k < tasks; ++k) call.model.parents[k] = static_cast<int32_t>(parents[k]);
    call.model.non_increasing = non_increasing;
    call.table = {Request::rows_of(table), scales.sizes[0] > 0 ? scales.as<float>() : nullptr, table.sizes[0]};
    call.user = Request::rows_of(user);
    call.requests = user.sizes[0];
    call.weights = {static_cast<Fusion>(fusion), static_cast<WeightsPer>(weights_per), fusion_weights.as<float>()};
    call.threads = threads;
    return call;
  }

  void check_weights(const TwinCall& call) const {
    check_fusion(op, tasks, fusion_weights, fusion, weights_per, call.count, call.requests);
  }
};

// What twin_rows is asked for.
inline void check_twin_rows(const char* op, const TensorView& vectors, int64_t tasks, int64_t element) {
  check_matrix(op, "vectors", vectors, kAnyColumns);
  check_task_count(op, tasks);
  check_task_columns(op, "vectors", vectors, tasks);
  check_element(op, element);
}

}  // namespace resflow
