// The backward pass of training, layer by layer, last first. A pass over tiles turns the gradients of a layer's outputs
// into those of its pre-activations and multiplies them by its weights, which gives the gradients of the layer before;
// a pass over panels of inputs then multiplies them by the layer's inputs, which gives its weights' gradients. No sum
// depends on the number of threads.
#include <algorithm>
#include <vector>

#include "cpu/simd/isa.h"
#include "cpu/training/training_join.h"
#include "cpu/training/training_pass.h"

namespace resflow::cpu {
namespace {

// Rows whose products with the inputs are accumulated in registers: a panel of their inputs, 64 KB, stays in L2 from
// task to task.
constexpr int64_t kDepthRows = 256;

// The sums over each tile's rows; total() adds them in the order of the tiles.
class TileSums {
 public:
  TileSums(CallMemory& memory, int64_t tiles, int64_t channels)
      : tiles_(tiles), channels_(channels), sums_(memory.take(tiles * channels)) {}

  float* of(int64_t tile) const { return sums_ + tile * channels_; }
  std::vector<double> total() const {
    std::vector<double> all(channels_);
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      for (int64_t c = 0; c < channels_; ++c) all[c] += of(tile)[c];
    }
    return all;
  }

 private:
  int64_t tiles_;
  int64_t channels_;
  float* sums_;
};

// Sums for the gradients of a layer's vectors.
struct LayerSums {
  TileSums slope, bias, scale, shift;

  LayerSums(CallMemory& memory, int64_t tiles, int64_t channels)
      : slope(memory, tiles, channels),
        bias(memory, tiles, channels),
        scale(memory, tiles, channels),
        shift(memory, tiles, channels) {}
};

// Means over the batch for the gradients through its statistics.
struct Means {
  std::vector<float> scale, shift;
};

class Backward {
 public:
  Backward(const TrainingModel& model, const TrainingRows& batch, const TrainingState& state, float* x_gradients,
           const WeightList<float*>& gradients)
      : model_(model),
        plan_(model.plan),
        batch_(batch),
        state_(state),
        pass_(model, batch, memory_, !state.pre_activations, true, x_gradients != nullptr),
        x_gradients_(x_gradients),
        gradients_(gradients),
        pre_activations_(pre_activations_of_layers(
            plan_, batch.rows,
            state.pre_activations ? state.pre_activations : memory_.take(pre_activation_floats(plan_, batch.rows)))) {
    int64_t widest = 0;
    for (int32_t l = 0; l < plan_.layers; ++l) {
      widest = std::max(widest, pass_.layer(l).channels());
      layer_sums_.emplace_back(memory_, pass_.tiles(), pass_.layer(l).channels());
    }
    for (float*& buffer : layer_gradients_) buffer = memory_.take(widest * batch.rows);
    inputs_ = memory_.take(plan_.layers > 1 ? widest * batch.rows : 0);
    set_statistics();
  }

  void run(const float* logit_gradients) {
    if (!state_.pre_activations) {
      parallel_tiles([&](int64_t tile) {
        for (int32_t l = 0; l < plan_.layers; ++l) pass_.forward_tile(l, tile, pre_activations_.data());
      });
    }
    heads(logit_gradients);
    for (int32_t l = pass_.last(); l >= 0; --l) {
      layer(l);
      weights(l);
    }
  }

 private:
  // The gradients of a layer's outputs, which are replaced by those of its pre-activations.
  FloatGrid gradients_of(int32_t l) const { return pass_.grid(layer_gradients_[l % 2]); }
  FloatGrid pre_activations_of(int32_t l) const { return pass_.grid(pre_activations_[l]); }
  bool uses_batch() const { return pass_.layer(0).uses_batch(); }
  bool before_activation() const { return pass_.layer(0).view().affine_mode == AffineMode::batch_before; }

  template <class Work>
  void parallel_tiles(Work work) {
    model_.run_parallel(pass_.tiles(), work);
  }

  void set_statistics() {
    const float *mean = state_.mean, *variance = state_.variance;
    for (int32_t l = 0; uses_batch() && l < plan_.layers; ++l) {
      pass_.layer(l).set_statistics(mean, variance);
      mean += plan_.tasks * plan_.layer[l].width;
      variance += plan_.tasks * plan_.layer[l].width;
    }
  }

  void heads(const float* logit_gradients) {
    const int32_t l = pass_.last();
    const TileSums weight_sums(memory_, pass_.tiles(), pass_.layer(l).channels());
    const TileSums bias_sums(memory_, pass_.tiles(), plan_.tasks);
    parallel_tiles([&](int64_t tile) {
      thread_local Scratch scratch;
      const int64_t rows = pass_.tile_rows(tile), first = tile * kTrainingTileRows * plan_.tasks;
      float* const task_gradients = scratch.floats(kTrainingTileRows * plan_.tasks);
      float* const bias = bias_sums.of(tile);
      std::fill(bias, bias + plan_.tasks, 0.0f);
      for (int64_t row = 0; row < rows * plan_.tasks; row += plan_.tasks) {
        join_logits_backward(plan_, state_.task_logits + first + row, logit_gradients + first + row,
                             task_gradients + row);
        for (int32_t k = 0; k < plan_.tasks; ++k) bias[k] += task_gradients[row + k];
      }
      const ConstGrid outputs = pass_.input_rows(plan_.layers, tile, pre_activations_.data());
      kernels().training.heads_backward(pass_.layer(l).view(), outputs, rows, pass_.head_weights(), task_gradients,
                                        pass_.of_tile(gradients_of(l), tile), weight_sums.of(tile));
      into_layer(l, tile);
    });
    write(weight_sums, plan_.layer[l], plan_.layers, WeightKind::weight);
    const std::vector<double> bias = bias_sums.total();
    for (int32_t k = 0; k < plan_.tasks; ++k) *gradients_.head(k, WeightKind::bias) = static_cast<float>(bias[k]);
  }

  // Computes the gradients of a layer's vectors and inputs.
  void layer(int32_t l) {
    const Means means = uses_batch() ? means_of(layer_sums_[l]) : Means{};
    parallel_tiles([&](int64_t tile) {
      if (uses_batch()) through_statistics(l, tile, means);
      if (l > 0) {
        give_layer_before(l, tile);
        into_layer(l - 1, tile);
      } else if (x_gradients_) {
        give_x(tile);
      }
    });
    const LayerLayout& layout = plan_.layer[l];
    const LayerSums& sums = layer_sums_[l];
    write(sums.bias, layout, l, WeightKind::bias);
    if (layout.activation == Activation::prelu) write(sums.slope, layout, l, WeightKind::slope);
    if (plan_.affine) {
      write(sums.scale, layout, l, WeightKind::scale);
      write(sums.shift, layout, l, WeightKind::shift);
    }
  }

  // Turns the gradients of a layer's outputs into those of its pre-activations, or of the normalised values with batch
  // statistics.
  void into_layer(int32_t l, int64_t tile) {
    const TrainingLayer view = pass_.layer(l).view();
    const LayerSums& sums = layer_sums_[l];
    const FloatGrid gradients = pass_.of_tile(gradients_of(l), tile);
    const ConstGrid pre_activations = pass_.of_tile(pre_activations_of(l), tile);
    float *const scale = sums.scale.of(tile), *const shift = sums.shift.of(tile);
    if (uses_batch()) {
      float* const slope = before_activation() ? sums.slope.of(tile) : nullptr;
      kernels().training.normalised(view, pre_activations, pass_.tile_rows(tile), gradients,
                                    {slope, nullptr, scale, shift});
    } else {
      kernels().training.backward(view, pre_activations, pass_.tile_rows(tile), gradients,
                                  {sums.slope.of(tile), sums.bias.of(tile), scale, shift});
    }
  }

  void through_statistics(int32_t l, int64_t tile, const Means& means) {
    const LayerSums& sums = layer_sums_[l];
    float* const slope = before_activation() ? nullptr : sums.slope.of(tile);
    kernels().training.through_statistics(pass_.layer(l).view(), pass_.of_tile(pre_activations_of(l), tile),
                                          pass_.tile_rows(tile), pass_.of_tile(gradients_of(l), tile),
                                          {means.scale.data(), means.shift.data()},
                                          {slope, sums.bias.of(tile), nullptr, nullptr});
  }

  Means means_of(const LayerSums& sums) const {
    const auto over_rows = [&](const TileSums& tile_sums) {
      std::vector<float> means;
      for (const double sum : tile_sums.total()) means.push_back(static_cast<float>(sum / batch_.rows));
      return means;
    };
    return {over_rows(sums.scale), over_rows(sums.shift)};
  }

  // Computes the gradients of the outputs of the layer before, and recomputes those outputs for the weights' gradients.
  void give_layer_before(int32_t l, int64_t tile) {
    const LayerLayout& layout = plan_.layer[l];
    const ConstGrid from = pass_.of_tile(gradients_of(l), tile);
    const FloatGrid to = pass_.of_tile(gradients_of(l - 1), tile);
    const int64_t rows = pass_.tile_rows(tile), before = plan_.layer[l - 1].padded;
    for (int32_t k = 0; k < plan_.tasks; ++k) {
      kernels().training.product({from.at(0, k * layout.padded / kLane), false, rows, layout.padded,
                                  pass_.layer(l).backward(k), before, nullptr, to.at(0, k * before / kLane), false});
    }
    kernels().training.outputs(pass_.layer(l - 1).view(), pass_.of_tile(pre_activations_of(l - 1), tile), rows,
                               pass_.of_tile(pass_.grid(inputs_), tile));
  }

  void give_x(int64_t tile) {
    const FloatGrid x{x_gradients_, plan_.in_features, kLane};
    kernels().training.product({pass_.of_tile(gradients_of(0), tile), false, pass_.tile_rows(tile),
                                pass_.layer(0).channels(), pass_.layer(0).backward(0), plan_.in_features, nullptr,
                                pass_.of_tile(x, tile), false});
  }

  // Computes the gradients of a layer's matrices, [width, inputs], one panel of inputs at a time. All tasks share the
  // first layer's inputs, so one work item computes them all if enough items remain for all threads.
  void weights(int32_t l) {
    const int64_t panels = (plan_.layer[l].inputs + kPanelWidth - 1) / kPanelWidth;
    const int32_t together = l == 0 && panels >= 4 * model_.threads ? plan_.tasks : 1;
    const int64_t groups = plan_.tasks / together;
    model_.run_parallel(panels * groups, [&](int64_t item) {
      const auto first = static_cast<int32_t>(item % groups) * together;
      weights_panel(l, first, first + together, item / groups * kPanelWidth);
    });
  }

  void weights_panel(int32_t l, int32_t first_task, int32_t end_task, int64_t first_input) {
    thread_local Scratch scratch;
    const LayerLayout& layout = plan_.layer[l];
    const int64_t columns = std::min(kPanelWidth, layout.inputs - first_input), width = pad_to_lane(columns);
    float* const panel = scratch.floats(kDepthRows * kPanelWidth);
    const auto out_of = [&](int32_t task) { return gradients_.of(task, l, WeightKind::weight) + first_input; };
    for (int32_t k = first_task; k < end_task && batch_.rows == 0; ++k) {
      for (int64_t row = 0; row < layout.width; ++row) std::fill_n(out_of(k) + row * layout.inputs, columns, 0.0f);
    }
    for (int64_t row = 0; row < batch_.rows; row += kDepthRows) {
      const int64_t depth = std::min(kDepthRows, batch_.rows - row);
      const ConstGrid inputs = inputs_of(l, first_task).at(row, first_input / kLane);
      kernels().training.pack_panel(inputs, depth, columns, width, panel);
      for (int32_t k = first_task; k < end_task; ++k) {
        const ConstGrid gradients = gradients_of(l).at(row, k * layout.padded / kLane);
        kernels().training.product({gradients, true, layout.width, depth, panel, columns, nullptr,
                                    FloatGrid{out_of(k), layout.inputs, kLane}, row > 0});
      }
    }
  }

  // The inputs of a task's layer.
  ConstGrid inputs_of(int32_t l, int32_t task) const {
    if (l == 0) return {batch_.x, batch_.stride, kLane};
    return pass_.grid(inputs_).at(0, task * plan_.layer[l - 1].padded / kLane);
  }

  void write(const TileSums& sums, const LayerLayout& layout, int32_t l, WeightKind kind) const {
    const std::vector<double> total = sums.total();
    // A BatchNorm before the activation cancels the bias: its gradient is exactly 0, without rounding errors.
    const bool cancelled = kind == WeightKind::bias && before_activation();
    for (int32_t k = 0; k < plan_.tasks; ++k) {
      float* const out = gradients_.of(k, l, kind);
      if (cancelled) std::fill_n(out, layout.width, 0.0f);
      for (int64_t c = 0; !cancelled && c < layout.width; ++c)
        out[c] = static_cast<float>(total[k * layout.padded + c]);
    }
  }

  const TrainingModel& model_;
  const Plan& plan_;
  const TrainingRows& batch_;
  const TrainingState& state_;
  CallMemory memory_;
  TrainingPass pass_;
  float* const x_gradients_;
  const WeightList<float*>& gradients_;
  const std::vector<float*> pre_activations_;
  std::vector<LayerSums> layer_sums_;
  float* layer_gradients_[2];
  float* inputs_;  // the outputs of the layer before
};

}  // namespace

void training_backward(const TrainingModel& model, const TrainingRows& batch, const TrainingState& state,
                       const float* logit_gradients, float* x_gradients, const WeightList<float*>& gradients) {
  Backward(model, batch, state, x_gradients, gradients).run(logit_gradients);
}

}  // namespace resflow::cpu
