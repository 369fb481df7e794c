// One scoring call's arguments, checked: the steps the torch ops and the NumPy runtime share.
//
// The order of the checks is that of resflow_kernels/checks.py and ops.py.
#pragma once

#include "core/candidates.h"
#include "core/check.h"

namespace resflow {

struct Request {
  const char* op;
  Plan plan;
  TensorView packed;
  TensorView fusion_weights;
  int64_t fusion;
  int64_t weights_per;
  int64_t threads;

  Model model() const { return {plan, packed.data}; }
  FusionWeights weights() const {
    return {static_cast<Fusion>(fusion), static_cast<WeightsPer>(weights_per), fusion_weights.as<float>()};
  }

  // x [B, D]
  Candidates dense(const TensorView& x) const {
    check_matrix(op, "x", x, plan.in_features);
    check_rest(x.sizes[0], kNoRequests);
    Candidates candidates{};
    candidates.x = {rows_of(x), {}};
    candidates.count = x.sizes[0];
    return candidates;
  }

  // x [B, D], offsets [R + 1]
  Candidates dense_requests(const TensorView& x, const TensorView& offsets, int64_t k) const {
    check_matrix(op, "x", x, plan.in_features);
    check_offsets(op, offsets, kNoRequests);
    check_offset_values(op, offsets, x.sizes[0]);
    const int64_t requests = offsets.sizes[0] - 1;
    check_rest(x.sizes[0], requests);
    check_positive(op, "k", k);
    Candidates candidates{};
    candidates.x = {rows_of(x), {}};
    candidates.count = x.sizes[0];
    candidates.offsets = offsets.as<int64_t>();
    candidates.requests = requests;
    return candidates;
  }

  // user [R, Du], item [N, Di], offsets [R + 1]
  Candidates split(const TensorView& user, const TensorView& item, const TensorView& offsets) const {
    check_matrix(op, "user", user, kAnyColumns);
    check_matrix(op, "item", item, kAnyColumns);
    check_columns_sum(op, plan, user, item);
    Candidates candidates = of_user_rows(user, offsets, item.sizes[0]);
    candidates.x = {rows_of(item), {}};
    return candidates;
  }

  // user [R, Du], ids [N] of rows of table [M, tasks * first_padded()], offsets [R + 1]
  Candidates catalog(const TensorView& user, const TensorView& ids, const TensorView& offsets, const TensorView& table,
                     const TensorView& scales) const {
    check_side(op, "user", plan, user);
    check_table(op, plan, table, scales);
    check_ids(op, ids, table.sizes[0]);
    Candidates candidates = of_user_rows(user, offsets, ids.sizes[0]);
    candidates.ids = ids.as<int64_t>();
    candidates.table = {rows_of(table), scales.sizes[0] > 0 ? scales.as<float>() : nullptr, table.sizes[0]};
    return candidates;
  }

  static Rows rows_of(const TensorView& matrix) { return {matrix.data, element_of(matrix), matrix.row_stride()}; }

  // What exists of a user without columns: an empty tensor has no address.
  static Source no_user() {
    static const float nothing = 0.0f;
    return {{&nothing, Precision::float32, 0}, {}};
  }

  // Candidates of `requests` users, with the user and the items left to fill in.
  Candidates of_users(int64_t requests, const TensorView& offsets, int64_t count) const {
    check_offsets(op, offsets, requests);
    check_offset_values(op, offsets, count);
    check_rest(count, requests);
    Candidates candidates{};
    candidates.count = count;
    candidates.offsets = offsets.as<int64_t>();
    candidates.requests = requests;
    return candidates;
  }

  void check_rest(int64_t candidates, int64_t requests) const {
    check_fusion(op, plan.tasks, fusion_weights, fusion, weights_per, candidates, requests);
    check_precision(op, plan, packed.on_device);
    check_packed(op, plan, packed);
  }

 private:
  Candidates of_user_rows(const TensorView& user, const TensorView& offsets, int64_t count) const {
    Candidates candidates = of_users(user.sizes[0], offsets, count);
    candidates.user = {rows_of(user), {}};
    if (!candidates.user.exists()) candidates.user = no_user();
    candidates.user_columns = user.sizes[1];
    return candidates;
  }
};

// What catalog_rows is asked for: item [M, at most in_features].
inline void check_catalog_rows(const char* op, const Plan& plan, const TensorView& item, const TensorView& packed,
                               int64_t element) {
  check_side(op, "item", plan, item);
  check_element(op, element);
  check_precision(op, plan, packed.on_device);
  check_packed(op, plan, packed);
}

}  // namespace resflow
