#include "core/check_features.h"

#include <algorithm>

#include "core/check.h"
#include "core/error.h"

namespace resflow {
namespace {

std::string place(const std::string& argument, int64_t at) { return argument + "[" + std::to_string(at) + "]"; }

int64_t count_of(const std::vector<TensorView>& tensors) { return static_cast<int64_t>(tensors.size()); }

// The place of a value that an ascending list holds.
int64_t place_in(const std::vector<int64_t>& list, int64_t value) {
  return std::lower_bound(list.begin(), list.end(), value) - list.begin();
}

int64_t ragged_of(const FeatureTables& tables, const FeatureIds& ids) {
  int64_t count = 0;
  for (const int64_t at : tables.ragged) count += at >= ids.first && at < ids.last;
  return count;
}

void check_table_form(const char* op, const std::string& argument, const TensorView& table) {
  if (table.dim != 2) fail(op, argument, expected::any_matrix, sizes_text(table));
  if (!is_table_element(element_of(table))) {
    fail(op, argument, expected::dtype, table.dtype, table_precisions());
  }
  if (table.sizes[0] > 0 && table.sizes[1] > 1 && table.strides[1] != 1) {
    fail(op, argument, expected::unit_stride, strides_text(table));
  }
}

void check_scales(const char* op, const FeatureTables& tables) {
  std::vector<int64_t> rows;
  for (const TensorView& table : tables.tables) {
    if (element_of(table) == Precision::int8) rows.push_back(table.sizes[0]);
  }
  if (tables.scales.size() != rows.size()) {
    fail(op, "scales", expected::scale_count, std::to_string(tables.scales.size()), std::to_string(rows.size()));
  }
  for (size_t at = 0; at < rows.size(); ++at) {
    const TensorView& scales = tables.scales[at];
    const std::string argument = place("scales", static_cast<int64_t>(at));
    if (scales.dim != 1 || scales.sizes[0] != rows[at]) {
      fail(op, argument, expected::vector, sizes_text(scales), std::to_string(rows[at]));
    }
    check_dtype(op, argument, scales, "float32");
    check_vector(op, argument, scales);
  }
}

void check_ragged(const char* op, const FeatureTables& tables) {
  int64_t before = -1;
  for (const int64_t at : tables.ragged) {
    if (at <= before || at >= count_of(tables.tables)) {
      fail(op, "ragged", expected::ragged, list_text(tables.ragged.data(), static_cast<int64_t>(tables.ragged.size())),
           std::to_string(count_of(tables.tables) - 1));
    }
    before = at;
  }
}

void check_pooling(const char* op, const FeatureTables& tables) {
  static constexpr const char* kNames[] = {
#define RESFLOW_POOLING(name) #name,
#include "contract/enums.def"
  };
  const auto& codes = tables.pooling;
  const auto known = [](int64_t code) { return code >= 0 && code < static_cast<int64_t>(Pooling::count); };
  if (codes.empty() || (codes.size() == tables.ragged.size() && std::all_of(codes.begin(), codes.end(), known))) return;
  std::string names;
  for (size_t code = 0; code < std::size(kNames); ++code) {
    names += (code ? " or " : "") + std::to_string(code) + " (" + kNames[code] + ")";
  }
  fail(op, "pooling", expected::pooling, list_text(codes.data(), static_cast<int64_t>(codes.size())), names,
       std::to_string(tables.ragged.size()));
}

void check_padding(const char* op, const FeatureTables& tables) {
  const auto& ids = tables.padding;
  bool holds = ids.empty() || ids.size() == tables.ragged.size();
  for (size_t at = 0; holds && at < ids.size(); ++at) {
    holds = ids[at] >= -1 && ids[at] < tables.tables[tables.ragged[at]].sizes[0];
  }
  if (holds) return;
  fail(op, "padding", expected::padding, list_text(ids.data(), static_cast<int64_t>(ids.size())),
       std::to_string(tables.ragged.size()));
}

void check_list_offsets(const char* op, const std::string& argument, const TensorView& offsets, int64_t total) {
  const auto* const values = offsets.as<int64_t>();
  const int64_t last = offsets.sizes[0] - 1;
  if (values[0] != 0) fail(op, place(argument, 0), expected::offsets_start, std::to_string(values[0]));
  for (int64_t at = 1; at <= last; ++at) {
    if (values[at] < values[at - 1]) {
      fail(op, place(argument, at), expected::offsets_grow,
           std::to_string(values[at]) + " after " + std::to_string(values[at - 1]));
    }
  }
  if (values[last] != total) {
    fail(op, place(argument, last), expected::list_offsets_end, std::to_string(values[last]), std::to_string(total));
  }
}

// Returns the index of the first of `count` ids, `stride` apart, that is no row of the table; `count` if all are. One
// comparison per id: as an unsigned number, a negative id is larger than any valid one.
int64_t first_outside(const int64_t* ids, int64_t count, int64_t stride, int64_t rows) {
  int64_t at = 0;
  while (at < count && static_cast<uint64_t>(ids[at * stride]) < static_cast<uint64_t>(rows)) ++at;
  return at;
}

}  // namespace

bool FeatureTables::is_ragged(int64_t table) const { return std::binary_search(ragged.begin(), ragged.end(), table); }

Pooling FeatureTables::pooling_of(int64_t table) const {
  return pooling.empty() ? Pooling::sum : static_cast<Pooling>(pooling[place_in(ragged, table)]);
}

int64_t FeatureTables::padding_of(int64_t table) const {
  return padding.empty() ? -1 : padding[place_in(ragged, table)];
}

const float* FeatureTables::scales_of(int64_t table) const {
  if (element_of(tables[table]) != Precision::int8) return nullptr;
  int64_t before = 0;
  for (int64_t at = 0; at < table; ++at) before += element_of(tables[at]) == Precision::int8;
  return scales[before].as<float>();
}

void check_feature_tables(const char* op, const Plan& plan, const FeatureTables& tables) {
  if (tables.tables.empty()) fail(op, "tables", expected::tables, "none");
  int64_t columns = 0;
  for (int64_t at = 0; at < count_of(tables.tables); ++at) {
    check_table_form(op, place("tables", at), tables.tables[at]);
    columns += tables.tables[at].sizes[1];
  }
  if (columns != plan.in_features) {
    fail(op, "tables", expected::tables_columns, std::to_string(columns), std::to_string(plan.in_features));
  }
  check_scales(op, tables);
  check_ragged(op, tables);
  check_pooling(op, tables);
  check_padding(op, tables);
}

void check_user_features(const char* op, const FeatureTables& tables, int64_t user_features) {
  const int64_t most = count_of(tables.tables);
  if (user_features >= 0 && user_features <= most) return;
  fail(op, "user_features", expected::user_features, std::to_string(user_features), std::to_string(most));
}

void check_feature_ids(const char* op, const FeatureTables& tables, const FeatureIds& ids) {
  const std::string ids_name = ids.prefix + "ids", values_name = ids.prefix + "values";
  const std::string offsets_name = ids.prefix + "value_offsets";
  const int64_t lists = ragged_of(tables, ids), columns = ids.last - ids.first - lists;
  if (ids.ids.dim != 2 || ids.ids.sizes[1] != columns) {
    fail(op, ids_name, expected::matrix, sizes_text(ids.ids), std::to_string(columns));
  }
  check_dtype(op, ids_name, ids.ids, "int64");
  if (ids.values.dim != 1) fail(op, values_name, expected::vector, sizes_text(ids.values), "ids");
  check_dtype(op, values_name, ids.values, "int64");
  check_vector(op, values_name, ids.values);
  const int64_t offsets = lists * ids.rows() + 1;
  if (ids.value_offsets.dim != 1 || ids.value_offsets.sizes[0] != offsets) {
    fail(op, offsets_name, expected::list_offsets, sizes_text(ids.value_offsets), std::to_string(offsets));
  }
  check_dtype(op, offsets_name, ids.value_offsets, "int64");
  check_vector(op, offsets_name, ids.value_offsets);
  if (!ids.value_weights) return;
  const std::string weights_name = ids.prefix + "value_weights";
  const TensorView& weights = *ids.value_weights;
  if (weights.dim != 1 || weights.sizes[0] != ids.values.sizes[0]) {
    fail(op, weights_name, expected::vector, sizes_text(weights), std::to_string(ids.values.sizes[0]));
  }
  check_dtype(op, weights_name, weights, "float32");
  check_vector(op, weights_name, weights);
}

void check_feature_id_values(const char* op, const FeatureTables& tables, const FeatureIds& ids) {
  if (!ids.ids.readable) return;
  check_list_offsets(op, ids.prefix + "value_offsets", ids.value_offsets, ids.values.sizes[0]);
  const auto* const offsets = ids.value_offsets.as<int64_t>();
  const int64_t rows = ids.rows();
  int64_t column = 0, list = 0;
  for (int64_t table = ids.first; table < ids.last; ++table) {
    const int64_t last = tables.tables[table].sizes[0];
    const bool ragged = tables.is_ragged(table);
    const int64_t begin = ragged ? offsets[list * rows] : column * ids.ids.strides[1];
    const int64_t count = ragged ? offsets[(list + 1) * rows] - begin : rows;
    const int64_t stride = ragged ? 1 : ids.ids.strides[0];
    const int64_t* const values = (ragged ? ids.values : ids.ids).as<int64_t>() + begin;
    const int64_t at = first_outside(values, count, stride, last);
    if (at < count) {
      const std::string argument = ragged
                                       ? place(ids.prefix + "values", begin + at)
                                       : ids.prefix + "ids[" + std::to_string(at) + ", " + std::to_string(column) + "]";
      fail(op, argument, expected::feature_id, std::to_string(values[at * stride]), std::to_string(table),
           std::to_string(last - 1));
    }
    (ragged ? list : column) += 1;
  }
}

}  // namespace resflow
