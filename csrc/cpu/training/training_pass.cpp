#include "cpu/training/training_pass.h"

#include <algorithm>

#include "cpu/simd/isa.h"

namespace resflow::cpu {

TrainingPass::TrainingPass(const TrainingModel& model, const TrainingRows& batch, CallMemory& memory, bool forward,
                           bool backward, bool x_backward)
    : model_(model),
      batch_(batch),
      head_weights_(model.plan.tasks * model.plan.layer[model.plan.layers - 1].padded),
      head_biases_(model.plan.tasks) {
  for (int32_t l = 0; l < plan().layers; ++l) {
    layers_.emplace_back(model, l);
    if (forward) layers_.back().make_room_forward(memory);
    if (backward && (l > 0 || x_backward)) layers_.back().make_room_backward(memory);
  }
  const LayerLayout& end = plan().layer[last()];
  for (int32_t k = 0; k < plan().tasks; ++k) {
    const float* const weight = model.weights.head(k, WeightKind::weight);
    std::copy(weight, weight + end.width, head_weights_.begin() + k * end.padded);
    head_biases_[k] = *model.weights.head(k, WeightKind::bias);
  }
  model.run_parallel(plan().layers * plan().tasks, [&](int64_t item) {
    LayerWeights& layer = layers_[item / plan().tasks];
    const auto task = static_cast<int32_t>(item % plan().tasks);
    if (forward) layer.fill_forward(task);
    if (backward && (item >= plan().tasks || x_backward)) layer.fill_backward(task);
  });
}

int64_t TrainingPass::tile_rows(int64_t tile) const {
  return std::min(kTrainingTileRows, batch_.rows - tile * kTrainingTileRows);
}

FloatGrid TrainingPass::tile_scratch(int32_t l) const {
  thread_local Scratch scratch;
  return {scratch.floats(layers_[l].channels() * kTrainingTileRows), kLane, kTrainingTileRows * kLane};
}

ConstGrid TrainingPass::input_rows(int32_t l, int64_t tile, float* const* pre_activations) const {
  if (l == 0) return ConstGrid{batch_.x, batch_.stride, kLane}.at(tile * kTrainingTileRows, 0);
  const FloatGrid out = tile_scratch(l - 1);
  kernels().training.outputs(layers_[l - 1].view(), of_tile(grid(pre_activations[l - 1]), tile), tile_rows(tile), out);
  return out;
}

void TrainingPass::forward_tile(int32_t l, int64_t tile, float* const* pre_activations) const {
  const LayerLayout& layout = plan().layer[l];
  const ConstGrid x = input_rows(l, tile, pre_activations);
  const FloatGrid out = of_tile(grid(pre_activations[l]), tile);
  for (int32_t k = 0; k < plan().tasks; ++k) {
    const int64_t inputs_block = l == 0 ? 0 : k * plan().layer[l - 1].padded / kLane;
    kernels().training.product({x.at(0, inputs_block), false, tile_rows(tile), layout.inputs, layers_[l].forward(k),
                                layout.padded, layers_[l].bias(k), out.at(0, k * layout.padded / kLane), false});
  }
}

std::vector<float*> pre_activations_of_layers(const Plan& plan, int64_t rows, float* pre_activations) {
  std::vector<float*> all;
  for (int32_t l = 0; l < plan.layers; ++l) {
    all.push_back(pre_activations);
    pre_activations += rows * plan.tasks * plan.layer[l].padded;
  }
  return all;
}

int64_t pre_activation_floats(const Plan& plan, int64_t rows) {
  int64_t floats = 0;
  for (int32_t l = 0; l < plan.layers; ++l) floats += rows * plan.tasks * plan.layer[l].padded;
  return floats;
}

int64_t training_channels(const Plan& plan) {
  int64_t channels = 0;
  for (int32_t l = 0; l < plan.layers; ++l) channels += plan.tasks * plan.layer[l].width;
  return channels;
}

}  // namespace resflow::cpu
