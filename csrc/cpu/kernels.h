// The interface between the driver (score.cpp, compiled for any machine) and the kernels (compiled once for
// each instruction set). Plain pointers only: an inline STL function compiled for AVX-512 could be the copy the
// linker keeps for everybody.
#pragma once

#include <cstdint>

#include "core/plan.h"

namespace resflow::cpu {

// One tile of consecutive candidates. All per-candidate outputs are laid out [task][stride].
struct Tile {
  const Plan* plan;
  const float* weights;  // packed, past the header

  const float* x;  // [rows, depth of the first layer from first_input on]
  int64_t x_stride;
  int64_t rows;
  int64_t first_input;  // 0, or the user's width: those inputs are already in `start`

  const float* next_x;  // rows to fetch from memory meanwhile: `next_rows` of the same width and stride
  int64_t next_rows;

  // Where each candidate's first-layer sums start: [tasks * first_padded()], the task's biases in the dense
  // form, the user's projection in the request form.
  const float* const* start;

  float* hidden;   // scratch [slot][layer][rows][padded width]
  float* logits;   // [tasks][stride]
  float* probs;    // [tasks][stride]
  float* score;    // [stride]
  int64_t stride;  // of logits and probs: rows rounded up to kLane

  Fusion fusion;
  const float* const* fusion_weights;  // per candidate, fusion_weight_count() each
};

struct Kernels {
  const char* name;
  int64_t block_rows;  // rows a register block holds: tiles of a multiple waste nothing

  // Towers, heads, probabilities and score of one tile.
  void (*score_tile)(const Tile& tile);

  // start[r] = first-layer biases + user row r @ the first `columns` rows of the first layer's weights;
  // out is [rows][tasks * first_padded()]. With columns = 0 these are the biases.
  void (*project)(const Plan& plan, const float* weights, const float* user, int64_t user_stride, int64_t rows,
                  int64_t columns, float* out);

  // Runs fused multiply-adds on registers alone, `count` times 2 * kLane * accumulators; the benchmark's peak.
  double (*multiply_add_flops)(int64_t count, float* sink);
};

extern const Kernels kPortableKernels;
#if defined(RESFLOW_HAVE_X86)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace resflow::cpu
