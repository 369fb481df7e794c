// Checks of the ops' inputs. Values (of ids, offsets, a packed header) are checked where the CPU can read them; see
// TensorView::readable. resflow_kernels/core/checks.py makes the same checks, in the same order and words, for calls
// that do not reach C++.
#pragma once

#include <string>

#include "core/plan.h"
#include "core/tensor_view.h"

namespace resflow {

// A tensor's sizes and strides as text for messages.
std::string sizes_text(const TensorView& tensor);
std::string strides_text(const TensorView& tensor);

// `choice` replaces the dtype in the message if several dtypes are accepted.
void check_dtype(const char* op, const std::string& argument, const TensorView& tensor, const char* dtype,
                 const char* choice = nullptr);

void check_contiguous(const char* op, const char* argument, const TensorView& tensor);

// Checks a vector with contiguous elements.
void check_vector(const char* op, const std::string& argument, const TensorView& tensor);

constexpr int64_t kAnyColumns = -1;
constexpr int64_t kNoRequests = -1;

// The dtypes that rows of a matrix may have: float32 and bfloat16 (on a device also float16), or float32 alone.
enum class RowDtypes { all, float32 };

// Checks a matrix [rows, columns] with contiguous rows and any row stride.
void check_matrix(const char* op, const char* argument, const TensorView& tensor, int64_t columns,
                  RowDtypes dtypes = RowDtypes::all);

// The precision that has the name of a checked tensor's dtype.
Precision element_of(const TensorView& tensor);
bool is_table_element(Precision element);
std::string table_precisions();  // "float32, bfloat16 or int8"

// Checks the user's or the item's part of the plan's input, which is at most as wide as the input.
void check_side(const char* op, const char* argument, const Plan& plan, const TensorView& side);

// Checks a table [items, table_width()] of any table precision, its scales, and ids [candidates] of its rows.
void check_table(const char* op, const Plan& plan, int64_t item_columns, const TensorView& table,
                 const TensorView& scales);
void check_ids(const char* op, const TensorView& ids, int64_t items);

// Checks the precision code of a table's rows.
void check_table_dtype(const char* op, int64_t dtype);

// Checks int64 offsets [requests + 1], or of any positive length if requests is kNoRequests; their values start at 0,
// do not decrease and end at `candidates`.
void check_offsets(const char* op, const TensorView& tensor, int64_t requests);
void check_offset_values(const char* op, const TensorView& tensor, int64_t candidates);

// Twin towers: checks for 1 to max_tasks parents, and for a table [items, tasks * width] with scales [items, tasks] if
// it is int8.
void check_task_count(const char* op, int64_t tasks);
void check_twin_parents(const char* op, const int64_t* parents, int64_t tasks);
void check_task_columns(const char* op, const char* argument, const TensorView& tensor, int64_t tasks);
void check_twin_table(const char* op, int64_t tasks, const TensorView& table, const TensorView& scales);

// Checks that the columns of user and item together are the plan's input.
void check_columns_sum(const char* op, const Plan& plan, const TensorView& user, const TensorView& item);

// Checks that the codes are known, and that the weights are [count] for the call, or [requests or candidates, count].
void check_fusion(const char* op, int64_t tasks, const TensorView& weights, int64_t fusion, int64_t weights_per,
                  int64_t candidates, int64_t requests);

// Checks that the plan's kernels on this kind of device have catalogs, that it is a tile program, that it has tasks.
void check_has_catalogs(const char* op, const Plan& plan, bool on_device);
void check_program(const char* op, const Plan& plan);
void check_scored(const char* op, const Plan& plan);

// Checks that the CPU, or a GPU, computes in the plan's precision.
void check_precision(const char* op, const Plan& plan, bool on_device);

// Checks that the weights were packed by pack_towers for this plan.
void check_packed(const char* op, const Plan& plan, const TensorView& packed);

void check_positive(const char* op, const char* argument, int64_t value);

}  // namespace resflow
