// A tile program (core/program.h) as its kernel reads it: records in device memory, and the memory of a block. Both are
// computed once, and tested, on the host.
//
// A block keeps a frame of floats for each candidate: its input row, then its values at the places that decode_program
// gave them. Beside the frames is a staged row per candidate: the operand of a linear step, or the inputs of another
// step that reads several segments.
#pragma once

#include <algorithm>
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
  // Of a linear step: the words of the weights that multiply the inputs; where the sums of its user's columns are among
  // those of a request (-1: the sums begin as the biases); the next such step, or the number of steps.
  int32_t first_word, end_word;
  int32_t user_sums;
  int32_t next_linear;
  LayerLayout layer;

  RESFLOW_BOTH bool multiplies() const { return kind == StepKind::linear && first_word < end_word; }
};

// The records of a program, in host or device memory.
struct ProgramRecords {
  const StepRecord* steps;
  const FrameSegment* segments;  // of all steps, then the outputs
  int32_t step_count;
  int32_t first_linear;
  int32_t first_output, outputs;
  int32_t output_columns;
  int32_t first_column;  // of the input row that a step reads from a frame
};

// In the request form the user's columns of a linear step that reads the input row alone are multiplied once per
// request, by a program of their own, whose outputs are the sums that the candidates' program begins with. They are
// divided between whole products of the tensor cores, so that every sum is the same chain as in the dense form.
class RecordedProgram {
 public:
  // What is left to do for candidates whose first `user_columns` columns are the user's.
  static RecordedProgram of_candidates(const Plan& plan, int64_t user_columns) {
    RecordedProgram made(plan, plan.in_features);
    const Program& program = *plan.program;
    for (int64_t s = 0; s < program.step_count; ++s) {
      const Step& step = program.steps[s];
      made.add(step, program.values[s + 1].place, user_words(plan, step, user_columns), step.layer.words);
    }
    made.end(program.outputs, program.frame_floats);
    if (!program.reads_row) made.skip_columns();
    return made;
  }

  // What is done for users. Without a step there is nothing.
  static RecordedProgram of_users(const Plan& plan, int64_t user_columns) {
    RecordedProgram made(plan, user_columns);
    const Program& program = *plan.program;
    for (int64_t s = 0; s < program.step_count; ++s) {
      Step step = program.steps[s];
      const int64_t words = user_words(plan, step, user_columns), place = step.user_sums;
      if (words == 0) continue;
      step.affine = false;
      step.layer.activation = Activation::identity;
      step.factors = step.addends = {};
      step.user_sums = -1;
      made.add(step, place, 0, words);
    }
    const Segment sums{kSums, 0, program.user_sums};
    made.end({&sums, 1}, program.user_sums);
    return made;
  }

  int64_t step_count() const { return static_cast<int64_t>(steps_.size()); }
  int64_t bytes() const { return step_bytes() + static_cast<int64_t>(segments_.size() * sizeof(FrameSegment)); }
  int64_t frame_floats() const { return row_floats_ + value_floats_; }
  int64_t staged_words() const { return staged_words_; }

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
    ProgramRecords records = records_;
    records.steps = reinterpret_cast<const StepRecord*>(memory);
    records.segments = reinterpret_cast<const FrameSegment*>(memory + step_bytes());
    return records;
  }

 private:
  static constexpr int64_t kSums = -1;  // stands for the value that all sums are together

  RecordedProgram(const Plan& plan, int64_t row_columns)
      : program_(*plan.program), per_word_(inputs_per_word(plan.precision)), row_floats_(pad_to_lane(row_columns)) {}

  int64_t step_bytes() const { return static_cast<int64_t>(steps_.size() * sizeof(StepRecord)); }

  // The words of a step's inputs that are the user's, of those that are multiplied once per request.
  static int64_t user_words(const Plan& plan, const Step& step, int64_t user_columns) {
    if (step.user_sums < 0) return 0;
    const Segment& segment = step.inputs.all[0];
    const int64_t before = std::clamp<int64_t>(user_columns - segment.column, 0, segment.width);
    return before / inputs_per_word(plan.precision) / kProductWords * kProductWords;
  }

  void add(const Step& step, int64_t place, int64_t first_word, int64_t end_word) {
    StepRecord record{};
    record.kind = step.kind;
    record.affine = step.affine;
    record.groups = static_cast<int32_t>(step.groups);
    record.epsilon = step.epsilon;
    record.place = static_cast<int32_t>(row_floats_ + place);
    record.first = static_cast<int32_t>(segments_.size());
    record.inputs = static_cast<int32_t>(step.inputs.count);
    record.factors = static_cast<int32_t>(step.factors.count);
    record.addends = static_cast<int32_t>(step.addends.count);
    record.first_word = static_cast<int32_t>(first_word);
    record.end_word = static_cast<int32_t>(end_word);
    record.user_sums = first_word > 0 ? static_cast<int32_t>(step.user_sums) : -1;
    record.layer = step.layer;
    for (const Segments* segments : {&step.inputs, &step.factors, &step.addends}) add(*segments, step.width);
    const int64_t first = first_word * per_word_, end = std::min(end_word * per_word_, step.columns);
    if (step.kind == StepKind::linear && end - first < step.columns) {
      FrameSegment& only = segments_[record.first];
      only.place += static_cast<int32_t>(first);
      only.width = static_cast<int32_t>(end - first);
    }
    record.columns = static_cast<int32_t>(step.kind == StepKind::linear ? end - first : step.columns);
    steps_.push_back(record);
    staged_words_ = std::max(staged_words_, staged_words(step, record));
  }

  // What a candidate of a step has staged: an operand, or gathered inputs.
  static int64_t staged_words(const Step& step, const StepRecord& record) {
    if (step.kind == StepKind::linear) return record.end_word - record.first_word;
    const bool reads_segments = step.kind == StepKind::copy || step.kind == StepKind::mix;
    return reads_segments || step.inputs.count == 1 ? 0 : step.columns;
  }

  void add(const Segments& segments, int64_t width) {
    int64_t column = 0;
    for (const Segment& segment : segments) {
      segments_.push_back({static_cast<int32_t>(place_of(segment.value) + segment.column),
                           static_cast<int32_t>(segment.width), static_cast<int32_t>(column),
                           static_cast<int32_t>(width / segment.width)});
      column += segment.width;
    }
    records_.output_columns = static_cast<int32_t>(column);
  }

  int64_t place_of(int64_t value) const {
    if (value == 0) return 0;
    return row_floats_ + (value == kSums ? 0 : program_.values[value].place);
  }

  void end(const Segments& outputs, int64_t value_floats) {
    value_floats_ = value_floats;
    records_.step_count = static_cast<int32_t>(steps_.size());
    records_.first_output = static_cast<int32_t>(segments_.size());
    records_.outputs = static_cast<int32_t>(outputs.count);
    add(outputs, 0);
    int32_t next = records_.step_count;
    for (int32_t s = next; s-- > 0;) {
      steps_[s].next_linear = next;
      if (steps_[s].multiplies()) next = s;
    }
    records_.first_linear = next;
  }

  // Only linear steps read the row: up to where their inputs begin nothing does.
  void skip_columns() {
    auto first = static_cast<int32_t>(row_floats_);
    for (const StepRecord& step : steps_) {
      if (step.multiplies() && segments_[step.first].place < first) first = segments_[step.first].place;
    }
    records_.first_column = first;
  }

  const Program& program_;
  int64_t per_word_;
  int64_t row_floats_, value_floats_ = 0, staged_words_ = 0;
  std::vector<StepRecord> steps_;
  std::vector<FrameSegment> segments_;
  ProgramRecords records_{};
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

inline ProgramShape program_shape(const RecordedProgram& program, int32_t tasks, int32_t rows) {
  ProgramShape shape{};
  // Of lanes (16 floats) plus 4, so that 8 rows use different banks.
  shape.frame_stride = program.frame_floats() + 4;
  shape.staged_stride = operand_stride(program.staged_words());
  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t from = at;
    at += round_up(bytes, 128);
    return from;
  };
  shape.ring = take(kRingBytes);
  shape.row_info = take(static_cast<int64_t>(sizeof(RowInfo)) * rows);
  shape.logits = take(4 * rows * tasks);
  shape.shared_fixed = at;
  at = 0;
  shape.frames = take(4 * rows * shape.frame_stride);
  shape.staged = take(4 * rows * shape.staged_stride);
  shape.tile_bytes = at;
  return shape;
}

}  // namespace resflow::cuda
