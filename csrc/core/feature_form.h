// The part that both feature forms (forms.h) share: checked ids become the features that a row of input is pooled from.
#pragma once

#include <vector>

#include "core/check_features.h"
#include "core/scoring_args.h"

namespace resflow {

// Calls hold pointers into this object.
class FeatureForm {
 protected:
  static void check_ids(const ScoringArgs& args, const FeatureTables& tables, const FeatureIds& ids) {
    check_feature_ids(args.op, tables, ids);
    check_feature_id_values(args.op, tables, ids);
  }

  // Returns the pooled rows of candidates, or of users, given their ids.
  Source source_of(const FeatureTables& tables, const FeatureIds& ids) {
    std::vector<Feature>& features = features_.emplace_back();
    int64_t column = 0, list = 0, width = 0;
    for (int64_t table = ids.first; table < ids.last; ++table) {
      features.push_back(feature_of(tables, ids, table, column, list));
      width += features.back().width;
      (tables.is_ragged(table) ? list : column) += 1;
    }
    return {{}, {features.data(), static_cast<int64_t>(features.size()), width}};
  }

 private:
  static Feature feature_of(const FeatureTables& tables, const FeatureIds& ids, int64_t table, int64_t column,
                            int64_t list) {
    const TensorView& view = tables.tables[table];
    const Rows rows = rows_of(view);
    const int64_t width = view.sizes[1];
    // A negative stride (possible in NumPy) leads to lower addresses: nothing past the first row's end may be read.
    const int64_t elements = width + (view.sizes[0] > 0 && rows.stride > 0 ? (view.sizes[0] - 1) * rows.stride : 0);
    Feature feature{rows,         width, view.sizes[0], elements, tables.scales_of(table), nullptr, 0, nullptr, 0,
                    Pooling::sum, -1,    nullptr};
    if (tables.is_ragged(table)) {
      feature.ids = ids.values.as<int64_t>();
      feature.listed = ids.values.sizes[0];
      feature.offsets = ids.value_offsets.as<int64_t>() + list * ids.rows();
      feature.pooling = tables.pooling_of(table);
      feature.padding = tables.padding_of(table);
      feature.weights = ids.value_weights ? ids.value_weights->as<float>() : nullptr;
    } else {
      feature.ids = ids.ids.as<int64_t>() + column * ids.ids.strides[1];
      feature.stride = ids.ids.strides[0];
    }
    return feature;
  }

  std::vector<std::vector<Feature>> features_;  // one element per side: candidates, users
};

}  // namespace resflow
