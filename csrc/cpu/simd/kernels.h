// The interface between the driver (tile.cpp and project.cpp, compiled for any machine) and the kernels (compiled once
// for each instruction set). Plain pointers only: an inline STL function compiled for AVX-512 could be the copy the
// linker keeps for everybody.
#pragma once

#include <cstdint>

#include "core/candidates.h"
#include "core/plan.h"
#include "cpu/training/training_kernels.h"

namespace resflow::cpu {

// Scratch for rows rounded to a plan's precision, `words` a row (see OperandBuffer).
constexpr int64_t operand_floats(int64_t rows, int64_t words) {
  return pad_to_lane(rows * words + kLane) + 2 * pad_to_lane(rows);
}

// Rows that features are pooled into lie this far apart: a feature's last store may go a lane beyond its columns, into
// those of the next feature, which follow, or into this room.
constexpr int64_t pooled_stride(int64_t width) { return pad_to_lane(width) + kLane; }

// Memory to fetch ahead of its use.
struct Span {
  const char* begin;
  int64_t bytes;
};
struct Spans {
  const Span* all;
  int64_t count;
  int64_t lines;  // of cache, of all of them together, at most one a span too few
};

// One tile of consecutive candidates. All per-candidate outputs are laid out [task][stride].
struct Tile {
  const Plan* plan;
  const float* weights;  // packed, past the header

  Rows x;  // [rows, depth of the first layer from first_input on]; not read in the catalogue form
  int64_t rows;
  int64_t first_input;  // 0, or the user's width: those inputs are already in `accum_init`

  // The catalogue form: each candidate's row of first-layer products [tasks * first_padded()] and, in int8, what its
  // bytes are multiplied with. Null in the other forms.
  const void* const* table_rows;
  const float* table_scales;
  Precision table_element;

  // What the next tile will read, to be fetched from memory meanwhile.
  Spans next;

  // Where each candidate's first-layer sums start: [tasks * first_padded()], the task's biases in the dense
  // form, the user's projection in the others.
  const float* const* accum_init;

  float* hidden;          // scratch [slot][layer][rows][padded width]
  float* x_operand;       // scratch: operand_floats of the first layer's words
  float* hidden_operand;  // scratch: operand_floats of the most words of any other layer
  float* logits;          // [tasks][stride]
  float* probs;           // [tasks][stride]
  float* score;           // [stride]
  int64_t stride;         // of logits and probs: rows rounded up to kLane

  Fusion fusion;
  const float* const* fusion_weights;  // per candidate, fusion_weight_count() each
};

// out[r] = (biases +) row r @ the rows of the first layer's weights from first_input on.
struct Projection {
  Rows x;
  int64_t rows;
  int64_t first_input;
  int64_t columns;
  bool with_bias;
  float* operand;  // scratch: operand_floats of the first layer's words
  float* out;
};

// Floats of a user's vectors as twin_user leaves them: words of up to two parts, a scale and a start a task.
constexpr int64_t twin_user_floats(const TwinModel& model, Precision element) {
  const int64_t chunks = (model.width * bytes_of(element) + 63) / 64;
  return 2 * model.tasks * chunks * kLane + 2 * pad_to_lane(model.tasks);
}

// One request's candidates: consecutive items, or those of a list.
struct TwinTile {
  const TwinModel* model;
  const TwinTable* table;
  const float* user;   // as twin_user left it
  const int64_t* ids;  // null: items first, first + 1, ...
  int64_t first;       // the item, or the place in ids
  int64_t rows;
  int64_t fetch_from;  // places in ids whose items to fetch from memory meanwhile
  int64_t fetch_rows;

  Fusion fusion;
  const float* fusion_weights;  // of the first candidate
  int64_t fusion_weights_step;  // to the next candidate's; 0: one set for all

  float* logits;   // [tasks][stride]
  float* probs;    // [tasks][stride]
  float* score;    // [stride]
  int64_t stride;  // rows rounded up to kLane
};

struct Kernels {
  const char* name;
  int64_t block_rows;  // rows a register block holds: tiles of a multiple waste nothing

  // Towers, heads, probabilities and score of one tile, by the plan's precision; null for those of GPUs alone.
  void (*score_tile[static_cast<int>(Precision::count)])(const Tile& tile);

  // Pools candidates first to first + rows into out [rows][pooled_stride(width)], in float32 and in list order.
  void (*pool)(const Features& features, int64_t first, int64_t rows, float* out);

  // Rows times consecutive inputs of all tasks' first layers, out [rows][tasks * first_padded()].
  void (*project)(const Plan& plan, const float* weights, const Projection& projection);

  // Runs products on registers alone, `count` times; returns their floating-point or integer operations. What a
  // benchmark's peak is.
  double (*peak_operations)(Precision precision, int64_t count, float* sink);

  // A user's vectors [tasks * width] as score_twin_tile multiplies them, in `out` of twin_user_floats.
  void (*twin_user)(const TwinModel& model, Precision element, const Rows& user, float* out);

  // Logits, probabilities and scores of one twin tile.
  void (*score_twin_tile)(const TwinTile& tile);

  // Reads whole cache lines; returns a sum of them. What a benchmark's bandwidth is.
  float (*read_memory)(const void* from, int64_t bytes);

  TrainingKernels training;
};

extern const Kernels kPortableKernels;
#if defined(RESFLOW_HAVE_X86)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512Bf16Kernels;
#endif

}  // namespace resflow::cpu
