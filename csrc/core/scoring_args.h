// One scoring call's arguments, checked: what the forms of contract/ops.def make of their inputs, whoever calls.
//
// The order of the checks is that of resflow_kernels/core/checks.py and resflow_kernels/ops.
#pragma once

#include "core/candidates.h"
#include "core/check.h"

namespace resflow {

inline Rows rows_of(const TensorView& matrix) { return {matrix.data, element_of(matrix), matrix.row_stride()}; }

// What every scoring op of towers takes after its inputs. The plan has to outlive the calls made from this.
struct ScoringArgs {
  const char* op;
  const Plan& plan;
  TensorView packed;
  TensorView fusion_weights;
  int64_t fusion;
  int64_t weights_per;

  // x [B, D]
  ScoringCall dense(const TensorView& x) const {
    check_matrix(op, "x", x, plan.in_features);
    return of_rows({rows_of(x), {}}, x.sizes[0]);
  }

  // x [B, D], offsets [R + 1]
  ScoringCall dense_requests(const TensorView& x, const TensorView& offsets) const {
    check_matrix(op, "x", x, plan.in_features);
    return of_requests({rows_of(x), {}}, x.sizes[0], offsets);
  }

  // user [R, Du], item [N, Di], offsets [R + 1]
  ScoringCall user_item(const TensorView& user, const TensorView& item, const TensorView& offsets) const {
    check_matrix(op, "user", user, kAnyColumns);
    check_matrix(op, "item", item, kAnyColumns);
    check_columns_sum(op, plan, user, item);
    ScoringCall call = of_user_rows(user, offsets, item.sizes[0]);
    call.candidates.x = {rows_of(item), {}};
    return call;
  }

  // user [R, Du], ids [N] of rows of table [M, tasks * first_padded()], offsets [R + 1]
  ScoringCall catalog(const TensorView& user, const TensorView& ids, const TensorView& offsets, const TensorView& table,
                      const TensorView& scales) const {
    check_side(op, "user", plan, user);
    check_table(op, plan, table, scales);
    check_ids(op, ids, table.sizes[0]);
    ScoringCall call = of_user_rows(user, offsets, ids.sizes[0]);
    call.candidates.ids = ids.as<int64_t>();
    call.candidates.table = {rows_of(table), scales.sizes[0] > 0 ? scales.as<float>() : nullptr, table.sizes[0]};
    return call;
  }

  // Candidates whose rows are checked already, without requests.
  ScoringCall of_rows(const Source& x, int64_t count) const {
    check_rest(count, kNoRequests);
    Candidates candidates{};
    candidates.x = x;
    candidates.count = count;
    return call_of(candidates);
  }

  // The same, cut into requests.
  ScoringCall of_requests(const Source& x, int64_t count, const TensorView& offsets) const {
    check_offsets(op, offsets, kNoRequests);
    ScoringCall call = of_users(offsets.sizes[0] - 1, offsets, count);
    call.candidates.x = x;
    return call;
  }

  // Candidates of `requests` users, with the user and the items left to fill in.
  ScoringCall of_users(int64_t requests, const TensorView& offsets, int64_t count) const {
    check_offsets(op, offsets, requests);
    check_offset_values(op, offsets, count);
    check_rest(count, requests);
    Candidates candidates{};
    candidates.count = count;
    candidates.offsets = offsets.as<int64_t>();
    candidates.requests = requests;
    return call_of(candidates);
  }

  // What exists of a user without columns: an empty tensor has no address.
  static Source no_user() {
    static const float nothing = 0.0f;
    return {{&nothing, Precision::float32, 0}, {}};
  }

 private:
  ScoringCall of_user_rows(const TensorView& user, const TensorView& offsets, int64_t count) const {
    ScoringCall call = of_users(user.sizes[0], offsets, count);
    call.candidates.user = {rows_of(user), {}};
    if (!call.candidates.user.exists()) call.candidates.user = no_user();
    call.candidates.user_columns = user.sizes[1];
    return call;
  }

  ScoringCall call_of(const Candidates& candidates) const {
    const FusionWeights weights{static_cast<Fusion>(fusion), static_cast<WeightsPer>(weights_per),
                                fusion_weights.as<float>()};
    return {{plan, packed.data}, candidates, weights};
  }

  void check_rest(int64_t candidates, int64_t requests) const {
    check_fusion(op, plan.tasks, fusion_weights, fusion, weights_per, candidates, requests);
    check_precision(op, plan, packed.on_device);
    check_packed(op, plan, packed);
  }
};

// What catalog_rows is asked for: item [M, at most in_features].
inline void check_catalog_rows(const char* op, const Plan& plan, const TensorView& item, const TensorView& packed,
                               int64_t dtype) {
  check_side(op, "item", plan, item);
  check_table_dtype(op, dtype);
  check_precision(op, plan, packed.on_device);
  check_packed(op, plan, packed);
}

}  // namespace resflow
