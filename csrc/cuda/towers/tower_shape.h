// The memory layout of a block of the tower kernels: computed once and tested on the host, read by the kernel.
//
// An operand has rows of 32-bit words, padded to whole products (8 words) plus 4 words: 16-byte pieces of 8 consecutive
// rows are then in different banks for load_matrices.
#pragma once

#include <cstdint>

#include "core/plan.h"
#include "cuda/device/target.h"

namespace resflow::cuda {

constexpr int kProductWords = 8;  // depth of one product of the tensor cores
constexpr int kChunkWords = 32;   // depth of one stage of the ring of weights: four products
constexpr int kRingStages = 4;    // three chunks of 8 KiB in flight while one is multiplied
constexpr int kRingStride = 72;   // floats per row of a stage: the panel's plus 8, so that 4 rows use different banks
constexpr int kTowerThreads = 128;

constexpr int64_t kRingStageBytes = kChunkWords * kRingStride * 4;
constexpr int64_t kRingBytes = kRingStages * kRingStageBytes;

RESFLOW_BOTH constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
RESFLOW_BOTH constexpr int64_t panels_of(const LayerLayout& layer) {
  return (layer.padded + kPanelWidth - 1) / kPanelWidth;
}
RESFLOW_BOTH constexpr int64_t operand_stride(int64_t words) { return round_up(words, kProductWords) + 4; }

// Row stride of a hidden layer's outputs, in floats: a multiple of 32 plus 8, so that 4 rows use different banks.
RESFLOW_BOTH constexpr int64_t hidden_stride(int64_t padded) { return round_up(padded, 32) + 8; }

// The part of the first layer that multiplies the candidates' rows.
struct FirstLayer {
  int64_t first_word;  // in a weight column
  int64_t words;
  int64_t lead;     // user values in the first word
  int64_t columns;  // in a candidate's row

  static constexpr FirstLayer of(int64_t first_input, int64_t columns, int64_t per_word) {
    const int64_t lead = first_input % per_word;
    return {first_input / per_word, columns == 0 ? 0 : (lead + columns + per_word - 1) / per_word, lead, columns};
  }
};

// Operand stride of layer l > 0: a row holds every padded column of the layer before, all of which are written.
constexpr int64_t hidden_operand_stride(const Plan& plan, int32_t l) {
  return operand_stride(plan.layer[l - 1].padded / inputs_per_word(plan.precision));
}

// A candidate's initial sums and request.
struct RowInfo {
  const float* start;  // the user's projection [tasks * first_padded()]; null: the biases
  const char* table;   // its catalog row; null in other forms, or if its id is no row
  float scale;         // of an int8 catalog row
  int32_t scored;      // 0: its outputs are NaN
  int64_t request;
};

// Byte offsets into a block's memory; the ring, row infos and logits are always in shared memory.
struct TowerShape {
  int32_t rows;
  FirstLayer first;
  int64_t x_stride;                         // words
  int64_t operand_strides[2];               // words, of the operands of even and odd layers
  bool keeps_all_layers;                    // for residuals of later tasks; otherwise only the last layer is kept
  int64_t layer_offset[limit::max_layers];  // floats, of a layer's outputs in a slot

  int64_t row_info;  // RowInfo [rows]
  int64_t logits;    // float [rows][tasks]
  int64_t ring;
  int64_t shared_fixed;  // total bytes of the above

  // In shared memory after the above, or in global memory:
  int64_t x;
  int64_t operands[2];
  int64_t hidden;
  int64_t slot_floats;
  int64_t tile_bytes;

  int64_t shared_bytes(bool tile_in_shared) const { return shared_fixed + (tile_in_shared ? tile_bytes : 0); }
};

// A candidate's row has `columns` columns, which are the inputs from first_input on; 0 in the catalog form.
constexpr TowerShape tower_shape(const Plan& plan, int32_t rows, int64_t first_input, int64_t columns) {
  TowerShape shape{};
  shape.rows = rows;
  shape.first = FirstLayer::of(first_input, columns, inputs_per_word(plan.precision));

  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t from = at;
    at += round_up(bytes, 128);
    return from;
  };
  shape.ring = take(kRingBytes);
  shape.row_info = take(sizeof(RowInfo) * rows);
  shape.logits = take(4 * rows * plan.tasks);
  shape.shared_fixed = at;

  at = 0;
  shape.x_stride = shape.first.words > 0 ? operand_stride(shape.first.words) : 0;
  shape.x = take(4 * rows * shape.x_stride);
  for (int32_t l = 1; l < plan.layers; ++l) {
    int64_t& stride = shape.operand_strides[l % 2];
    const int64_t own = hidden_operand_stride(plan, l);
    stride = own > stride ? own : stride;
  }
  for (int at_operand = 0; at_operand < 2; ++at_operand) {
    shape.operands[at_operand] = take(4 * rows * shape.operand_strides[at_operand]);
  }
  shape.keeps_all_layers = plan.feature_residual;
  for (int32_t l = 0; l < plan.layers; ++l) {
    if (!shape.keeps_all_layers && l + 1 < plan.layers) continue;
    shape.layer_offset[l] = shape.slot_floats;
    shape.slot_floats += rows * hidden_stride(plan.layer[l].padded);
  }
  shape.hidden = take(4 * shape.slot_floats * plan.slots);
  shape.tile_bytes = at;
  return shape;
}

}  // namespace resflow::cuda
