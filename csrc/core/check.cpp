#include "core/check.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "core/pack.h"
#include "core/program.h"

namespace resflow {
namespace {

constexpr const char* kPerNames[] = {
#define RESFLOW_WEIGHTS_PER(name) #name,
#include "contract/enums.def"
};

struct NamedPrecision {
  Precision precision;
  const char* name;
};
constexpr NamedPrecision kPrecisions[] = {
#define RESFLOW_PRECISION(name, code, bytes, flags) {Precision::name, #name},
#include "contract/enums.def"
};

const char* name_of(Precision precision) {
  for (const NamedPrecision& one : kPrecisions) {
    if (one.precision == precision) return one.name;
  }
  return "unknown";
}

// Lists the precisions that have any of the flags, for example "float32, bfloat16".
std::string names_with(uint32_t flags, const char* before_last = ", ") {
  std::vector<std::string> names;
  for (const NamedPrecision& one : kPrecisions) {
    if (has(one.precision, flags)) names.emplace_back(one.name);
  }
  std::string text;
  for (size_t at = 0; at < names.size(); ++at) {
    if (at > 0) text += at + 1 == names.size() ? before_last : ", ";
    text += names[at];
  }
  return text;
}

}  // namespace

std::string list_text(const int64_t* values, int64_t count) {
  std::string text = "[";
  for (int64_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

std::string sizes_text(const TensorView& tensor) { return list_text(tensor.sizes, tensor.dim); }

std::string strides_text(const TensorView& tensor) { return "strides " + list_text(tensor.strides, tensor.dim); }

void check_dtype(const char* op, const std::string& argument, const TensorView& tensor, const char* dtype,
                 const char* choice) {
  if (std::strcmp(tensor.dtype, dtype) == 0) return;
  fail(op, argument, expected::dtype, tensor.dtype, choice ? choice : dtype);
}

void check_vector(const char* op, const std::string& argument, const TensorView& tensor) {
  if (tensor.sizes[0] > 1 && tensor.strides[0] != 1) {
    fail(op, argument, expected::contiguous, strides_text(tensor));
  }
}

void check_contiguous(const char* op, const char* argument, const TensorView& tensor) {
  int64_t expected_stride = 1;
  bool contiguous = true;
  for (int64_t d = tensor.dim - 1; d >= 0; --d) {
    contiguous = contiguous && (tensor.sizes[d] <= 1 || tensor.strides[d] == expected_stride);
    if (tensor.sizes[d] == 0) return;
    expected_stride *= tensor.sizes[d];
  }
  if (!contiguous) fail(op, argument, expected::contiguous, strides_text(tensor));
}

Precision element_of(const TensorView& tensor) {
  for (const NamedPrecision& one : kPrecisions) {
    if (std::strcmp(tensor.dtype, one.name) == 0) return one.precision;
  }
  return Precision::count;
}

void check_side(const char* op, const char* argument, const Plan& plan, const TensorView& side) {
  check_matrix(op, argument, side, kAnyColumns);
  if (side.sizes[1] > plan.in_features) {
    fail(op, argument, expected::at_most_columns, sizes_text(side), std::to_string(plan.in_features));
  }
}

void check_table_dtype(const char* op, int64_t dtype) {
  std::string known;
  for (const NamedPrecision& one : kPrecisions) {
    if (!is_table_element(one.precision)) continue;
    const auto code = static_cast<int64_t>(one.precision);
    if (code == dtype) return;
    known += (known.empty() ? "" : ", ") + std::to_string(code) + " (" + one.name + ")";
  }
  fail(op, "dtype", expected::one_of, std::to_string(dtype), known);
}

bool is_table_element(Precision element) { return has(element, precision_flag::in_tables); }

std::string table_precisions() { return names_with(precision_flag::in_tables, " or "); }

// Checks a table's dtype, and that the elements of a row are contiguous.
void check_table_element(const char* op, const TensorView& table) {
  if (!is_table_element(element_of(table))) {
    fail(op, "table", expected::dtype, table.dtype, table_precisions());
  }
  if (table.sizes[0] > 0 && table.strides[1] != 1) {
    fail(op, "table", expected::unit_stride, strides_text(table));
  }
}

void check_table(const char* op, const Plan& plan, int64_t item_columns, const TensorView& table,
                 const TensorView& scales) {
  const int64_t width = table_width(plan, item_columns);
  if (table.dim != 2 || table.sizes[1] != width) {
    fail(op, "table", expected::matrix, sizes_text(table), std::to_string(width));
  }
  check_table_element(op, table);
  const int64_t count = element_of(table) == Precision::int8 ? table.sizes[0] : 0;
  if (scales.dim != 1 || scales.sizes[0] != count) {
    fail(op, "scales", expected::table_scales, sizes_text(scales), std::to_string(count));
  }
  check_dtype(op, "scales", scales, "float32");
  check_vector(op, "scales", scales);
}

void check_task_count(const char* op, int64_t tasks) {
  if (tasks >= 1 && tasks <= limit::max_tasks) return;
  fail(op, "tasks", expected::one_of, std::to_string(tasks), "1 to " + std::to_string(limit::max_tasks));
}

void check_twin_parents(const char* op, const int64_t* parents, int64_t tasks) {
  bool good = tasks >= 1 && tasks <= limit::max_tasks;
  for (int64_t k = 0; good && k < tasks; ++k) good = parents[k] >= -1 && parents[k] < k;
  if (!good) fail(op, "parents", expected::parents, list_text(parents, tasks), std::to_string(limit::max_tasks));
}

void check_task_columns(const char* op, const char* argument, const TensorView& tensor, int64_t tasks) {
  if (tensor.dim == 2 && tensor.sizes[1] > 0 && tensor.sizes[1] % tasks == 0) return;
  fail(op, argument, expected::task_columns, sizes_text(tensor), std::to_string(tasks));
}

void check_twin_table(const char* op, int64_t tasks, const TensorView& table, const TensorView& scales) {
  check_task_columns(op, "table", table, tasks);
  check_table_element(op, table);
  const bool int8 = element_of(table) == Precision::int8;
  if (int8 && table.sizes[1] / tasks > limit::max_int8_inputs) {
    fail(op, "table", expected::int8_columns, sizes_text(table), std::to_string(limit::max_int8_inputs));
  }
  const int64_t count = int8 ? table.sizes[0] : 0;
  if (scales.dim != 2 || scales.sizes[0] != count || scales.sizes[1] != tasks) {
    fail(op, "scales", expected::rows, sizes_text(scales), std::to_string(count), std::to_string(tasks));
  }
  check_dtype(op, "scales", scales, "float32");
  check_contiguous(op, "scales", scales);
}

void check_ids(const char* op, const TensorView& ids, int64_t items) {
  if (ids.dim != 1) fail(op, "ids", expected::vector, sizes_text(ids), "ids");
  check_dtype(op, "ids", ids, "int64");
  check_vector(op, "ids", ids);
  if (!ids.readable) return;
  const auto* const values = ids.as<int64_t>();
  // One comparison per id: as an unsigned number, a negative id is larger than any valid one.
  uint64_t largest = 0;
  for (int64_t at = 0; at < ids.sizes[0]; ++at) largest = std::max(largest, static_cast<uint64_t>(values[at]));
  if (ids.sizes[0] == 0 || largest < static_cast<uint64_t>(items)) return;
  int64_t at = 0;
  while (static_cast<uint64_t>(values[at]) < static_cast<uint64_t>(items)) ++at;
  fail(op, "ids[" + std::to_string(at) + "]", expected::ids, std::to_string(values[at]), std::to_string(items - 1));
}

void check_row_dtype(const char* op, const char* argument, const TensorView& tensor, RowDtypes dtypes) {
  if (dtypes == RowDtypes::float32) return check_dtype(op, argument, tensor, "float32");
  using namespace precision_flag;
  const uint32_t flags = tensor.on_device ? in_rows | in_gpu_rows : in_rows;
  if (has(element_of(tensor), flags)) return;
  fail(op, argument, expected::dtype, tensor.dtype, names_with(flags, " or "));
}

void check_matrix(const char* op, const char* argument, const TensorView& tensor, int64_t columns, RowDtypes dtypes) {
  if (columns == kAnyColumns) {
    if (tensor.dim != 2) fail(op, argument, expected::any_matrix, sizes_text(tensor));
  } else if (tensor.dim != 2 || tensor.sizes[1] != columns) {
    fail(op, argument, expected::matrix, sizes_text(tensor), std::to_string(columns));
  }
  check_row_dtype(op, argument, tensor, dtypes);
  if (tensor.sizes[0] > 0 && tensor.sizes[1] > 1 && tensor.strides[1] != 1) {
    fail(op, argument, expected::unit_stride, strides_text(tensor));
  }
}

void check_offsets(const char* op, const TensorView& tensor, int64_t requests) {
  if (requests == kNoRequests) {
    if (tensor.dim != 1 || tensor.sizes[0] < 1) fail(op, "offsets", expected::offsets_any, sizes_text(tensor));
  } else if (tensor.dim != 1 || tensor.sizes[0] != requests + 1) {
    fail(op, "offsets", expected::offsets, sizes_text(tensor), std::to_string(requests + 1));
  }
  check_dtype(op, "offsets", tensor, "int64");
  check_vector(op, "offsets", tensor);
}

void check_offset_values(const char* op, const TensorView& tensor, int64_t candidates) {
  if (!tensor.readable) return;
  const int64_t* values = tensor.as<int64_t>();
  const int64_t last = tensor.sizes[0] - 1;
  const auto name = [](int64_t at) { return "offsets[" + std::to_string(at) + "]"; };
  if (values[0] != 0) fail(op, name(0), expected::offsets_start, std::to_string(values[0]));
  for (int64_t at = 1; at <= last; ++at) {
    if (values[at] < values[at - 1]) {
      fail(op, name(at), expected::offsets_grow,
           std::to_string(values[at]) + " after " + std::to_string(values[at - 1]));
    }
  }
  if (values[last] != candidates) {
    fail(op, name(last), expected::offsets_end, std::to_string(values[last]), std::to_string(candidates));
  }
}

void check_columns_sum(const char* op, const Plan& plan, const TensorView& user, const TensorView& item) {
  if (user.sizes[1] + item.sizes[1] != plan.in_features) {
    fail(op, "user and item", expected::columns_sum,
         std::to_string(user.sizes[1]) + " + " + std::to_string(item.sizes[1]), std::to_string(plan.in_features));
  }
}

void check_fusion(const char* op, int64_t tasks, const TensorView& weights, int64_t fusion, int64_t weights_per,
                  int64_t candidates, int64_t requests) {
  constexpr auto kForms = static_cast<int64_t>(Fusion::count);
  if (fusion < 0 || fusion >= kForms) {
    fail(op, "fusion", expected::one_of, std::to_string(fusion), "0 to " + std::to_string(kForms - 1));
  }
  const auto allowed = [&](int64_t per) {
    return per >= 0 && per < static_cast<int64_t>(WeightsPer::count) &&
           (requests != kNoRequests || per != static_cast<int64_t>(WeightsPer::request));
  };
  if (!allowed(weights_per)) {
    std::string known;
    for (int64_t per = 0; per < static_cast<int64_t>(WeightsPer::count); ++per) {
      if (allowed(per)) known += (known.empty() ? "" : ", ") + std::to_string(per) + " (" + kPerNames[per] + ")";
    }
    fail(op, "weights_per", expected::one_of, std::to_string(weights_per), known);
  }
  const int64_t count = fusion_weight_count(static_cast<Fusion>(fusion), tasks);
  const auto per = static_cast<WeightsPer>(weights_per);
  if (per == WeightsPer::call) {
    if (weights.dim != 1 || weights.sizes[0] != count) {
      fail(op, "fusion_weights", expected::vector, sizes_text(weights), std::to_string(count));
    }
  } else {
    const int64_t rows = per == WeightsPer::request ? requests : candidates;
    if (weights.dim != 2 || weights.sizes[0] != rows || weights.sizes[1] != count) {
      fail(op, "fusion_weights", expected::rows, sizes_text(weights), std::to_string(rows), std::to_string(count));
    }
  }
  check_dtype(op, "fusion_weights", weights, "float32");
  check_contiguous(op, "fusion_weights", weights);
}

void check_has_catalogs(const char* op, const Plan& plan, bool on_device) {
  if (on_device && plan.program) fail(op, "plan", expected::towers, "a tile program, whose catalogs are the CPU's");
}

void check_program(const char* op, const Plan& plan) {
  if (!plan.program) fail(op, "plan", expected::program, "a forest of towers");
}

void check_scored(const char* op, const Plan& plan) {
  if (plan.tasks == 0) fail(op, "plan", expected::scored, "a tile program of none");
}

void check_precision(const char* op, const Plan& plan, bool on_device) {
  const uint32_t flag = on_device ? precision_flag::on_gpu : precision_flag::on_cpu;
  if (has(plan.precision, flag)) return;
  fail(op, "plan precision", expected::precision, name_of(plan.precision), names_with(flag),
       on_device ? "a GPU" : "the CPU");
}

void check_packed(const char* op, const Plan& plan, const TensorView& packed) {
  check_dtype(op, "packed", packed, "uint8");
  const bool fits = packed.dim == 1 && packed.sizes[0] == plan.packed_bytes && packed.strides[0] == 1;
  if (!fits) {
    fail(op, "packed", expected::packed_size, sizes_text(packed), std::to_string(plan.packed_bytes));
  }
  // GPUs copy weights 16 bytes at a time.
  if (packed.on_device && reinterpret_cast<uintptr_t>(packed.data) % 16 != 0) {
    fail(op, "packed", expected::aligned, "another address", "16");
  }
  if (packed.readable && !has_header_of(plan, packed.data)) {
    fail(op, "packed", expected::packed_for_plan, "weights packed for another plan, or other bytes");
  }
}

void check_positive(const char* op, const char* argument, int64_t value) {
  if (value < 1) fail(op, argument, expected::positive, std::to_string(value));
}

}  // namespace resflow
