// The feature form's arguments, checked and made into candidates; see request.h.
#pragma once

#include <vector>

#include "core/check_features.h"
#include "core/request.h"

namespace resflow {

class FeatureForm {
 public:
  FeatureForm(const Request& request, const FeatureTables& tables) : request_(request), tables_(tables) {
    check_feature_tables(request.op, request.plan, tables);
  }

  int64_t count() const { return static_cast<int64_t>(tables_.tables.size()); }

  // Candidates of one id or list a feature. They point into this object.
  Candidates dense(const FeatureIds& ids) {
    check_ids(ids);
    request_.check_rest(ids.rows(), kNoRequests);
    return candidates_of(ids);
  }

  Candidates dense_requests(const FeatureIds& ids, const TensorView& offsets, int64_t k) {
    check_ids(ids);
    check_offsets(request_.op, offsets, kNoRequests);
    check_offset_values(request_.op, offsets, ids.rows());
    const int64_t requests = offsets.sizes[0] - 1;
    request_.check_rest(ids.rows(), requests);
    check_positive(request_.op, "k", k);
    Candidates candidates = candidates_of(ids);
    candidates.offsets = offsets.as<int64_t>();
    candidates.requests = requests;
    return candidates;
  }

  // The first `user_features` tables are looked up once a request.
  Candidates split(FeatureIds user, FeatureIds item, const TensorView& offsets, int64_t user_features) {
    check_user_features(request_.op, tables_, user_features);
    user.last = item.first = user_features;
    check_ids(user);
    check_ids(item);
    Candidates candidates = request_.of_users(user.rows(), offsets, item.rows());
    candidates.x = source_of(item, features_);
    candidates.user = source_of(user, user_features_);
    candidates.user_columns = candidates.user.features.width;
    if (!candidates.user.exists()) candidates.user = Request::no_user();
    return candidates;
  }

 private:
  void check_ids(const FeatureIds& ids) const {
    check_feature_ids(request_.op, tables_, ids);
    check_feature_id_values(request_.op, tables_, ids);
  }

  Candidates candidates_of(const FeatureIds& ids) {
    Candidates candidates{};
    candidates.x = source_of(ids, features_);
    candidates.count = ids.rows();
    return candidates;
  }

  Source source_of(const FeatureIds& ids, std::vector<Feature>& features) const {
    int64_t column = 0, list = 0, width = 0;
    for (int64_t table = ids.first; table < ids.last; ++table) {
      features.push_back(feature_of(ids, table, column, list));
      width += features.back().width;
      (tables_.is_ragged(table) ? list : column) += 1;
    }
    return {{}, {features.data(), static_cast<int64_t>(features.size()), width}};
  }

  Feature feature_of(const FeatureIds& ids, int64_t table, int64_t column, int64_t list) const {
    const TensorView& view = tables_.tables[table];
    const Rows rows = Request::rows_of(view);
    const int64_t width = view.sizes[1];
    // A negative stride (NumPy has them) leads to lower addresses: the first row's end is the last that may be read.
    const int64_t elements = width + (view.sizes[0] > 0 && rows.stride > 0 ? (view.sizes[0] - 1) * rows.stride : 0);
    Feature feature{rows, width, view.sizes[0], elements, tables_.scales_of(table), nullptr, 0, nullptr, 0};
    if (tables_.is_ragged(table)) {
      feature.ids = ids.values.as<int64_t>();
      feature.listed = ids.values.sizes[0];
      feature.offsets = ids.value_offsets.as<int64_t>() + list * ids.rows();
    } else {
      feature.ids = ids.ids.as<int64_t>() + column * ids.ids.strides[1];
      feature.stride = ids.ids.strides[0];
    }
    return feature;
  }

  const Request& request_;
  const FeatureTables& tables_;
  std::vector<Feature> features_, user_features_;
};

}  // namespace resflow
