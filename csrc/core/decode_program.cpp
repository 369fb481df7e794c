#include "core/decode_program.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/error.h"

namespace resflow {
namespace {

void require(bool holds, const char* op, const std::string& rule, int64_t got) {
  if (!holds) fail(op, "plan", expected::plan, std::to_string(got), rule);
}

int64_t field(const int64_t* numbers, int64_t word, int64_t shift, int64_t bits) {
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  return static_cast<int64_t>(static_cast<uint64_t>(numbers[word]) >> shift & mask);
}

class Decoder {
 public:
  Decoder(const char* op, const int64_t* numbers, int64_t count, Plan& plan, ProgramStorage& storage)
      : op_(op), numbers_(numbers), left_(count), plan_(plan), storage_(storage) {}

  void run() {
    const int64_t steps = take(1)[0];
    require(steps >= 0 && steps <= program_limit::max_steps, op_, "a known number of steps", steps);
    const int64_t outputs = take(1)[0];
    require(outputs >= 1 && outputs <= program_limit::max_outputs, op_, "a known number of outputs", outputs);
    storage_.steps.clear();
    storage_.segments.clear();
    storage_.values.assign(1, {0, plan_.in_features, pad_to_lane(plan_.in_features)});
    columns_ = plan_.in_features;
    require(columns_ <= program_limit::max_columns, op_, "fewer columns", columns_);
    storage_.segments.reserve(left_);  // no more than numbers, so that they do not move
    for (int64_t s = 0; s < steps; ++s) decode_step();
    const Segments read = read_segments(outputs);
    require(left_ == 0, op_, "no numbers after its outputs", left_);
    Program& program = storage_.program;
    program = {};
    program.steps = storage_.steps.data();
    program.step_count = steps;
    program.outputs = read;
    program.output_columns = columns_of(program.outputs);
    require(plan_.tasks == 0 || plan_.tasks == program.output_columns, op_, "an output column per task",
            program.output_columns);
    for (Step& step : storage_.steps) check(step);
    lay_out_weights();
    lay_out_values();
    program.values = storage_.values.data();
    plan_.program = &program;
  }

 private:
  const int64_t* take(int64_t count) {
    require(left_ >= count, op_, "all numbers of its steps", left_);
    const int64_t* const taken = numbers_;
    numbers_ += count;
    left_ -= count;
    return taken;
  }

  // Appends segments, all of values that are made before.
  Segments read_segments(int64_t count) {
    const Segment* const first = storage_.segments.data() + storage_.segments.size();
    const int64_t* const numbers = take(count);
    for (int64_t i = 0; i < count; ++i) {
      Segment segment{};
#define RESFLOW_SEGMENT_FIELD(name, shift, bits) segment.name = field(numbers + i, 0, shift, bits);
#include "contract/program.def"
      const auto values = static_cast<int64_t>(storage_.values.size());
      require(segment.value < values, op_, "segments of earlier values", segment.value);
      require(segment.width >= 1 && segment.column + segment.width <= storage_.values[segment.value].width, op_,
              "segments inside their values", segment.column + segment.width);
      storage_.segments.push_back(segment);
    }
    return {first, count};
  }

  void decode_step() {
    struct {
#define RESFLOW_STEP_FIELD(name, word, shift, bits) int64_t name;
#include "contract/program.def"
    } fields;
    const int64_t* const numbers = take(program_limit::step_words);
#define RESFLOW_STEP_FIELD(name, word, shift, bits) fields.name = field(numbers, word, shift, bits);
#include "contract/program.def"
    require(fields.kind < static_cast<int64_t>(StepKind::count), op_, "known kinds of steps", fields.kind);
    require(fields.activation < static_cast<int64_t>(Activation::count), op_, "known activations", fields.activation);
    require(fields.width >= 1, op_, "steps of at least one column", fields.width);
    require(fields.groups >= 1, op_, "steps of at least one group", fields.groups);
    require(fields.inputs >= 1, op_, "steps with inputs", fields.inputs);
    columns_ += fields.width;
    require(columns_ <= program_limit::max_columns, op_, "fewer columns", columns_);
    Step step{};
    step.kind = static_cast<StepKind>(fields.kind);
    step.width = fields.width;
    step.groups = fields.groups;
    step.affine = fields.affine != 0;
    const auto epsilon = static_cast<uint32_t>(fields.epsilon);
    std::memcpy(&step.epsilon, &epsilon, sizeof(epsilon));
    require(step.epsilon >= 0.0f && step.epsilon <= 3.4028235e38f, op_, "a finite epsilon of at least 0",
            fields.epsilon);
    step.layer.activation = static_cast<Activation>(fields.activation);
    step.inputs = read_segments(fields.inputs);
    step.factors = read_segments(fields.factors);
    step.addends = read_segments(fields.addends);
    storage_.steps.push_back(step);
    storage_.values.push_back({0, step.width, pad_to_lane(step.width)});
  }

  static int64_t columns_of(const Segments& segments) {
    int64_t columns = 0;
    for (const Segment& segment : segments) columns += segment.width;
    return columns;
  }

  // Sets the step's columns and checks that widths agree.
  void check(Step& step) {
    step.columns = columns_of(step.inputs);
    const bool mixes = step.kind == StepKind::mix;
    require(mixes || step.columns % step.groups == 0, op_, "columns in equal groups", step.columns);
    require(width_of(step) == step.width, op_, "steps of the width that their inputs make", step.width);
    for (int64_t i = 1; mixes && i < step.inputs.count; ++i) {
      require(step.inputs.all[i].width == step.width, op_, "mixed values of one width", step.inputs.all[i].width);
    }
    require(!mixes || step.inputs.all[0].width == step.inputs.count - 1, op_, "a gate per mixed value",
            step.inputs.all[0].width);
    for (const Segment& factor : step.factors) {
      require(step.width % factor.width == 0, op_, "factors that divide their step's width", factor.width);
    }
    for (const Segment& addend : step.addends) {
      require(addend.width == step.width, op_, "addends of their step's width", addend.width);
    }
    require(
        step.kind != StepKind::linear || plan_.precision != Precision::int8 || step.columns <= limit::max_int8_inputs,
        op_, "at most " + std::to_string(limit::max_int8_inputs) + " inputs in int8", step.columns);
  }

  static int64_t width_of(const Step& step) {
    switch (step.kind) {
      case StepKind::linear:
      case StepKind::mix:
        return step.width;
      case StepKind::copy:
      case StepKind::softmax:
      case StepKind::layer_norm:
      case StepKind::rms_norm:
      case StepKind::l2_norm:
        return step.columns;
      case StepKind::sum:
        return step.groups;
      case StepKind::fm:
        return step.columns / step.groups;
      case StepKind::dot:
        return step.groups * (step.groups - 1) / 2;
      case StepKind::count:
        break;
    }
    return 0;
  }

  void lay_out_weights() {
    unsigned __int128 floats = 0;
    Program& program = storage_.program;
    for (Step& step : storage_.steps) {
      LayerLayout& layer = step.layer;
      const bool linear = step.kind == StepKind::linear;
      layer.width = step.width;
      layer.padded = pad_to_lane(step.width);
      layer.inputs = linear ? step.columns : 0;
      layer.words = (layer.inputs + inputs_per_word(plan_.precision) - 1) / inputs_per_word(plan_.precision);
      const auto take = [&](bool exists, int64_t count) {
        const auto at = static_cast<int64_t>(floats);
        if (exists) floats += static_cast<unsigned __int128>(count) * layer.padded;
        return at;
      };
      layer.panels = take(linear, layer.words);
      layer.bias = take(linear, 1);
      layer.slope = take(layer.activation == Activation::prelu, 1);
      layer.scale = take(step.affine, 1);
      layer.shift = take(step.affine, 1);
      layer.column_scale = take(linear && has(plan_.precision, precision_flag::column_scales), 1);
      program.words = std::max(program.words, layer.words);
      step.user_sums = -1;
      if (linear && step.inputs.count == 1 && step.inputs.all[0].value == 0) {
        step.user_sums = program.user_sums;
        program.user_sums += layer.padded;
      }
      const auto read = [&](const Segments& segments) {
        for (const Segment& segment : segments) program.reads_row = program.reads_row || segment.value == 0;
      };
      if (step.user_sums < 0) read(step.inputs);
      read(step.factors);
      read(step.addends);
      if (linear) program.panels += (layer.padded + kPanelWidth - 1) / kPanelWidth;
      if (step.inputs.count > 1 || !linear) {
        program.gathered_floats = std::max(program.gathered_floats, pad_to_lane(step.columns) + kLane);
      }
    }
    for (const Segment& segment : program.outputs) program.reads_row = program.reads_row || segment.value == 0;
    const unsigned __int128 bytes = floats * sizeof(float) + kHeaderBytes;
    require(bytes < (static_cast<unsigned __int128>(1) << 62), op_, "weights of less than 2^62 bytes",
            plan_.in_features);
    plan_.task_floats = static_cast<int64_t>(floats);
    plan_.tensor_start = plan_.packed_bytes = static_cast<int64_t>(bytes);
  }

  // Gives every value a place from its step to its last reader; outputs are read at the end.
  void lay_out_values() {
    const auto count = static_cast<int64_t>(storage_.values.size());
    std::vector<int64_t> last(count, -1);
    for (int64_t s = 0; s < count - 1; ++s) {
      const Step& step = storage_.steps[s];
      last[s + 1] = s;
      for (const Segments* segments : {&step.inputs, &step.factors, &step.addends}) {
        for (const Segment& segment : *segments) last[segment.value] = s;
      }
    }
    for (const Segment& segment : storage_.program.outputs) last[segment.value] = count;
    struct Free {
      int64_t place, floats;
    };
    std::vector<Free> free;
    std::vector<std::vector<int64_t>> ends(count + 1);
    for (int64_t v = 1; v < count; ++v) ends[last[v]].push_back(v);
    int64_t& frame = storage_.program.frame_floats;
    for (int64_t s = 0; s < count - 1; ++s) {
      ValuePlace& value = storage_.values[s + 1];
      // The smallest free place that is large enough, or a new one.
      auto best = free.end();
      for (auto one = free.begin(); one != free.end(); ++one) {
        if (one->floats >= value.padded && (best == free.end() || one->floats < best->floats)) best = one;
      }
      if (best == free.end()) {
        value.place = frame;
        frame += value.padded;
      } else {
        value.place = best->place;
        best->place += value.padded;
        best->floats -= value.padded;
        if (best->floats == 0) free.erase(best);
      }
      for (const int64_t ended : ends[s]) free.push_back({storage_.values[ended].place, storage_.values[ended].padded});
    }
  }

  const char* op_;
  const int64_t* numbers_;
  int64_t left_;
  Plan& plan_;
  ProgramStorage& storage_;
  int64_t columns_ = 0;
};

}  // namespace

void decode_program(const char* op, const int64_t* numbers, int64_t count, Plan& plan, ProgramStorage& storage) {
  Decoder(op, numbers, count, plan, storage).run();
}

}  // namespace resflow
