// Training's elementwise kernels, forward and backward, on a tile's pre-activations s, 16 columns at a time. The affine
// is after or before the activation:
//
//   after:   v = act(s), o = v scale + shift + o_parent       before:  y = s scale + shift, o = act(y) + o_parent
//
// With batch statistics scale is gamma / deviation, and a gradient dv of the normalised value n = (v - mean) /
// deviation becomes gamma / deviation (dv - mean(dv) - n mean(n dv)), with means over the batch.
#pragma once

namespace resflow::cpu::RESFLOW_TARGET {

// The vectors of a block of a layer's columns, in registers.
template <Activation kActivation>
struct Channels {
  Lanes slope, scale, shift, mean, inverse_deviation;

  Channels(const TrainingLayer& layer, int64_t column)
      : slope(lanes_or(layer.slope, column, 0.0f)),
        scale(lanes_or(layer.scale, column, 1.0f)),
        shift(lanes_or(layer.shift, column, 0.0f)),
        mean(lanes_or(layer.mean, column, 0.0f)),
        inverse_deviation(lanes_or(layer.inverse_deviation, column, 1.0f)) {}

  Lanes activated(Lanes v) const { return activate<kActivation>(v, slope); }
  Lanes derivative(Lanes v) const { return activation_derivative<kActivation>(v, slope); }
  Lanes affine(Lanes v) const { return multiply_add(v, scale, shift); }
  Lanes normalised(Lanes v) const { return (v - mean) * inverse_deviation; }

 private:
  static Lanes lanes_or(const float* vector, int64_t column, float otherwise) {
    return vector ? load(vector + column) : broadcast(otherwise);
  }
};

// A block of 16 columns of a task, over all rows.
struct ColumnBlock {
  int64_t index;   // among the blocks of all tasks
  int64_t column;  // its first column of [tasks * padded]
  int64_t parent;  // index of the parent's block, or -1 without a residual
};

inline ColumnBlock column_block(const TrainingLayer& layer, int32_t task, int64_t block) {
  const int64_t blocks = layer.padded / kLane, index = task * blocks + block;
  const int32_t parent = layer.residual ? layer.parents[task] : -1;
  return {index, index * kLane, parent < 0 ? -1 : parent * blocks + block};
}

inline void training_outputs(const TrainingLayer& layer, const ConstGrid& pre_activations, int64_t rows,
                             const FloatGrid& out) {
  with_activation(layer.activation, [&](auto activation) {
    for (int32_t k = 0; k < layer.tasks; ++k) {
      for (int64_t b = 0; b < layer.padded / kLane; ++b) {
        const ColumnBlock block = column_block(layer, k, b);
        const Channels<activation.value> channels(layer, block.column);
        const float* const from = pre_activations.data + block.index * pre_activations.block;
        float* const to = out.data + block.index * out.block;
        const float* const parent = block.parent < 0 ? nullptr : out.data + block.parent * out.block;
        const auto each = [&](auto value_of) {
          for (int64_t r = 0; r < rows; ++r) {
            const Lanes value = value_of(load(from + r * pre_activations.row));
            store(to + r * out.row, parent ? value + load(parent + r * out.row) : value);
          }
        };
        if (layer.affine_mode == AffineMode::batch_before) {
          each([&](Lanes s) { return channels.activated(channels.affine(s)); });
        } else if (layer.affine_mode == AffineMode::none) {
          each([&](Lanes s) { return channels.activated(s); });
        } else {
          each([&](Lanes s) { return channels.affine(channels.activated(s)); });
        }
      }
    }
  });
}

inline void training_statistics(const TrainingLayer& layer, const ConstGrid& pre_activations, int64_t rows, float* mean,
                                float* squares) {
  with_activation(layer.activation, [&](auto activation) {
    for (int64_t b = 0; b < layer.tasks * layer.padded / kLane; ++b) {
      const Channels<activation.value> channels(layer, b * kLane);
      const float* const from = pre_activations.data + b * pre_activations.block;
      const auto value_of = [&](int64_t r) {
        const Lanes s = load(from + r * pre_activations.row);
        return layer.affine_mode == AffineMode::batch_before ? s : channels.activated(s);
      };
      Lanes total = broadcast(0.0f), square = broadcast(0.0f);
      for (int64_t r = 0; r < rows; ++r) total = total + value_of(r);
      const Lanes middle = total * broadcast(1.0f / static_cast<float>(rows));
      for (int64_t r = 0; r < rows; ++r) {
        const Lanes distance = value_of(r) - middle;
        square = multiply_add(distance, distance, square);
      }
      store(mean + b * kLane, middle);
      store(squares + b * kLane, square);
    }
  });
}

// Replaces gradients by step(channels, s, gradient, column, totals) over the rows of every block, last task first, and
// writes the blocks' totals; with `join`, a child's gradients are added to its parent's first.
template <class Step>
inline void for_each_gradient(const TrainingLayer& layer, const ConstGrid& pre_activations, int64_t rows,
                              const FloatGrid& gradients, bool join, const ChannelSums& channel_sums, Step step) {
  with_activation(layer.activation, [&](auto activation) {
    for (int32_t k = layer.tasks - 1; k >= 0; --k) {
      for (int64_t b = 0; b < layer.padded / kLane; ++b) {
        const ColumnBlock block = column_block(layer, k, b);
        const Channels<activation.value> channels(layer, block.column);
        const float* const from = pre_activations.data + block.index * pre_activations.block;
        float* const gradient_block = gradients.data + block.index * gradients.block;
        float* const parent = block.parent < 0 || !join ? nullptr : gradients.data + block.parent * gradients.block;
        const Lanes zero = broadcast(0.0f);
        Lanes totals[4] = {zero, zero, zero, zero};  // slope, bias, scale, shift
        for (int64_t r = 0; r < rows; ++r) {
          const Lanes gradient = load(gradient_block + r * gradients.row);
          if (parent) store(parent + r * gradients.row, load(parent + r * gradients.row) + gradient);
          store(gradient_block + r * gradients.row,
                step(channels, load(from + r * pre_activations.row), gradient, block.column, totals));
        }
        float* const to[4] = {channel_sums.slope, channel_sums.bias, channel_sums.scale, channel_sums.shift};
        for (int i = 0; i < 4; ++i) {
          if (to[i]) store(to[i] + block.column, totals[i]);
        }
      }
    }
  });
}

// Backward through the activation at v: returns v's gradient and adds to the slope's.
template <class C>
inline Lanes through_activation(const C& channels, Lanes v, Lanes gradient, Lanes* totals) {
  totals[0] = multiply_add(gradient, at_most(v, broadcast(0.0f)), totals[0]);
  return gradient * channels.derivative(v);
}

inline void training_backward_layer(const TrainingLayer& layer, const ConstGrid& pre_activations, int64_t rows,
                                    const FloatGrid& gradients, const ChannelSums& channel_sums) {
  const bool affine = layer.affine_mode == AffineMode::after;
  for_each_gradient(layer, pre_activations, rows, gradients, true, channel_sums,
                    [affine](const auto& channels, Lanes s, Lanes gradient, int64_t, Lanes* totals) {
                      if (affine) {
                        totals[2] = multiply_add(gradient, channels.activated(s), totals[2]);
                        totals[3] = totals[3] + gradient;
                        gradient = gradient * channels.scale;
                      }
                      const Lanes s_gradient = through_activation(channels, s, gradient, totals);
                      totals[1] = totals[1] + s_gradient;
                      return s_gradient;
                    });
}

inline void training_normalised(const TrainingLayer& layer, const ConstGrid& pre_activations, int64_t rows,
                                const FloatGrid& gradients, const ChannelSums& channel_sums) {
  const bool before = layer.affine_mode == AffineMode::batch_before;
  for_each_gradient(layer, pre_activations, rows, gradients, true, channel_sums,
                    [before](const auto& channels, Lanes s, Lanes gradient, int64_t, Lanes* totals) {
                      if (before) gradient = through_activation(channels, channels.affine(s), gradient, totals);
                      const Lanes value = channels.normalised(before ? s : channels.activated(s));
                      totals[2] = multiply_add(gradient, value, totals[2]);
                      totals[3] = totals[3] + gradient;
                      return gradient;
                    });
}

inline void training_through_statistics(const TrainingLayer& layer, const ConstGrid& pre_activations, int64_t rows,
                                        const FloatGrid& gradients, const BatchMeans& means,
                                        const ChannelSums& channel_sums) {
  const bool before = layer.affine_mode == AffineMode::batch_before;
  for_each_gradient(layer, pre_activations, rows, gradients, false, channel_sums,
                    [before, means](const auto& channels, Lanes s, Lanes gradient, int64_t column, Lanes* totals) {
                      const Lanes value = channels.normalised(before ? s : channels.activated(s));
                      const Lanes centred = gradient - load(means.shift + column) - value * load(means.scale + column);
                      Lanes s_gradient = centred * channels.scale;
                      if (!before) s_gradient = through_activation(channels, s, s_gradient, totals);
                      totals[1] = totals[1] + s_gradient;
                      return s_gradient;
                    });
}

inline void training_heads(const TrainingLayer& layer, const ConstGrid& outputs, int64_t rows, const float* weights,
                           const float* biases, float* task_logits) {
  const int64_t blocks = layer.padded / kLane;
  for (int64_t r = 0; r < rows; ++r) {
    for (int32_t k = 0; k < layer.tasks; ++k) {
      Lanes sum = broadcast(0.0f);
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t block = k * blocks + b;
        sum = multiply_add(load(outputs.data + block * outputs.block + r * outputs.row), load(weights + block * kLane),
                           sum);
      }
      task_logits[r * layer.tasks + k] = horizontal_sum(sum) + biases[k];
    }
  }
}

inline void training_heads_backward(const TrainingLayer& layer, const ConstGrid& outputs, int64_t rows,
                                    const float* weights, const float* task_logit_gradients, const FloatGrid& gradients,
                                    float* weight_sums) {
  for (int64_t block = 0; block < layer.tasks * layer.padded / kLane; ++block) {
    const int64_t task = block * kLane / layer.padded;
    const float* const from = outputs.data + block * outputs.block;
    float* const to = gradients.data + block * gradients.block;
    const Lanes weight = load(weights + block * kLane);
    Lanes sum = broadcast(0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      const Lanes gradient = broadcast(task_logit_gradients[r * layer.tasks + task]);
      sum = multiply_add(gradient, load(from + r * outputs.row), sum);
      store(to + r * gradients.row, gradient * weight);
    }
    store(weight_sums + block * kLane, sum);
  }
}

constexpr TrainingKernels kTraining = {training_product,
                                       pack_panel,
                                       training_outputs,
                                       training_statistics,
                                       training_backward_layer,
                                       training_normalised,
                                       training_through_statistics,
                                       training_heads,
                                       training_heads_backward};

}  // namespace resflow::cpu::RESFLOW_TARGET
