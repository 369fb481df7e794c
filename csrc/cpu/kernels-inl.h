// All kernels of one instruction set. A translation unit defines RESFLOW_TARGET (the namespace) and
// RESFLOW_KERNELS (the table's name), includes its simd_*.h and then this file.

// One block each: they stand in the order they need.
#include "cpu/kernels.h"

#include "cpu/math-inl.h"

#include "cpu/activations-inl.h"

#include "cpu/tower-inl.h"

#include "cpu/fusion-inl.h"

namespace resflow::cpu {
namespace RESFLOW_TARGET {

void score_tile(const Tile& tile) {
  run_towers(tile);
  for (int32_t k = 0; k < tile.plan->tasks; ++k) {
    for (int64_t r = tile.rows; r < tile.stride; ++r) tile.logits[k * tile.stride + r] = 0.0f;
  }
  join_parents(tile);
  fuse(tile);
}

void project(const Plan& plan, const float* weights, const float* user, int64_t user_stride, int64_t rows,
             int64_t columns, float* out) {
  const LayerLayout& layer = plan.layer[0];
  const int64_t stride = plan.tasks * layer.padded;
  for (int32_t k = 0; k < plan.tasks; ++k) {
    const float* const task = weights + k * plan.task_floats;
    const float* biases[kBlockRows];
    for (int r = 0; r < kBlockRows; ++r) biases[r] = task + layer.bias;
    const Product product{&layer, task + layer.panels, 0, columns, user, user_stride, rows, biases, 0, 0};
    float* const task_out = out + k * layer.padded;
    multiply(product, [&](const float* sums, int64_t row, int64_t block_rows, int64_t column, int64_t width) {
      for (int64_t r = 0; r < block_rows; ++r) {
        for (int64_t at = 0; at < width; at += kLane) {
          store(task_out + (row + r) * stride + column + at, load(sums + r * kPanelWidth + at));
        }
      }
    });
  }
}

double multiply_add_flops(int64_t count, float* sink) {
  constexpr int kSums = kBlockRows * kBlockLanes;
  Lanes sum[kSums];
  for (int i = 0; i < kSums; ++i) sum[i] = broadcast(static_cast<float>(i));
  const Lanes a = broadcast(sink[0]), b = broadcast(sink[1]);
  for (int64_t n = 0; n < count; ++n) {
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) sum[i] = multiply_add(sum[i], a, b);
  }
  Lanes total = sum[0];
  for (int i = 1; i < kSums; ++i) total = total + sum[i];
  store(sink, total);
  return 2.0 * kLane * kSums * static_cast<double>(count);
}

}  // namespace RESFLOW_TARGET

#define RESFLOW_TEXT_(name) #name
#define RESFLOW_TEXT(name) RESFLOW_TEXT_(name)
const Kernels RESFLOW_KERNELS = {RESFLOW_TEXT(RESFLOW_TARGET), RESFLOW_TARGET::kBlockRows, RESFLOW_TARGET::score_tile,
                                 RESFLOW_TARGET::project, RESFLOW_TARGET::multiply_add_flops};

}  // namespace resflow::cpu
