// The canonical weights of a plan, in order (Plan.weight_shapes in resflow_kernels/core/plan.py).
#pragma once

#include <cstdint>
#include <vector>

#include "core/program.h"

namespace resflow {

enum class WeightKind { weight, bias, slope, scale, shift, count };
constexpr const char* kWeightNames[] = {"weight", "bias", "slope", "scale", "shift"};

// A matrix [inputs, columns], or a vector [columns].
struct WeightShape {
  int32_t task;
  int32_t layer;  // -1: the head; of a tile program (task 0) the step
  WeightKind kind;
  int64_t inputs;  // 0 in a vector
  int64_t columns;
  int64_t offset;  // of a vector in the task's packed block

  int64_t size() const { return inputs ? inputs * columns : columns; }
};

// What a step or a layer has besides its matrix.
template <class Visit>
void for_each_vector(const WeightShape& shape, const LayerLayout& layer, bool bias, bool affine, Visit visit) {
  const auto vector = [&](WeightKind kind, int64_t offset) {
    visit(WeightShape{shape.task, shape.layer, kind, 0, layer.width, offset});
  };
  if (bias) vector(WeightKind::bias, layer.bias);
  if (layer.activation == Activation::prelu) vector(WeightKind::slope, layer.slope);
  if (affine) {
    vector(WeightKind::scale, layer.scale);
    vector(WeightKind::shift, layer.shift);
  }
}

inline const LayerLayout& layer_of(const Plan& plan, const WeightShape& shape) {
  return plan.program ? plan.program->steps[shape.layer].layer : plan.layer[shape.layer];
}

template <class Visit>
void for_each_weight(const Plan& plan, Visit visit) {
  for (int32_t s = 0; plan.program && s < plan.program->step_count; ++s) {
    const Step& step = plan.program->steps[s];
    const WeightShape matrix{0, s, WeightKind::weight, step.layer.inputs, step.width, 0};
    const bool linear = step.kind == StepKind::linear;
    if (linear) visit(matrix);
    for_each_vector(matrix, step.layer, linear, step.affine, visit);
  }
  if (plan.program) return;
  for (int32_t k = 0; k < plan.tasks; ++k) {
    for (int32_t l = 0; l < plan.layers; ++l) {
      const LayerLayout& layer = plan.layer[l];
      const WeightShape matrix{k, l, WeightKind::weight, layer.inputs, layer.width, 0};
      visit(matrix);
      for_each_vector(matrix, layer, true, plan.affine, visit);
    }
    visit(WeightShape{k, -1, WeightKind::weight, 0, plan.layer[plan.layers - 1].width, plan.head_weight});
    visit(WeightShape{k, -1, WeightKind::bias, 0, 1, plan.head_bias});
  }
}

// One pointer per weight, by task, layer and kind; null where the plan has none.
template <class Pointer>
class WeightList {
 public:
  // next(shape) returns the pointers in canonical order.
  template <class Next>
  WeightList(const Plan& plan, Next next) : layers_(plan.layers), all_(plan.tasks * (plan.layers + 1) * kKinds) {
    for_each_weight(plan, [&](const WeightShape& shape) {
      all_[place(shape.task, shape.layer < 0 ? layers_ : shape.layer, shape.kind)] = next(shape);
    });
  }

  Pointer of(int32_t task, int32_t layer, WeightKind kind) const { return all_[place(task, layer, kind)]; }
  Pointer head(int32_t task, WeightKind kind) const { return of(task, layers_, kind); }

 private:
  static constexpr int64_t kKinds = static_cast<int64_t>(WeightKind::count);
  int64_t place(int32_t task, int32_t layer, WeightKind kind) const {
    return (task * (layers_ + 1) + layer) * kKinds + static_cast<int64_t>(kind);
  }

  int32_t layers_;
  std::vector<Pointer> all_;
};

}  // namespace resflow
