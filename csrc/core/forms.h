// The forms of contract/ops.def: the inputs of each, in the order of its row, and how they become a checked call. A row
// without its struct does not compile. A form object must outlive the call that it made.
//
// The order of the checks is that of resflow_kernels/core/checks.py and resflow_kernels/ops.
#pragma once

#include "core/feature_form.h"
#include "core/twin_args.h"

namespace resflow::forms {

using Views = std::vector<TensorView>;

// x [B, D], offsets [R + 1]
struct dense {
  ScoringCall parse(const ScoringArgs& args, const TensorView& x) {
    check_matrix(args.op, "x", x, args.plan.in_features);
    return args.of_rows({rows_of(x), {}}, x.sizes[0]);
  }
  ScoringCall parse(const ScoringArgs& args, const TensorView& x, const TensorView& offsets) {
    check_matrix(args.op, "x", x, args.plan.in_features);
    return args.of_requests({rows_of(x), {}}, x.sizes[0], offsets);
  }
};

// user [R, Du], item [N, Di], offsets [R + 1]
struct request {
  ScoringCall parse(const ScoringArgs& args, const TensorView& user, const TensorView& item,
                    const TensorView& offsets) {
    check_matrix(args.op, "user", user, kAnyColumns);
    check_matrix(args.op, "item", item, kAnyColumns);
    check_columns_sum(args.op, args.plan, user, item);
    ScoringCall call = args.of_user_rows(user, offsets, item.sizes[0]);
    call.candidates.x = {rows_of(item), {}};
    return call;
  }
};

// user [R, Du], ids [N] of rows of table [M, table_width()], offsets [R + 1]
struct catalog {
  ScoringCall parse(const ScoringArgs& args, const TensorView& user, const TensorView& ids, const TensorView& offsets,
                    const TensorView& table, const TensorView& scales) {
    check_has_catalogs(args.op, args.plan, args.packed.on_device);
    check_side(args.op, "user", args.plan, user);
    check_table(args.op, args.plan, args.plan.in_features - user.sizes[1], table, scales);
    check_ids(args.op, ids, table.sizes[0]);
    ScoringCall call = args.of_user_rows(user, offsets, ids.sizes[0]);
    call.candidates.ids = ids.as<int64_t>();
    call.candidates.table = {rows_of(table), scales.sizes[0] > 0 ? scales.as<float>() : nullptr, table.sizes[0]};
    return call;
  }
};

using OptionalView = std::optional<TensorView>;

// See FeatureTables and FeatureIds.
struct feature : FeatureForm {
  ScoringCall parse(const ScoringArgs& args, const TensorView& ids, const TensorView& values,
                    const TensorView& value_offsets, const Views& tables, const Views& scales, const Integers& ragged,
                    const OptionalView& value_weights, const Integers& pooling, const Integers& padding) {
    const Source x = checked(args, {tables, scales, ragged, pooling, padding},
                             {"", ids, values, value_offsets, value_weights, 0, 0});
    return args.of_rows(x, ids.sizes[0]);
  }
  ScoringCall parse(const ScoringArgs& args, const TensorView& ids, const TensorView& values,
                    const TensorView& value_offsets, const Views& tables, const Views& scales, const Integers& ragged,
                    const TensorView& offsets, const OptionalView& value_weights, const Integers& pooling,
                    const Integers& padding) {
    const Source x = checked(args, {tables, scales, ragged, pooling, padding},
                             {"", ids, values, value_offsets, value_weights, 0, 0});
    return args.of_requests(x, ids.sizes[0], offsets);
  }

 private:
  Source checked(const ScoringArgs& args, const FeatureTables& tables, FeatureIds ids) {
    check_feature_tables(args.op, args.plan, tables);
    ids.last = tables.count();
    check_ids(args, tables, ids);
    return source_of(tables, ids);
  }
};

// The first `user_features` tables are looked up once per request.
struct feature_request : FeatureForm {
  ScoringCall parse(const ScoringArgs& args, const TensorView& user_ids, const TensorView& user_values,
                    const TensorView& user_value_offsets, const TensorView& item_ids, const TensorView& item_values,
                    const TensorView& item_value_offsets, const TensorView& offsets, const Views& tables,
                    const Views& scales, const Integers& ragged, int64_t user_features,
                    const OptionalView& user_value_weights, const OptionalView& item_value_weights,
                    const Integers& pooling, const Integers& padding) {
    const FeatureTables all{tables, scales, ragged, pooling, padding};
    check_feature_tables(args.op, args.plan, all);
    check_user_features(args.op, all, user_features);
    const FeatureIds user{"user_", user_ids, user_values, user_value_offsets, user_value_weights, 0, user_features};
    const FeatureIds item{"item_",       item_ids,   item_values, item_value_offsets, item_value_weights,
                          user_features, all.count()};
    check_ids(args, all, user);
    check_ids(args, all, item);
    ScoringCall call = args.of_users(user.rows(), offsets, item.rows());
    call.candidates.x = source_of(all, item);
    const Source user_source = source_of(all, user);
    ScoringArgs::set_user(call.candidates, user_source, user_source.features.width);
    return call;
  }
};

// user [R, tasks * width], table [M, tasks * width]: all items for every request.
struct twin {
  TwinCall parse(const TwinArgs& args, const TensorView& user, const TensorView& table, const TensorView& scales) {
    TwinCall call = args.of_vectors(user, table, scales);
    call.count = call.table.items;
    return args.weighed(call);
  }
};

// Like twin, for ids [N] of rows of the table and offsets [R + 1].
struct twin_ids {
  TwinCall parse(const TwinArgs& args, const TensorView& user, const TensorView& ids, const TensorView& offsets,
                 const TensorView& table, const TensorView& scales) {
    TwinCall call = args.of_vectors(user, table, scales);
    check_ids(args.op, ids, call.table.items);
    check_offsets(args.op, offsets, call.requests);
    check_offset_values(args.op, offsets, ids.sizes[0]);
    call.count = ids.sizes[0];
    // Null would mean all items, and an empty tensor has no address.
    static const int64_t no_ids = 0;
    call.ids = ids.data ? ids.as<int64_t>() : &no_ids;
    call.offsets = offsets.as<int64_t>();
    return args.weighed(call);
  }
};

}  // namespace resflow::forms
