// The forward pass of training. Without batch statistics a tile passes through all layers while it is in cache; with
// them each layer waits for the whole batch.
#include <algorithm>
#include <vector>

#include "cpu/simd/isa.h"
#include "cpu/training/training_join.h"
#include "cpu/training/training_pass.h"

namespace resflow::cpu {
namespace {

// A BatchNorm's mean and variance from those of tiles (Chan et al.), combined in the order of the tiles, whichever
// threads computed them.
class Moments {
 public:
  explicit Moments(int64_t channels) : mean_(channels), squares_(channels) {}

  void add(const float* mean, const float* squares, int64_t rows) {
    const double before = static_cast<double>(rows_), here = static_cast<double>(rows), all = before + here;
    for (size_t c = 0; c < mean_.size(); ++c) {
      const double distance = mean[c] - mean_[c];
      mean_[c] += distance * here / all;
      squares_[c] += squares[c] + distance * distance * before * here / all;
    }
    rows_ += rows;
  }

  void store(const LayerLayout& layer, int32_t tasks, float* mean, float* variance) const {
    for (int32_t k = 0; k < tasks; ++k) {
      for (int64_t c = 0; c < layer.width; ++c, ++mean, ++variance) {
        *mean = static_cast<float>(mean_[k * layer.padded + c]);
        *variance = static_cast<float>(squares_[k * layer.padded + c] / static_cast<double>(rows_));
      }
    }
  }

 private:
  std::vector<double> mean_;
  std::vector<double> squares_;
  int64_t rows_ = 0;
};

void layer_with_statistics(const TrainingModel& model, TrainingPass& pass, float* tiles, int32_t l,
                           float* const* pre_activations, float* mean, float* variance) {
  LayerWeights& layer = pass.layer(l);
  const int64_t channels = layer.channels();
  model.run_parallel(pass.tiles(), [&](int64_t tile) {
    pass.forward_tile(l, tile, pre_activations);
    float* const tile_mean = tiles + tile * 2 * channels;
    kernels().training.statistics(layer.view(), pass.of_tile(pass.grid(pre_activations[l]), tile), pass.tile_rows(tile),
                                  tile_mean, tile_mean + channels);
  });
  Moments moments(channels);
  for (int64_t tile = 0; tile < pass.tiles(); ++tile) {
    const float* const tile_mean = tiles + tile * 2 * channels;
    moments.add(tile_mean, tile_mean + channels, pass.tile_rows(tile));
  }
  moments.store(layer.layout(), pass.plan().tasks, mean, variance);
  layer.set_statistics(mean, variance);
}

}  // namespace

void training_forward(const TrainingModel& model, const TrainingRows& batch, const TrainingState& state,
                      float* logits) {
  const Plan& plan = model.plan;
  CallMemory memory;
  TrainingPass pass(model, batch, memory, true, false, false);
  const auto pre_activations = pre_activations_of_layers(
      plan, batch.rows,
      state.pre_activations ? state.pre_activations : memory.take(pre_activation_floats(plan, batch.rows)));
  const bool batch_statistics = pass.layer(0).uses_batch();
  int64_t widest = 0;
  for (int32_t l = 0; l < plan.layers; ++l) widest = std::max(widest, pass.layer(l).channels());
  float* const tiles = memory.take(batch_statistics ? pass.tiles() * 2 * widest : 0);
  float *mean = state.mean, *variance = state.variance;
  for (int32_t l = 0; batch_statistics && l < plan.layers; ++l) {
    layer_with_statistics(model, pass, tiles, l, pre_activations.data(), mean, variance);
    mean += plan.tasks * plan.layer[l].width;
    variance += plan.tasks * plan.layer[l].width;
  }
  model.run_parallel(pass.tiles(), [&](int64_t tile) {
    for (int32_t l = 0; !batch_statistics && l < plan.layers; ++l) pass.forward_tile(l, tile, pre_activations.data());
    const ConstGrid outputs = pass.input_rows(plan.layers, tile, pre_activations.data());
    const int64_t first = tile * kTrainingTileRows * plan.tasks;
    kernels().training.heads(pass.layer(pass.last()).view(), outputs, pass.tile_rows(tile), pass.head_weights(),
                             pass.head_biases(), state.task_logits + first);
    for (int64_t r = 0; r < pass.tile_rows(tile); ++r) {
      join_logits(plan, state.task_logits + first + r * plan.tasks, logits + first + r * plan.tasks);
    }
  });
}

}  // namespace resflow::cpu
