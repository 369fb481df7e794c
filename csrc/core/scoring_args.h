// The arguments of the model `towers` (contract/ops.def), and how a form's checked inputs become a call of it.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "core/candidates.h"
#include "core/check.h"
#include "core/decode_program.h"

namespace resflow {

using Integers = std::vector<int64_t>;

inline Rows rows_of(const TensorView& matrix) { return {matrix.data, element_of(matrix), matrix.row_stride()}; }

// The plans that the thread has decoded last, the latest first: a server's calls are of one model, or of few.
class DecodedPlans {
 public:
  const Plan& of(const char* op, const Integers& encoded) {
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i]->encoded != encoded) continue;
      if (i > 0) std::rotate(entries_.begin(), entries_.begin() + i, entries_.begin() + i + 1);
      return entries_[0]->plan;
    }
    auto entry = std::make_unique<Entry>();
    entry->plan = decode_plan(op, encoded.data(), static_cast<int64_t>(encoded.size()), &entry->storage);
    entry->encoded = encoded;
    if (entries_.size() == kMost) entries_.pop_back();
    entries_.insert(entries_.begin(), std::move(entry));
    return entries_[0]->plan;
  }

 private:
  struct Entry {
    Integers encoded;
    Plan plan;
    ProgramStorage storage;
  };
  static constexpr size_t kMost = 16;
  std::vector<std::unique_ptr<Entry>> entries_;
};

// A plan, decoded, valid until the thread decodes 16 others.
inline const Plan& decoded(const char* op, const Integers& encoded) {
  thread_local DecodedPlans plans;
  return plans.of(op, encoded);
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
    check_scored(op, plan);
    check_fusion(op, plan.tasks, fusion_weights, fusion, weights_per, candidates, requests);
    check_precision(op, plan, packed.on_device);
    check_packed(op, plan, packed);
  }
};

// What program_outputs is asked for: x [B, in_features].
inline void check_program_outputs(const char* op, const Plan& plan, const TensorView& x, const TensorView& packed) {
  check_program(op, plan);
  check_matrix(op, "x", x, plan.in_features);
  check_precision(op, plan, packed.on_device);
  check_packed(op, plan, packed);
}

// What catalog_rows is asked for: item [M, at most in_features].
inline void check_catalog_rows(const char* op, const Plan& plan, const TensorView& item, const TensorView& packed,
                               int64_t dtype) {
  check_has_catalogs(op, plan, packed.on_device);
  check_side(op, "item", plan, item);
  check_table_dtype(op, dtype);
  check_precision(op, plan, packed.on_device);
  check_packed(op, plan, packed);
}

}  // namespace resflow
