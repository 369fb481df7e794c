// The arguments of the model `towers` (contract/ops.def), and how a form's checked inputs become a call of it.
#pragma once

#include <vector>

#include "core/candidates.h"
#include "core/check.h"

namespace resflow {

using Integers = std::vector<int64_t>;

inline Rows rows_of(const TensorView& matrix) { return {matrix.data, element_of(matrix), matrix.row_stride()}; }

// The plan that this thread decoded last, valid until its next call: a server's calls are usually of one model.
inline const Plan& decoded(const char* op, const Integers& encoded) {
  thread_local Integers last;
  thread_local Plan plan;
  if (encoded != last || last.empty()) {
    last.clear();
    plan = decode_plan(op, encoded.data(), static_cast<int64_t>(encoded.size()));
    last = encoded;
  }
  return plan;
}

struct ScoringArgs {
  // The arguments are in the order of the model's row.
  ScoringArgs(const char* op, const TensorView& packed, const TensorView& fusion_weights, const Integers& plan,
              int64_t fusion, int64_t weights_per)
      : op(op),
        plan(decoded(op, plan)),
        packed(packed),
        fusion_weights(fusion_weights),
        fusion(fusion),
        weights_per(weights_per) {}

  const char* op;
  const Plan& plan;
  TensorView packed;
  TensorView fusion_weights;
  int64_t fusion;
  int64_t weights_per;

  // A call for candidates whose rows are already checked, without requests.
  ScoringCall of_rows(const Source& x, int64_t count) const {
    check_rest(count, kNoRequests);
    Candidates candidates{};
    candidates.x = x;
    candidates.count = count;
    return call_of(candidates);
  }

  // The same, divided into requests.
  ScoringCall of_requests(const Source& x, int64_t count, const TensorView& offsets) const {
    check_offsets(op, offsets, kNoRequests);
    ScoringCall call = of_users(offsets.sizes[0] - 1, offsets, count);
    call.candidates.x = x;
    return call;
  }

  // A call for candidates of `requests` users; the caller fills in the user and the items.
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

  // A call for candidates of users whose rows, checked as matrices, are in memory.
  ScoringCall of_user_rows(const TensorView& user, const TensorView& offsets, int64_t count) const {
    ScoringCall call = of_users(user.sizes[0], offsets, count);
    set_user(call.candidates, {rows_of(user), {}}, user.sizes[1]);
    return call;
  }

  static void set_user(Candidates& candidates, const Source& user, int64_t columns) {
    // A user without columns exists all the same, but an empty tensor has no address: this one stands for it.
    static const float nothing = 0.0f;
    candidates.user = user.exists() ? user : Source{{&nothing, Precision::float32, 0}, {}};
    candidates.user_columns = columns;
  }

 private:
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

// Checks the arguments of catalog_rows; item is [M, at most in_features].
inline void check_catalog_rows(const char* op, const Plan& plan, const TensorView& item, const TensorView& packed,
                               int64_t dtype) {
  check_side(op, "item", plan, item);
  check_table_dtype(op, dtype);
  check_precision(op, plan, packed.on_device);
  check_packed(op, plan, packed);
}

}  // namespace resflow
