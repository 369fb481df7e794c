// A layer's weights in the layout of the training kernels: concatenated vectors of all tasks, and matrices packed into
// panels for the forward or backward direction.
#pragma once

#include <vector>

#include "cpu/threads/scratch.h"
#include "cpu/training/training.h"
#include "cpu/training/training_kernels.h"

namespace resflow::cpu {

// One layer of all tasks.
class LayerWeights {
 public:
  LayerWeights(const TrainingModel& model, int32_t layer);

  int64_t channels() const { return plan_.tasks * layout_.padded; }
  const LayerLayout& layout() const { return layout_; }
  TrainingLayer view() const;
  const float* bias(int32_t task) const { return vector(kBias) + task * layout_.padded; }
  bool uses_batch() const {
    return affine_mode_ == AffineMode::batch_after || affine_mode_ == AffineMode::batch_before;
  }

  // The batch's statistics [tasks * width].
  void set_statistics(const float* mean, const float* variance);

  // Forward panels [inputs, padded] of a task.
  void make_room_forward(CallMemory& memory) { forward_ = memory.take(plan_.tasks * layout_.inputs * layout_.padded); }
  void fill_forward(int32_t task);
  const float* forward(int32_t task) const { return forward_ + task * layout_.inputs * layout_.padded; }

  // Backward panels: [padded, inputs] of a task; the first layer, where all tasks add to x's gradients, has one matrix
  // [tasks * padded, inputs].
  void make_room_backward(CallMemory& memory) { backward_ = memory.take(channels() * pad_to_lane(layout_.inputs)); }
  void fill_backward(int32_t task);
  const float* backward(int32_t task) const {
    return backward_ + (layer_ == 0 ? 0 : task * layout_.padded * pad_to_lane(layout_.inputs));
  }

 private:
  enum Vector { kBias, kSlope, kScale, kShift, kMean, kInverse, kVectors };
  float* vector(Vector which) { return vectors_.data() + which * channels(); }
  const float* vector(Vector which) const { return vectors_.data() + which * channels(); }
  void gather(Vector which, WeightKind kind);

  const Plan& plan_;
  const LayerLayout& layout_;
  const WeightList<const float*>& weights_;
  AffineMode affine_mode_;
  double eps_;
  int32_t layer_;
  std::vector<float> vectors_;
  float* forward_ = nullptr;
  float* backward_ = nullptr;
};

}  // namespace resflow::cpu
