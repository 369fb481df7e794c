// Shared by the passes of training: the layers' weights, the tiles, and each layer's pre-activations of the whole
// batch.
#pragma once

#include <vector>

#include "cpu/training/training_layers.h"

namespace resflow::cpu {

// Rows per tile: 48 and 192 took 3 to 4 % longer (ecomm2, 4096 rows).
constexpr int64_t kTrainingTileRows = 96;

class TrainingPass {
 public:
  // Packs forward panels, backward panels or both; the first layer's backward panels are for the gradients of x.
  TrainingPass(const TrainingModel& model, const TrainingRows& batch, CallMemory& memory, bool forward, bool backward,
               bool x_backward);

  const Plan& plan() const { return model_.plan; }
  int64_t rows() const { return batch_.rows; }
  int64_t tiles() const { return (batch_.rows + kTrainingTileRows - 1) / kTrainingTileRows; }
  int64_t tile_rows(int64_t tile) const;
  LayerWeights& layer(int32_t l) { return layers_[l]; }
  const LayerWeights& layer(int32_t l) const { return layers_[l]; }
  int32_t last() const { return plan().layers - 1; }

  // Heads of all tasks: [tasks * padded] and [tasks].
  const float* head_weights() const { return head_weights_.data(); }
  const float* head_biases() const { return head_biases_.data(); }

  // Grids of a layer's floats [tasks * padded / kLane][rows][kLane]: of all rows, of one tile, and scratch for one
  // tile.
  FloatGrid grid(float* data) const { return {data, kLane, batch_.rows * kLane}; }
  FloatGrid of_tile(const FloatGrid& whole, int64_t tile) const { return whole.at(tile * kTrainingTileRows, 0); }
  FloatGrid tile_scratch(int32_t l) const;

  // The layer's input rows of a tile, computed from the pre-activations of the layer before.
  ConstGrid input_rows(int32_t l, int64_t tile, float* const* pre_activations) const;

  // Computes a layer's pre-activations of a tile; those of the layers before are known.
  void forward_tile(int32_t l, int64_t tile, float* const* pre_activations) const;

 private:
  const TrainingModel& model_;
  TrainingRows batch_;
  std::vector<LayerWeights> layers_;
  std::vector<float> head_weights_;
  std::vector<float> head_biases_;
};

// Pointers to each layer's pre-activations.
std::vector<float*> pre_activations_of_layers(const Plan& plan, int64_t rows, float* pre_activations);

}  // namespace resflow::cpu
