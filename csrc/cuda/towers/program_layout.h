// A tile program (core/program.h) as its kernel reads it: records in device memory, and the memory of a block. Both are
// computed once, and tested, on the host.
//
// A block keeps a frame of floats for each candidate: its input row, then its values at the places that decode_program
// gave them. Beside the frames is a staged row per candidate: the operand of a linear step, or the inputs of another
// step that reads several segments.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "core/program.h"
#include "cuda/towers/tower_shape.h"

namespace resflow::cuda {

// Consecutive floats of a frame.
struct alignas(16) FrameSegment {
  int32_t place;
  int32_t width;
  int32_t column;  // of the step's inputs, or of the outputs, where it begins
  int32_t repeat;  // how many columns of the step's result a factor's column multiplies
};

struct alignas(16) StepRecord {
  StepKind kind;
  int32_t affine;
  int32_t groups;
  int32_t columns;  // of all inputs together
  float epsilon;
  int32_t place;  // of the result
  int32_t first;  // among the segments: the inputs, then the factors, then the addends
  int32_t inputs, factors, addends;
  int32_t next_linear;  // the next linear step, or the number of steps
  LayerLayout layer;
};

// The records of a program, in host or device memory.
struct ProgramRecords {
  const StepRecord* steps;
  const FrameSegment* segments;  // of all steps, then the outputs
  int32_t step_count;
  int32_t first_linear;
  int32_t first_output, outputs;
  int32_t output_columns;
};

class RecordedProgram {
 public:
  explicit RecordedProgram(const Plan& plan) : program_(*plan.program), row_floats_(pad_to_lane(plan.in_features)) {
    for (int64_t s = 0; s < program_.step_count; ++s) add(program_.steps[s], program_.values[s + 1]);
    first_output_ = static_cast<int32_t>(segments_.size());
    add(program_.outputs, 0);
    auto next = static_cast<int32_t>(steps_.size());
    for (int32_t s = next; s-- > 0;) {
      steps_[s].next_linear = next;
      if (steps_[s].kind == StepKind::linear) next = s;
    }
    first_linear_ = next;
  }

  int64_t bytes() const { return step_bytes() + static_cast<int64_t>(segments_.size() * sizeof(FrameSegment)); }

  // All bytes, in 8-byte words.
  std::vector<uint64_t> words() const {
    std::vector<uint64_t> words(static_cast<size_t>(bytes()) / sizeof(uint64_t));
    auto* const to = reinterpret_cast<char*>(words.data());
    if (!steps_.empty()) std::memcpy(to, steps_.data(), static_cast<size_t>(step_bytes()));
    std::memcpy(to + step_bytes(), segments_.data(), segments_.size() * sizeof(FrameSegment));
    return words;
  }

  // Where the words are copied to `memory`.
  ProgramRecords at(const char* memory) const {
    return {reinterpret_cast<const StepRecord*>(memory),
            reinterpret_cast<const FrameSegment*>(memory + step_bytes()),
            static_cast<int32_t>(steps_.size()),
            first_linear_,
            first_output_,
            static_cast<int32_t>(program_.outputs.count),
            static_cast<int32_t>(program_.output_columns)};
  }

 private:
  int64_t step_bytes() const { return static_cast<int64_t>(steps_.size() * sizeof(StepRecord)); }

  void add(const Step& step, const ValuePlace& value) {
    StepRecord record{};
    record.kind = step.kind;
    record.affine = step.affine;
    record.groups = static_cast<int32_t>(step.groups);
    record.columns = static_cast<int32_t>(step.columns);
    record.epsilon = step.epsilon;
    record.place = static_cast<int32_t>(row_floats_ + value.place);
    record.first = static_cast<int32_t>(segments_.size());
    record.inputs = static_cast<int32_t>(step.inputs.count);
    record.factors = static_cast<int32_t>(step.factors.count);
    record.addends = static_cast<int32_t>(step.addends.count);
    record.layer = step.layer;
    steps_.push_back(record);
    for (const Segments* segments : {&step.inputs, &step.factors, &step.addends}) add(*segments, step.width);
  }

  void add(const Segments& segments, int64_t width) {
    int64_t column = 0;
    for (const Segment& segment : segments) {
      const int64_t value = segment.value == 0 ? 0 : row_floats_ + program_.values[segment.value].place;
      segments_.push_back({static_cast<int32_t>(value + segment.column), static_cast<int32_t>(segment.width),
                           static_cast<int32_t>(column), static_cast<int32_t>(width / segment.width)});
      column += segment.width;
    }
  }

  const Program& program_;
  int64_t row_floats_;
  std::vector<StepRecord> steps_;
  std::vector<FrameSegment> segments_;
  int32_t first_linear_ = 0, first_output_ = 0;
};

// Byte offsets into a block's memory; the ring, row infos and logits are always in shared memory.
struct ProgramShape {
  int64_t frame_stride;   // floats from one candidate's frame to the next one's
  int64_t staged_stride;  // words

  int64_t row_info;  // RowInfo [rows]
  int64_t logits;    // float [rows][tasks]
  int64_t ring;
  int64_t shared_fixed;  // total bytes of the above

  // In shared memory after the above, or in global memory:
  int64_t frames;
  int64_t staged;
  int64_t tile_bytes;

  int64_t shared_bytes(bool tile_in_shared) const { return shared_fixed + (tile_in_shared ? tile_bytes : 0); }
};

// The widest row that a step other than a linear one gathers from several segments.
inline int64_t gathered_columns(const Program& program) {
  int64_t columns = 0;
  for (int64_t s = 0; s < program.step_count; ++s) {
    const Step& step = program.steps[s];
    const bool reads_segments =
        step.kind == StepKind::linear || step.kind == StepKind::copy || step.kind == StepKind::mix;
    if (!reads_segments && step.inputs.count > 1 && step.columns > columns) columns = step.columns;
  }
  return columns;
}

inline ProgramShape program_shape(const Plan& plan, int32_t rows) {
  const Program& program = *plan.program;
  ProgramShape shape{};
  // Of lanes (16 floats) plus 4, so that 8 rows use different banks.
  shape.frame_stride = pad_to_lane(plan.in_features) + program.frame_floats + 4;
  const int64_t gathered = gathered_columns(program);
  shape.staged_stride = operand_stride(program.words > gathered ? program.words : gathered);

  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t from = at;
    at += round_up(bytes, 128);
    return from;
  };
  shape.ring = take(kRingBytes);
  shape.row_info = take(static_cast<int64_t>(sizeof(RowInfo)) * rows);
  shape.logits = take(4 * rows * plan.tasks);
  shape.shared_fixed = at;
  at = 0;
  shape.frames = take(4 * rows * shape.frame_stride);
  shape.staged = take(4 * rows * shape.staged_stride);
  shape.tile_bytes = at;
  return shape;
}

}  // namespace resflow::cuda
