// The kernels of training, like those of scoring in kernels.h: matrix products, and forward and backward operations on
// a tile's pre-activations. training_forward.cpp and training_backward.cpp call them in order.
//
// In training a layer's pre-activations wait for the statistics of the whole batch, so each layer is computed for all
// candidates before the next; a tile in cache is one layer of all tasks.
#pragma once

#include <cstdint>

#include "core/plan.h"

namespace resflow::cpu {

// Floats [rows][columns] in blocks of kLane columns: (r, c) is data[c / kLane * block + r * row + c % kLane].
//
// Row-major data has block = kLane. Training's buffers have row = kLane and block = rows * kLane: a tile's part of a
// block is contiguous, and reading along rows or columns avoids the conflicts in L1 sets of rows whose length is a
// power of two.
template <class Float>
struct Grid {
  Float* data;
  int64_t row;
  int64_t block;

  Grid at(int64_t first_row, int64_t first_block) const {
    return {data + first_row * row + first_block * block, row, block};
  }
  operator Grid<const Float>() const { return {data, row, block}; }
};
using ConstGrid = Grid<const float>;
using FloatGrid = Grid<float>;

// out [rows][columns] = start + a [rows][depth] b, or out + a b.
struct TrainingProduct {
  ConstGrid a;
  bool transposed;  // a is [depth][rows] in memory
  int64_t rows;
  int64_t depth;
  const float* panels;  // b in panels of kPanelWidth columns: [panel][depth][lanes of the panel], zeros past `columns`
  int64_t columns;
  const float* start;  // [columns rounded up to kLane], or null: zeros
  FloatGrid out;
  bool add;
};

// The affine's position relative to the activation. `batch`: the affine is a BatchNorm by the batch's statistics, which
// the gradient passes through.
enum class AffineMode : int32_t { none, after, batch_after, batch_before };

// One layer of all tasks; vectors are [tasks * padded].
struct TrainingLayer {
  Activation activation;
  AffineMode affine_mode;
  int32_t tasks;
  const int32_t* parents;
  bool residual;
  int64_t padded;
  const float* slope;  // PReLU
  const float* scale;  // of the affine; gamma over the deviation in a BatchNorm
  const float* shift;
  const float* mean;  // of the batch; set when the statistics are known
  const float* inverse_deviation;
};

// A tile's sums over its rows, [tasks * padded] each, for the gradients of a layer's vectors.
struct ChannelSums {
  float* slope;
  float* bias;
  float* scale;  // with batch statistics: of the normalised values times their gradients
  float* shift;  // with batch statistics: of those gradients
};

// Means over the batch, [tasks * padded], for the part of the gradient through the batch's statistics.
struct BatchMeans {
  const float* scale;
  const float* shift;
};

struct TrainingKernels {
  void (*product)(const TrainingProduct& product);

  // Packs b into a panel: rows [depth] of a grid from a column on; `width` lanes are written, zeros past `columns`.
  void (*pack_panel)(const ConstGrid& rows, int64_t depth, int64_t columns, int64_t width, float* panel);

  // Computes a layer's outputs o_k from its pre-activations, residuals included.
  void (*outputs)(const TrainingLayer& layer, const ConstGrid& pre_activations, int64_t rows, const FloatGrid& out);

  // Computes means [tasks * padded], and sums of squared distances from them, of the values that a BatchNorm
  // normalises.
  void (*statistics)(const TrainingLayer& layer, const ConstGrid& pre_activations, int64_t rows, float* mean,
                     float* squares);

  // Backward through a layer: replaces the outputs' `gradients` by the pre-activations'. Children's gradients are first
  // added to their parents'. With batch statistics there are two steps, because the second needs means over the whole
  // batch: normalised() computes gradients of the normalised values, through_statistics() continues from them.
  void (*backward)(const TrainingLayer& layer, const ConstGrid& pre_activations, int64_t rows,
                   const FloatGrid& gradients, const ChannelSums& channels);
  void (*normalised)(const TrainingLayer& layer, const ConstGrid& pre_activations, int64_t rows,
                     const FloatGrid& gradients, const ChannelSums& channels);
  void (*through_statistics)(const TrainingLayer& layer, const ConstGrid& pre_activations, int64_t rows,
                             const FloatGrid& gradients, const BatchMeans& means, const ChannelSums& channels);

  // Heads: task_logits [rows][tasks] from the last outputs; and backward, from their gradients to those of the outputs
  // and to each head weight's sum over the rows.
  void (*heads)(const TrainingLayer& layer, const ConstGrid& outputs, int64_t rows, const float* weights,
                const float* biases, float* task_logits);
  void (*heads_backward)(const TrainingLayer& layer, const ConstGrid& outputs, int64_t rows, const float* weights,
                         const float* task_logit_gradients, const FloatGrid& gradients, float* weight_sums);
};

}  // namespace resflow::cpu
