// Tile programs for the C++ tests, encoded as resflow_kernels/core/program.py does, and drawn ones.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/program.h"
#include "draw.h"

namespace resflow::testing {

struct StepDraft {
  StepKind kind = StepKind::linear;
  int64_t width = 1;
  std::vector<Segment> inputs, factors, addends;
  int64_t groups = 1;
  Activation activation = Activation::identity;
  bool affine = false;
  float epsilon = 0;
};

inline int64_t encoded_segment(const Segment& segment) {
  uint64_t number = 0;
#define RESFLOW_SEGMENT_FIELD(name, shift, bits) number |= static_cast<uint64_t>(segment.name) << shift;
#include "contract/program.def"
  return static_cast<int64_t>(number);
}

inline void append_step(const StepDraft& step, Encoded& plan) {
  uint64_t numbers[program_limit::step_words] = {};
  const auto kind = static_cast<int64_t>(step.kind), activation = static_cast<int64_t>(step.activation);
  const auto inputs = step.inputs.size(), factors = step.factors.size(), addends = step.addends.size();
  const int64_t affine = step.affine, width = step.width, groups = step.groups;
  uint32_t epsilon;
  std::memcpy(&epsilon, &step.epsilon, sizeof(epsilon));
#define RESFLOW_STEP_FIELD(name, word, shift, bits) numbers[word] |= static_cast<uint64_t>(name) << shift;
#include "contract/program.def"
  plan.insert(plan.end(), std::begin(numbers), std::end(numbers));
  for (const auto* const segments : {&step.inputs, &step.factors, &step.addends}) {
    for (const Segment& segment : *segments) plan.push_back(encoded_segment(segment));
  }
}

// Appends steps and outputs to a plan's fields and parents.
inline void append_program(const std::vector<StepDraft>& steps, const std::vector<Segment>& outputs, Encoded& plan) {
  plan.push_back(static_cast<int64_t>(steps.size()));
  plan.push_back(static_cast<int64_t>(outputs.size()));
  for (const StepDraft& step : steps) append_step(step, plan);
  for (const Segment& output : outputs) plan.push_back(encoded_segment(output));
}

// Draws steps that read what earlier ones made.
class ProgramDraw {
 public:
  ProgramDraw(Draw& draw, int64_t in_features) : draw_(draw), widths_{in_features} {}

  std::vector<StepDraft> steps;

  // Any columns of any value; later values are likelier.
  Segment segment() {
    const int64_t last = static_cast<int64_t>(widths_.size()) - 1;
    const int64_t value = std::max(draw_.number(0, last), draw_.number(0, last));
    const int64_t width = draw_.flip() ? widths_[value] : draw_.number(1, widths_[value]);
    return {value, draw_.number(0, widths_[value] - width), width};
  }

  void add(StepKind kind) {
    StepDraft step;
    step.kind = kind;
    step.activation = draw_.name<Activation>();
    step.affine = draw_.flip();
    step.epsilon = 0.1f;
    if (kind == StepKind::linear) {
      for (int64_t i = draw_.number(1, 3); i > 0; --i) step.inputs.push_back(segment());
      if (draw_.flip()) step.inputs = {{0, 0, widths_[0]}};
      step.width = draw_.number(1, draw_.flip() ? 20 : 90);
    } else if (kind == StepKind::mix) {
      step.width = segment().width;
      const int64_t gates = draw_.number(1, std::min<int64_t>(4, *std::max_element(widths_.begin(), widths_.end())));
      step.inputs.push_back(of_width(gates));
      for (int64_t e = 0; e < gates; ++e) step.inputs.push_back(of_width(step.width));
    } else {
      group(step);
    }
    if (draw_.flip()) step.addends.push_back(segment());
    if (step.addends.size() == 1 && step.addends[0].width != step.width) step.addends.clear();
    if (draw_.flip()) step.factors.push_back(segment());
    if (step.factors.size() == 1 && step.width % step.factors[0].width != 0) step.factors[0].width = 1;
    steps.push_back(step);
    widths_.push_back(step.width);
  }

  int64_t values() const { return static_cast<int64_t>(widths_.size()); }

 private:
  Segment of_width(int64_t width) {
    for (;;) {
      const int64_t value = draw_.number(0, values() - 1);
      if (widths_[value] >= width) return {value, draw_.number(0, widths_[value] - width), width};
    }
  }

  // A step whose input columns are divided into groups.
  void group(StepDraft& step) {
    step.inputs.push_back(segment());
    const int64_t columns = step.inputs[0].width;
    std::vector<int64_t> divisors;
    for (int64_t groups = 1; groups <= columns && groups <= 8; ++groups) {
      if (columns % groups == 0) divisors.push_back(groups);
    }
    step.groups = draw_.one_of(divisors);
    if (step.kind == StepKind::dot && step.groups == 1) step.kind = StepKind::fm;
    step.width = step.kind == StepKind::sum   ? step.groups
                 : step.kind == StepKind::fm  ? columns / step.groups
                 : step.kind == StepKind::dot ? step.groups * (step.groups - 1) / 2
                                              : columns;
  }

  Draw& draw_;
  std::vector<int64_t> widths_;
};

// A scored program: steps of all kinds in a drawn order, then one that makes the tasks' logits.
inline Encoded draw_program(Draw& draw, int64_t in_features, Precision precision) {
  const int64_t tasks = draw.number(1, 4);
  Encoded plan = draw_head(draw, in_features, tasks, 0, precision);
  append_parents(draw, tasks, plan);
  ProgramDraw program(draw, in_features);
  program.add(StepKind::linear);
  for (int64_t s = draw.number(0, 5); s > 0; --s) program.add(draw.name<StepKind>());
  StepDraft last;
  last.inputs = {program.segment(), program.segment(), {program.values() - 1, 0, 1}};
  last.width = tasks;
  program.steps.push_back(last);
  append_program(program.steps, {{program.values(), 0, tasks}}, plan);
  return plan;
}

}  // namespace resflow::testing
