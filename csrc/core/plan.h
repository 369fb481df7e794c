// The plan: everything about a tower network except its numbers, and the location of each number once packed.
//
// It is plain data of fixed size, so that decoding a plan in every call allocates nothing, and translation units of one
// instruction set can read it without the STL.
//
// Packed weights are bytes: a header of one cache line, then for each task the same layout of floats:
//   layer l: panels [panel][k over words][lanes of the panel], then bias, slope (PReLU), scale, shift (affine),
//            column scale (int8), each [padded width];
//   head:    weight [padded H_L], bias [kLane].
// A word is 32 bits of one column: a float, 2 bfloat16, or 4 int8 (plus 128, so that they are unsigned) of
// consecutive inputs, zeros past the last. A panel is kPanelWidth columns (the last one only as many multiples of kLane
// as it needs), so a kernel streams it front to back. The layout is the same for every instruction set: a packed
// tensor, or an exported program that carries one, moves between machines.
//
// In precisions with tensor panels the weights follow a second time, in the order in which GPUs copy them: for each
// task, for each layer, the panels of core/tensor_panels.h.
//
// Offsets are computed only here; Python queries them (core/packed_layout.h).
#pragma once

#include <cstdint>

#include "core/contract.h"

namespace resflow {

constexpr int64_t kLane = packed::lane;
constexpr int64_t kPanelWidth = packed::panel_columns;
constexpr int64_t kLineBytes = 64;  // of a cache line
constexpr int64_t kHeaderBytes = packed::header_bytes;

constexpr int64_t pad_to_lane(int64_t width) { return (width + kLane - 1) / kLane * kLane; }

// Offsets are in floats from the start of the task's block.
struct LayerLayout {
  int64_t inputs;
  int64_t words;  // per column
  int64_t width;
  int64_t padded;
  int64_t panels;
  int64_t bias;
  int64_t slope;
  int64_t scale;
  int64_t shift;
  int64_t column_scale;
  int64_t tensor_panels;  // in bytes, from the start of the task's tensor panels
  Activation activation;
};

struct Program;
struct ProgramStorage;

struct Plan {
  // What computes the tasks' own logits: a forest of towers, where this is null, or a tile program (core/program.h),
  // which has no layers here.
  const Program* program;

  int64_t in_features;
  int32_t tasks;
  int32_t layers;
  Head head;
  bool feature_residual;
  bool logit_residual;
  bool non_increasing;
  bool affine;
  Precision precision;

  int32_t parents[limit::max_tasks];
  LayerLayout layer[limit::max_layers];
  int64_t head_weight;
  int64_t head_bias;
  int64_t task_floats;
  int64_t tensor_start;  // where the tensor panels begin, in bytes from the start of the header
  int64_t tensor_bytes;  // of a task's tensor panels; 0 in precisions that have none
  int64_t packed_bytes;
  uint64_t fingerprint;  // of the encoded plan; the packed header repeats it

  // Hidden outputs live in `slots` sets of buffers. A child that is the last to read its parent's outputs overwrites
  // them in place, so a chain needs one set however long it is.
  int32_t slot[limit::max_tasks];
  int32_t slots;
  int64_t hidden_floats;                 // per candidate and slot: the sum of the padded widths
  int32_t logit_slot[limit::max_tasks];  // like `slot`, for logits and their residual
  int32_t logit_slots;

  constexpr int64_t first_padded() const { return layer[0].padded; }
};

// Decodes and validates; throws InvalidInput in the name of `op`. A program is refused where there is no storage for
// it.
Plan decode_plan(const char* op, const int64_t* encoded, int64_t count, ProgramStorage* storage = nullptr);

}  // namespace resflow
