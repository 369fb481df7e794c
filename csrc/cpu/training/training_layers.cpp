#include "cpu/training/training_layers.h"

#include <algorithm>
#include <cmath>

namespace resflow::cpu {
namespace {

AffineMode affine_mode_of(const TrainingModel& model) {
  if (!model.plan.affine) return AffineMode::none;
  switch (model.statistics) {
    case Statistics::batch_after:
      return AffineMode::batch_after;
    case Statistics::batch_before:
      return AffineMode::batch_before;
    case Statistics::given:
    case Statistics::count:
      break;
  }
  return AffineMode::after;
}

}  // namespace

LayerWeights::LayerWeights(const TrainingModel& model, int32_t layer)
    : plan_(model.plan),
      layout_(model.plan.layer[layer]),
      weights_(model.weights),
      affine_mode_(affine_mode_of(model)),
      eps_(model.eps),
      layer_(layer),
      vectors_(kVectors * channels()) {
  gather(kBias, WeightKind::bias);
  gather(kSlope, WeightKind::slope);
  gather(kScale, WeightKind::scale);
  gather(kShift, WeightKind::shift);
}

void LayerWeights::gather(Vector which, WeightKind kind) {
  for (int32_t k = 0; k < plan_.tasks; ++k) {
    const float* const from = weights_.of(k, layer_, kind);
    if (from) std::copy(from, from + layout_.width, vector(which) + k * layout_.padded);
  }
}

TrainingLayer LayerWeights::view() const {
  const bool affine = affine_mode_ != AffineMode::none, slope = layout_.activation == Activation::prelu;
  return {layout_.activation,
          affine_mode_,
          plan_.tasks,
          plan_.parents,
          plan_.feature_residual,
          layout_.padded,
          slope ? vector(kSlope) : nullptr,
          affine ? vector(kScale) : nullptr,
          affine ? vector(kShift) : nullptr,
          uses_batch() ? vector(kMean) : nullptr,
          uses_batch() ? vector(kInverse) : nullptr};
}

void LayerWeights::set_statistics(const float* mean, const float* variance) {
  for (int32_t k = 0; k < plan_.tasks; ++k) {
    for (int64_t c = 0; c < layout_.width; ++c) {
      const int64_t from = k * layout_.width + c, to = k * layout_.padded + c;
      const double inverse = 1.0 / std::sqrt(variance[from] + eps_);
      const double gamma = weights_.of(k, layer_, WeightKind::scale)[c];
      const double beta = weights_.of(k, layer_, WeightKind::shift)[c];
      vector(kMean)[to] = mean[from];
      vector(kInverse)[to] = static_cast<float>(inverse);
      vector(kScale)[to] = static_cast<float>(gamma * inverse);
      vector(kShift)[to] = static_cast<float>(beta - mean[from] * gamma * inverse);
    }
  }
}

void LayerWeights::fill_forward(int32_t task) {
  const float* const weight = weights_.of(task, layer_, WeightKind::weight);  // [width, inputs]
  const int64_t inputs = layout_.inputs;
  float* out = forward_ + task * inputs * layout_.padded;
  for (int64_t first = 0; first < layout_.padded; first += kPanelWidth) {
    const int64_t lanes = std::min(kPanelWidth, layout_.padded - first);
    // Copies one cache line of inputs of every column at a time.
    for (int64_t start = 0; start < inputs; start += kLane) {
      const int64_t end = std::min(start + kLane, inputs);
      for (int64_t c = 0; c < lanes; ++c) {
        const bool real = first + c < layout_.width;
        const float* const column = weight + (first + c) * inputs;
        for (int64_t i = start; i < end; ++i) out[i * lanes + c] = real ? column[i] : 0.0f;
      }
    }
    out += inputs * lanes;
  }
}

void LayerWeights::fill_backward(int32_t task) {
  const float* const weight = weights_.of(task, layer_, WeightKind::weight);
  const int64_t inputs = layout_.inputs, padded_inputs = pad_to_lane(inputs);
  const int64_t depth = layer_ == 0 ? channels() : layout_.padded;
  const int64_t first_row = layer_ == 0 ? task * layout_.padded : 0;
  float* const panels = backward_ + (layer_ == 0 ? 0 : task * layout_.padded * padded_inputs);
  for (int64_t first = 0; first < padded_inputs; first += kPanelWidth) {
    const int64_t lanes = std::min(kPanelWidth, padded_inputs - first);
    const int64_t columns = std::min(lanes, inputs - first);
    float* out = panels + first * depth + first_row * lanes;
    for (int64_t row = 0; row < layout_.padded; ++row, out += lanes) {
      const float* const from = weight + row * inputs + first;
      const int64_t copied = row < layout_.width ? columns : 0;
      std::copy(from, from + copied, out);
      std::fill(out + copied, out + lanes, 0.0f);
    }
  }
}

}  // namespace resflow::cpu
