// What the ops ask of their inputs. Values (of ids, offsets, a packed header) are checked where the CPU can read them;
// see TensorView::readable. resflow_kernels/core/checks.py asks the same, in the same order and words,
// where a call does not reach C++.
#pragma once

#include <string>

#include "core/plan.h"
#include "core/tensor_view.h"

namespace resflow {

// What messages say a tensor has.
std::string sizes_text(const TensorView& tensor);
std::string strides_text(const TensorView& tensor);

// `choice` is what the message says if several dtypes will do.
void check_dtype(const char* op, const std::string& argument, const TensorView& tensor, const char* dtype,
                 const char* choice = nullptr);

void check_contiguous(const char* op, const char* argument, const TensorView& tensor);

// A vector's elements lie side by side.
void check_vector(const char* op, const std::string& argument, const TensorView& tensor);

constexpr int64_t kAnyColumns = -1;
constexpr int64_t kNoRequests = -1;

// What the rows of a matrix may be stored as: float32 and bfloat16, and on a device float16; or float32 alone.
enum class RowDtypes { all, float32 };

// A matrix [rows, columns] with contiguous rows; any row stride.
void check_matrix(const char* op, const char* argument, const TensorView& tensor, int64_t columns,
                  RowDtypes dtypes = RowDtypes::all);

// The precision a tensor's dtype is named after (a checked one's).
Precision element_of(const TensorView& tensor);
bool is_table_element(Precision element);
std::string table_precisions();  // "float32, bfloat16 or int8"

// The user's or the item's part of the plan's input: at most as wide.
void check_side(const char* op, const char* argument, const Plan& plan, const TensorView& side);

// A table [items, tasks * first_padded()] of any precision, its scales, and ids [candidates] of its rows.
void check_table(const char* op, const Plan& plan, const TensorView& table, const TensorView& scales);
void check_ids(const char* op, const TensorView& ids, int64_t items);

// The code of what a table's rows are stored as.
void check_table_dtype(const char* op, int64_t dtype);

// An int64 vector of `requests + 1` offsets, or of any positive number if requests is kNoRequests; its
// values start at 0, do not decrease and end at `candidates`.
void check_offsets(const char* op, const TensorView& tensor, int64_t requests);
void check_offset_values(const char* op, const TensorView& tensor, int64_t candidates);

// Twin towers: 1 to max_tasks parents, and a table [items, tasks * width] with scales [items, tasks] if it is int8.
void check_task_count(const char* op, int64_t tasks);
void check_twin_parents(const char* op, const int64_t* parents, int64_t tasks);
void check_task_columns(const char* op, const char* argument, const TensorView& tensor, int64_t tasks);
void check_twin_table(const char* op, int64_t tasks, const TensorView& table, const TensorView& scales);

// User and item columns together are the plan's input.
void check_columns_sum(const char* op, const Plan& plan, const TensorView& user, const TensorView& item);

// The codes are known, and the weights are [count] for the call, or [requests or candidates, count].
void check_fusion(const char* op, int64_t tasks, const TensorView& weights, int64_t fusion, int64_t weights_per,
                  int64_t candidates, int64_t requests);

// A plan that is a forest of towers, one that is a tile program, one that has tasks.
void check_towers(const char* op, const Plan& plan);
void check_program(const char* op, const Plan& plan);
void check_scored(const char* op, const Plan& plan);

// A precision that the CPU, or a GPU, computes in.
void check_precision(const char* op, const Plan& plan, bool on_device);

// Weights packed by pack_towers for this very plan.
void check_packed(const char* op, const Plan& plan, const TensorView& packed);

void check_positive(const char* op, const char* argument, int64_t value);

}  // namespace resflow
