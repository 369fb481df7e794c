// The kernels of training, as kernels.h has those of scoring: products of matrices, and what is done to a tile's sums
// on the way forward and back. training_forward.cpp and training_backward.cpp put them in order.
//
// In training a layer's sums wait for the statistics of the whole batch, so layers follow one another over all
// candidates; what a tile has in cache is one layer of all tasks.
#pragma once

#include <cstdint>

#include "core/plan.h"

namespace resflow::cpu {

// Floats [rows][columns] in blocks of kLane columns: (r, c) is data[c / kLane * block + r * row + c % kLane].
//
// Row-major is block = kLane. What training keeps has row = kLane and block = rows * kLane: a tile's part of a block is
// consecutive, and read along rows or columns it never falls into the same few sets of the L1, as rows of a power of
// two do.
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

// What stands around the activation. `batch`: the affine is a BatchNorm by the batch's own statistics, on which the
// gradient depends.
enum class Place : int32_t { none, after, batch_after, batch_before };

// One layer of all tasks; vectors are [tasks * padded].
struct TrainingLayer {
  Activation activation;
  Place place;
  int32_t tasks;
  const int32_t* parents;
  bool residual;
  int64_t padded;
  const float* slope;  // PReLU
  const float* scale;  // what values are multiplied with, gamma over the deviation in a BatchNorm, and what is added
  const float* shift;
  const float* mean;  // of the batch; set when the statistics are known
  const float* inverse_deviation;
};

// A tile's sums over its rows, [tasks * padded] each: what the gradients of a layer's vectors are made of.
struct ChannelSums {
  float* slope;
  float* bias;
  float* scale;  // batch: of the normalised values times their gradients
  float* shift;  // batch: of those gradients
};

// The gradient's share that comes through the batch's statistics: means over the batch, [tasks * padded].
struct BatchMeans {
  const float* scale;
  const float* shift;
};

struct TrainingKernels {
  void (*product)(const TrainingProduct& product);

  // b as panels: rows [depth] of a grid from a column on; `width` lanes are written, zeros past `columns`.
  void (*pack_panel)(const ConstGrid& rows, int64_t depth, int64_t columns, int64_t width, float* panel);

  // A layer's outputs o_k from its sums, residuals included.
  void (*outputs)(const TrainingLayer& layer, const ConstGrid& sums, int64_t rows, const FloatGrid& out);

  // Means [tasks * padded] and sums of squared distances from them of what a BatchNorm normalises.
  void (*statistics)(const TrainingLayer& layer, const ConstGrid& sums, int64_t rows, float* mean, float* squares);

  // Back through a layer, `gradients` in place: from those of the outputs to those of the sums. Parents get their
  // children's first. With batch statistics in two steps, because the second needs means over the whole batch:
  // normalised() leaves gradients of the normalised values, through_statistics() goes on from there.
  void (*back)(const TrainingLayer& layer, const ConstGrid& sums, int64_t rows, const FloatGrid& gradients,
               const ChannelSums& channels);
  void (*normalised)(const TrainingLayer& layer, const ConstGrid& sums, int64_t rows, const FloatGrid& gradients,
                     const ChannelSums& channels);
  void (*through_statistics)(const TrainingLayer& layer, const ConstGrid& sums, int64_t rows,
                             const FloatGrid& gradients, const BatchMeans& means, const ChannelSums& channels);

  // Heads: own [rows][tasks] from the last outputs; and back, from its gradients to the outputs' and to each head
  // weight's sum over the rows.
  void (*heads)(const TrainingLayer& layer, const ConstGrid& outputs, int64_t rows, const float* weights,
                const float* biases, float* own);
  void (*heads_back)(const TrainingLayer& layer, const ConstGrid& outputs, int64_t rows, const float* weights,
                     const float* own_gradients, const FloatGrid& gradients, float* weight_sums);
};

}  // namespace resflow::cpu
