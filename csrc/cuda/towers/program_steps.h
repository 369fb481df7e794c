// The steps of a tile program that are computed candidate by candidate: all but linear ones. A warp computes a
// candidate.
//
// What shares the work of a candidate depends on the step alone, so every result is the same in any batch.
#pragma once

#include "cuda/device/math.h"
#include "cuda/device/records.h"
#include "cuda/towers/program_layout.h"

namespace resflow::cuda {

RESFLOW_DEVICE int lane_index() { return thread_index() % 32; }

// A candidate's floats, in shared or global memory.
template <bool kShared>
struct Floats {
  float* first;

  RESFLOW_DEVICE float operator[](int64_t at) const {
    if constexpr (kShared) return first[at];
    return load_global(first + at);
  }
  RESFLOW_DEVICE void put(int64_t at, float value) const {
    if constexpr (kShared) {
      first[at] = value;
    } else {
      store_global(first + at, value);
    }
  }
  RESFLOW_DEVICE Floats from(int64_t at) const { return {first + at}; }
};

// The column of a factor that multiplies a column of the result.
RESFLOW_DEVICE int64_t factor_column(const FrameSegment& factor, int64_t column) {
  return factor.repeat == 1 ? column : factor.width == 1 ? 0 : column / factor.repeat;
}

// Columns of a group are added up by one lane, or by a warp together.
template <bool kTogether, class Add>
RESFLOW_DEVICE float fold(int width, Add add) {
  float sum = 0.0f;
  for (int c = kTogether ? lane_index() : 0; c < width; c += kTogether ? 32 : 1) sum = add(sum, c);
  if constexpr (kTogether) sum = warp_sum(sum);
  return sum;
}

template <bool kTogether>
RESFLOW_DEVICE float largest_of(float own) {
#pragma unroll
  for (int mask = 16; kTogether && mask > 0; mask /= 2) own = at_least(own, shuffle_xor(own, mask));
  return own;
}

// Whether a warp computes one group after another, or each lane its own: whichever takes fewer steps, but for wide
// groups, whose sums would be less exact in one lane.
RESFLOW_DEVICE bool shares_groups(int groups, int width) { return width > 64 || 6 * groups < width; }

template <bool kTogether, bool kShared>
class GroupSteps {
 public:
  RESFLOW_DEVICE GroupSteps(const StepRecord& step, Floats<kShared> in, Floats<kShared> out)
      : step_(step), groups_(step.groups), width_(step.columns / step.groups), in_(in), out_(out) {}

  RESFLOW_DEVICE void run() const {
    switch (step_.kind) {
      case StepKind::softmax:
        return each([&](int group) { softmax(in_.from(group * width_), out_.from(group * width_)); });
      case StepKind::sum:
        return each([&](int group) { put(group, sum(in_.from(group * width_))); });
      case StepKind::layer_norm:
      case StepKind::rms_norm:
      case StepKind::l2_norm:
        return each([&](int group) { norm(in_.from(group * width_), out_.from(group * width_)); });
      case StepKind::linear:
      case StepKind::copy:
      case StepKind::mix:
      case StepKind::fm:
      case StepKind::dot:
      case StepKind::count:
        return;
    }
  }

  // The dot products of all pairs of fields, in order.
  RESFLOW_DEVICE void dot() const {
    const int pairs = groups_ * (groups_ - 1) / 2;
    for (int pair = first(); pair < pairs; pair += kStep) {
      int i = 0, left = pair;
      for (; left >= groups_ - 1 - i; ++i) left -= groups_ - 1 - i;
      const Floats<kShared> a = in_.from(i * width_), b = in_.from((i + 1 + left) * width_);
      put(pair, fold<kTogether>(width_, [&](float sum, int c) { return fmaf(a[c], b[c], sum); }));
    }
  }

 private:
  static constexpr int kStep = kTogether ? 1 : 32;
  static RESFLOW_DEVICE int first() { return kTogether ? 0 : lane_index(); }

  template <class Run>
  RESFLOW_DEVICE void each(Run run) const {
    for (int group = first(); group < groups_; group += kStep) run(group);
  }
  // Calls visit with this lane's columns of a group.
  template <class Visit>
  RESFLOW_DEVICE void columns(Visit visit) const {
    for (int c = kTogether ? lane_index() : 0; c < width_; c += kTogether ? 32 : 1) visit(c);
  }
  RESFLOW_DEVICE void put(int at, float value) const {
    if (!kTogether || lane_index() == 0) out_.put(at, value);
  }

  RESFLOW_DEVICE float sum(Floats<kShared> in) const {
    return fold<kTogether>(width_, [&](float sum, int c) { return sum + in[c]; });
  }

  // NaN anywhere makes all of it NaN: if not through the largest, then through the sum.
  RESFLOW_DEVICE void softmax(Floats<kShared> in, Floats<kShared> out) const {
    float largest = in[0];
    columns([&](int c) { largest = at_least(in[c], largest); });
    largest = largest_of<kTogether>(largest);
    columns([&](int c) { out.put(c, expf(in[c] - largest)); });
    const float total = fold<kTogether>(width_, [&](float sum, int c) { return sum + out[c]; });
    columns([&](int c) { out.put(c, out[c] / total); });
  }

  RESFLOW_DEVICE void norm(Floats<kShared> in, Floats<kShared> out) const {
    const float count = static_cast<float>(width_);
    float mean = 0.0f;
    if (step_.kind == StepKind::layer_norm) mean = sum(in) / count;
    const float squares = fold<kTogether>(width_, [&](float sum, int c) {
      const float own = in[c] - mean;
      return fmaf(own, own, sum);
    });
    const float over = step_.kind == StepKind::l2_norm ? at_least(sqrtf(squares), step_.epsilon)
                                                       : sqrtf(squares / count + step_.epsilon);
    columns([&](int c) { out.put(c, (in[c] - mean) / over); });
  }

  const StepRecord& step_;
  const int groups_, width_;
  const Floats<kShared> in_, out_;
};

// One candidate of a step, by a warp: the step's core on its inputs, then what all steps have in common.
template <bool kShared>
class CandidateStep {
 public:
  RESFLOW_DEVICE CandidateStep(const StepRecord& step, const FrameSegment* segments, const float* weights,
                               Floats<kShared> frame)
      : step_(step), segments_(segments + step.first), weights_(weights), frame_(frame), out_(frame.from(step.place)) {}

  // `staged` has room for the inputs.
  RESFLOW_DEVICE void run(Floats<kShared> staged) const {
    if (step_.kind == StepKind::mix) {
      mix();
    } else if (step_.kind == StepKind::copy) {
      gather(out_);
    } else {
      run_row(inputs(staged));
    }
    sync_warp();
    finish();
  }

 private:
  // Calls visit with this lane's columns of the result.
  template <class Visit>
  RESFLOW_DEVICE void columns(int64_t width, Visit visit) const {
    for (int64_t c = lane_index(); c < width; c += 32) visit(c);
  }

  RESFLOW_DEVICE void gather(Floats<kShared> to) const {
    for (int i = 0; i < step_.inputs; ++i) {
      const FrameSegment segment = load_record(segments_ + i);
      columns(segment.width, [&](int64_t c) { to.put(segment.column + c, frame_[segment.place + c]); });
    }
  }

  // The inputs one after another: where they lie, if that is one segment.
  RESFLOW_DEVICE Floats<kShared> inputs(Floats<kShared> staged) const {
    if (step_.inputs == 1) return frame_.from(load_record(segments_).place);
    gather(staged);
    sync_warp();
    return staged;
  }

  RESFLOW_DEVICE void run_row(Floats<kShared> in) const {
    const int width = step_.columns / step_.groups;
    if (step_.kind == StepKind::fm) return fm(in, width);
    const int pairs = step_.groups * (step_.groups - 1) / 2;
    const bool dots = step_.kind == StepKind::dot;
    if (shares_groups(dots ? pairs : step_.groups, width)) {
      const GroupSteps<true, kShared> steps(step_, in, out_);
      dots ? steps.dot() : steps.run();
    } else {
      const GroupSteps<false, kShared> steps(step_, in, out_);
      dots ? steps.dot() : steps.run();
    }
  }

  RESFLOW_DEVICE void fm(Floats<kShared> in, int width) const {
    columns(width, [&](int64_t c) {
      float sum = 0.0f, squares = 0.0f;
      for (int field = 0; field < step_.groups; ++field) {
        const float value = in[static_cast<int64_t>(field) * width + c];
        sum += value;
        squares = fmaf(value, value, squares);
      }
      out_.put(c, 0.5f * (sum * sum - squares));
    });
  }

  RESFLOW_DEVICE void mix() const {
    const Floats<kShared> gates = frame_.from(load_record(segments_).place);
    for (int value = 1; value < step_.inputs; ++value) {
      const Floats<kShared> from = frame_.from(load_record(segments_ + value).place);
      const float gate = gates[value - 1];
      columns(step_.layer.width, [&](int64_t c) { out_.put(c, fmaf(gate, from[c], value == 1 ? 0.0f : out_[c])); });
    }
  }

  // Activation and affine, factors, addends. Every lane has its own columns.
  RESFLOW_DEVICE void finish() const {
    const LayerLayout& layer = step_.layer;
    if (layer.activation != Activation::identity || step_.affine) {
      with_activation(layer.activation, [&](auto own) {
        columns(layer.width, [&](int64_t c) {
          float slope = 0.0f;
          if constexpr (own.value == Activation::prelu) slope = load_constant(weights_ + layer.slope + c);
          float value = activate<own.value>(out_[c], slope);
          if (step_.affine) {
            value = fmaf(value, load_constant(weights_ + layer.scale + c), load_constant(weights_ + layer.shift + c));
          }
          out_.put(c, value);
        });
      });
    }
    const FrameSegment* next = segments_ + step_.inputs;
    for (int i = 0; i < step_.factors; ++i) {
      const FrameSegment factor = load_record(next++);
      const Floats<kShared> from = frame_.from(factor.place);
      columns(layer.width, [&](int64_t c) { out_.put(c, out_[c] * from[factor_column(factor, c)]); });
    }
    for (int i = 0; i < step_.addends; ++i) {
      const Floats<kShared> from = frame_.from(load_record(next++).place);
      columns(layer.width, [&](int64_t c) { out_.put(c, out_[c] + from[c]); });
    }
  }

  const StepRecord& step_;
  const FrameSegment* const segments_;
  const float* const weights_;
  const Floats<kShared> frame_, out_;
};

}  // namespace resflow::cuda
