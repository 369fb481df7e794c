// The feature form's inputs, checked and made into candidates; see scoring_args.h.
#pragma once

#include <vector>

#include "core/check_features.h"
#include "core/scoring_args.h"

namespace resflow {

class FeatureForm {
 public:
  // Candidates of one id or list a feature. The calls point into this object.
  ScoringCall dense(const ScoringArgs& args, const FeatureTables& tables, FeatureIds ids) {
    check_feature_tables(args.op, args.plan, tables);
    ids.last = tables.count();
    check_ids(args, tables, ids);
    return args.of_rows(source_of(tables, ids, features_), ids.rows());
  }

  ScoringCall dense_requests(const ScoringArgs& args, const FeatureTables& tables, FeatureIds ids,
                             const TensorView& offsets) {
    check_feature_tables(args.op, args.plan, tables);
    ids.last = tables.count();
    check_ids(args, tables, ids);
    return args.of_requests(source_of(tables, ids, features_), ids.rows(), offsets);
  }

  // The first `user_features` tables are looked up once per request.
  ScoringCall user_item(const ScoringArgs& args, const FeatureTables& tables, FeatureIds user, FeatureIds item,
                        const TensorView& offsets, int64_t user_features) {
    check_feature_tables(args.op, args.plan, tables);
    check_user_features(args.op, tables, user_features);
    user.last = item.first = user_features;
    item.last = tables.count();
    check_ids(args, tables, user);
    check_ids(args, tables, item);
    ScoringCall call = args.of_users(user.rows(), offsets, item.rows());
    Candidates& candidates = call.candidates;
    candidates.x = source_of(tables, item, features_);
    candidates.user = source_of(tables, user, user_features_);
    candidates.user_columns = candidates.user.features.width;
    if (!candidates.user.exists()) candidates.user = ScoringArgs::no_user();
    return call;
  }

 private:
  static void check_ids(const ScoringArgs& args, const FeatureTables& tables, const FeatureIds& ids) {
    check_feature_ids(args.op, tables, ids);
    check_feature_id_values(args.op, tables, ids);
  }

  static Source source_of(const FeatureTables& tables, const FeatureIds& ids, std::vector<Feature>& features) {
    int64_t column = 0, list = 0, width = 0;
    for (int64_t table = ids.first; table < ids.last; ++table) {
      features.push_back(feature_of(tables, ids, table, column, list));
      width += features.back().width;
      (tables.is_ragged(table) ? list : column) += 1;
    }
    return {{}, {features.data(), static_cast<int64_t>(features.size()), width}};
  }

  static Feature feature_of(const FeatureTables& tables, const FeatureIds& ids, int64_t table, int64_t column,
                            int64_t list) {
    const TensorView& view = tables.tables[table];
    const Rows rows = rows_of(view);
    const int64_t width = view.sizes[1];
    // A negative stride (NumPy has them) leads to lower addresses: the first row's end is the last that may be read.
    const int64_t elements = width + (view.sizes[0] > 0 && rows.stride > 0 ? (view.sizes[0] - 1) * rows.stride : 0);
    Feature feature{rows, width, view.sizes[0], elements, tables.scales_of(table), nullptr, 0, nullptr, 0};
    if (tables.is_ragged(table)) {
      feature.ids = ids.values.as<int64_t>();
      feature.listed = ids.values.sizes[0];
      feature.offsets = ids.value_offsets.as<int64_t>() + list * ids.rows();
    } else {
      feature.ids = ids.ids.as<int64_t>() + column * ids.ids.strides[1];
      feature.stride = ids.ids.strides[0];
    }
    return feature;
  }

  std::vector<Feature> features_, user_features_;
};

}  // namespace resflow
