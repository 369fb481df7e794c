// The interface between the driver (tile.cpp and project.cpp, compiled for any machine) and the kernels (compiled once
// per instruction set). It uses plain pointers only: an inline STL function compiled for AVX-512 could be the copy that
// the linker keeps for all machines.
#pragma once

#include <cstdint>

#include "core/candidates.h"
#include "core/plan.h"
#include "cpu/training/training_kernels.h"

namespace resflow::cpu {

// Floats of scratch for rows rounded to a plan's precision, with `words` words per row (see OperandBuffer).
constexpr int64_t operand_floats(int64_t rows, int64_t words) {
  return pad_to_lane(rows * words + kLane) + 2 * pad_to_lane(rows);
}

// Stride of the rows that features are pooled into. A feature's last store may overrun its columns by up to a register
// of lanes: into the next feature's columns, which are written after it, or into this padding.
constexpr int64_t pooled_stride(int64_t width) { return pad_to_lane(width) + kLane; }

// Memory to prefetch.
struct Span {
  const char* begin;
  int64_t bytes;
};
struct Spans {
  const Span* all;
  int64_t count;
  int64_t lines;  // total cache lines, possibly one short per span
};

// One tile of consecutive candidates. All per-candidate outputs are laid out [task][stride].
struct Tile {
  const Plan* plan;
  const float* weights;  // packed, past the header

  Rows x;  // [rows, depth of the first layer from first_input on]; not read in the catalog form
  int64_t rows;
  int64_t first_input;  // 0, or the user's width: those inputs are already in `accum_init`

  // The catalog form: each candidate's row of a table, [table_width()], and, in int8, the scale of
  // its bytes. Null in the other forms.
  const void* const* table_rows;
  const float* table_scales;
  Precision table_element;

  // The memory that the next tile will read, to be prefetched meanwhile.
  Spans next;

  // The initial values of each candidate's first-layer sums [tasks * first_padded()]: the biases in the dense form, the
  // user's projection in the others; of a program the user's floats, in which the sums of its steps begin at
  // `user_sums`.
  const float* const* accum_init;
  int64_t user_sums;

  float* hidden;          // scratch [slot][layer][rows][padded width]; a program's values, [value][rows][padded width]
  float* x_operand;       // scratch: operand_floats of the first layer's words
  float* hidden_operand;  // scratch: operand_floats of the largest number of words of a later layer, or of a program
  float* gathered;        // scratch of a program: rows * gathered_floats
  Rows row;               // whole input rows in float32, for a program that reads them
  float* logits;          // [tasks][stride]
  float* probs;           // [tasks][stride]
  float* score;           // [stride]
  int64_t stride;         // of logits and probs: rows rounded up to kLane

  Fusion fusion;
  const float* const* fusion_weights;  // per candidate, fusion_weight_count() each
};

// The product out[r] = (biases +) row r @ the rows of the first layer's weights from first_input on.
struct Projection {
  Rows x;
  int64_t rows;
  int64_t first_input;
  int64_t columns;
  bool with_bias;
  float* operand;  // scratch: operand_floats of the first layer's words
  float* out;
  int64_t out_stride;
};

// Floats of a user's vectors as prepared by twin_user: words of up to two parts, and one scale and one initial sum per
// task.
constexpr int64_t twin_user_floats(const TwinModel& model, Precision element) {
  const int64_t chunks = (model.width * bytes_of(element) + 63) / 64;
  return 2 * model.tasks * chunks * kLane + 2 * pad_to_lane(model.tasks);
}

// One request's candidates: consecutive items, or those of a list.
struct TwinTile {
  const TwinModel* model;
  const TwinTable* table;
  const float* user;   // prepared by twin_user
  const int64_t* ids;  // null: items first, first + 1, ...
  int64_t first;       // the item, or the index in ids
  int64_t rows;
  int64_t prefetch_from;  // first index in ids of the items to prefetch meanwhile
  int64_t prefetch_rows;

  Fusion fusion;
  const float* fusion_weights;  // of the first candidate
  int64_t fusion_weights_step;  // from one candidate's weights to the next; 0: all share one set

  float* logits;   // [tasks][stride]
  float* probs;    // [tasks][stride]
  float* score;    // [stride]
  int64_t stride;  // rows rounded up to kLane
};

struct Kernels {
  const char* name;
  int64_t block_rows;  // rows per register block: tiles of a multiple leave no partial block

  // Towers, heads, probabilities and score of one tile, by the plan's precision; null for those of GPUs alone.
  void (*score_tile[static_cast<int>(Precision::count)])(const Tile& tile);

  // Computes the values of a tile program, by the plan's precision.
  void (*run_program[static_cast<int>(Precision::count)])(const Tile& tile);

  // Pools the features of `rows` candidates from `first` on into out [rows][pooled_stride(width)], in float32 and in
  // list order.
  void (*pool)(const Features& features, int64_t first, int64_t rows, float* out);

  // Multiplies rows by consecutive inputs of all tasks' first layers: out [rows][tasks * first_padded()]; in a program
  // users' rows by the first inputs of all steps that have user_sums: out [rows][out_stride].
  void (*project)(const Plan& plan, const float* weights, const Projection& projection);

  // Runs products on registers only, `count` times, and returns the number of their floating-point or integer
  // operations: benchmarks measure the machine's peak with it.
  double (*peak_operations)(Precision precision, int64_t count, float* sink);

  // Prepares a user's vectors [tasks * width] for score_twin_tile, in `out` of twin_user_floats.
  void (*twin_user)(const TwinModel& model, Precision element, const Rows& user, float* out);

  // Computes logits, probabilities and scores of one twin tile.
  void (*score_twin_tile)(const TwinTile& tile);

  // Reads whole cache lines and returns a sum of them: benchmarks measure the read bandwidth with it.
  float (*read_memory)(const void* from, int64_t bytes);

  TrainingKernels training;
};

extern const Kernels kPortableKernels;
#if defined(RESFLOW_HAVE_X86)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
#endif
#if defined(RESFLOW_HAVE_ARM)
extern const Kernels kNeonKernels;
extern const Kernels kNeonBf16Kernels;
#endif

}  // namespace resflow::cpu
