// A tile program with a step of every kind, encoded as in resflow_kernels/core/program.py, packed, and run by the
// program kernel in the emulator.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "core/decode_program.h"
#include "core/pack.h"
#include "core/weights.h"
#include "cuda/device/launch.h"
#include "cuda/towers/dispatch.h"
#include "cuda/towers/program.h"
#include "models.h"

namespace resflow::testing {

using Row = std::vector<Segment>;

struct StepSpec {
  StepKind kind;
  int64_t width;
  Row inputs;
  Activation activation = Activation::identity;
  bool affine = false;
  int64_t groups = 1;
  float epsilon = 0.0f;
  Row factors = {}, addends = {};
};

class ProgramEncoder {
 public:
  ProgramEncoder(int64_t in_features, std::vector<int64_t> parents, Precision precision)
      : head_{limit::version,
              in_features,
              static_cast<int64_t>(parents.size()),
              0,
              0,
              0,
              !parents.empty(),
              0,
              0,
              static_cast<int64_t>(precision)} {
    head_.insert(head_.end(), parents.begin(), parents.end());
  }

  // Returns the number of the step's value.
  int64_t add(const StepSpec& step) {
    uint32_t bits = 0;
    std::memcpy(&bits, &step.epsilon, sizeof(bits));
    const struct {
      int64_t kind, activation, affine, inputs, factors, addends, width, groups, epsilon;
    } fields = {static_cast<int64_t>(step.kind),
                static_cast<int64_t>(step.activation),
                step.affine,
                static_cast<int64_t>(step.inputs.size()),
                static_cast<int64_t>(step.factors.size()),
                static_cast<int64_t>(step.addends.size()),
                step.width,
                step.groups,
                bits};
    int64_t words[program_limit::step_words] = {};
#define RESFLOW_STEP_FIELD(name, word, shift, bits) words[word] |= fields.name << shift;
#include "contract/program.def"
    steps_.insert(steps_.end(), std::begin(words), std::end(words));
    for (const Row* row : {&step.inputs, &step.factors, &step.addends}) add(*row, steps_);
    return ++count_;
  }

  Encoded end(const Row& outputs) const {
    Encoded encoded = head_;
    encoded.insert(encoded.end(), {count_, static_cast<int64_t>(outputs.size())});
    encoded.insert(encoded.end(), steps_.begin(), steps_.end());
    add(outputs, encoded);
    return encoded;
  }

 private:
  static void add(const Row& row, Encoded& to) {
    for (const Segment& segment : row) {
      int64_t word = 0;
#define RESFLOW_SEGMENT_FIELD(name, shift, bits) word |= segment.name << shift;
#include "contract/program.def"
      to.push_back(word);
    }
  }

  Encoded head_, steps_;
  int64_t count_ = 0;
};

constexpr int64_t kProgramInputs = 40;

// Steps of every kind, over one segment and several, with factors of one column, of a few and of all; two panels wide;
// `extra` columns that are kept to the end make it too wide for shared memory.
inline Encoded every_step(std::vector<int64_t> parents, Precision precision, int64_t extra = 0) {
  ProgramEncoder program(kProgramInputs, std::move(parents), precision);
  const Segment x{0, 0, kProgramInputs};
  const auto add = [&](const StepSpec& step) { return program.add(step); };
  const int64_t hidden = add({StepKind::linear, 33, {x}, Activation::prelu, true});
  const int64_t crossed = add({StepKind::linear, 40, {{hidden, 0, 33}}, {}, false, 1, 0, {x}, {x}});
  const int64_t gates = add({StepKind::softmax, 6, {{0, 1, 6}}, {}, false, 2});
  const int64_t mixed = add({StepKind::mix, 16, {{gates, 0, 2}, {crossed, 0, 16}, {crossed, 20, 16}}});
  const int64_t layer = add({StepKind::layer_norm, 32, {{mixed, 0, 16}, {hidden, 3, 16}}, {}, true, 2, 1e-5f});
  const int64_t rms = add({StepKind::rms_norm, 40, {{crossed, 0, 40}}, {}, false, 1, 1e-5f});
  const int64_t unit = add({StepKind::l2_norm, 40, {{crossed, 0, 40}}, {}, false, 8, 1e-5f});
  const int64_t fm = add({StepKind::fm, 8, {{layer, 0, 32}}, {}, false, 4});
  const int64_t dots = add({StepKind::dot, 10, {{crossed, 0, 20}, {unit, 0, 20}}, {}, false, 5});
  const int64_t sums = add({StepKind::sum, 4, {{rms, 0, 40}}, Activation::silu, false, 4});
  const int64_t joined = add({StepKind::copy,
                              20,
                              {{fm, 0, 8}, {dots, 0, 10}, {0, 3, 2}},
                              Activation::gelu,
                              true,
                              1,
                              0,
                              {{sums, 0, 4}, {gates, 4, 1}}});
  const int64_t kept = extra ? add({StepKind::linear, extra, {{0, 24, 9}}}) : joined;
  const Row all = {{joined, 0, 20}, {unit, 1, 39}, {sums, 0, 4}};
  const int64_t wide = add({StepKind::linear, 70, all, Activation::tanh, false, 1, 0, {{sums, 1, 1}}});
  const Segment added{kept, 0, 3};
  const int64_t last = add({StepKind::linear, 3, {{wide, 0, 70}}, {}, false, 1, 0, {}, {added}});
  return program.end({{last, 0, 3}});
}

// A program with weights on the scale of a trained network, and its packed form.
struct PackedProgram {
  ProgramStorage storage;
  Plan plan;
  std::vector<char> bytes;

  explicit PackedProgram(const Encoded& encoded)
      : plan(decode_plan("test", encoded.data(), static_cast<int64_t>(encoded.size()), &storage)) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<std::vector<float>> weights;
    std::vector<std::vector<int64_t>> sizes, strides;
    for_each_weight(plan, [&](const WeightShape& shape) {
      const float deviation = shape.inputs ? 1.0f / std::sqrt(static_cast<float>(shape.inputs)) : 0.3f;
      weights.emplace_back(shape.size());
      for (float& value : weights.back()) value = normal(generator) * deviation;
      sizes.push_back(shape.inputs ? std::vector<int64_t>{shape.inputs, shape.columns}
                                   : std::vector<int64_t>{shape.columns});
      strides.push_back(shape.inputs ? std::vector<int64_t>{shape.columns, 1} : std::vector<int64_t>{1});
    });
    std::vector<TensorView> views;
    for (size_t i = 0; i < weights.size(); ++i) {
      views.push_back(
          {weights[i].data(), static_cast<int64_t>(sizes[i].size()), sizes[i].data(), strides[i].data(), "float32"});
    }
    check_weights("test", plan, views.data(), static_cast<int64_t>(views.size()));
    bytes.resize(plan.packed_bytes);
    pack_towers(plan, views.data(), bytes.data());
  }
  PackedProgram(const PackedProgram&) = delete;
};

// Candidates of requests, whose first columns are their user's, in rows of float32.
struct ProgramCase {
  const PackedProgram& model;
  int64_t users;  // columns
  std::vector<int64_t> offsets;
  std::vector<float> user, item;

  ProgramCase(const PackedProgram& model, int64_t users, std::vector<int64_t> offsets)
      : model(model), users(users), offsets(std::move(offsets)) {
    std::mt19937 generator(2);
    std::normal_distribution<float> normal;
    user.resize(requests() * users);
    item.resize(count() * (kProgramInputs - users));
    for (std::vector<float>* const rows : {&user, &item}) {
      for (float& value : *rows) value = normal(generator);
    }
  }

  int64_t requests() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t count() const { return offsets.back(); }

  // [count][in_features]
  std::vector<float> rows() const {
    std::vector<float> all;
    for (int64_t r = 0; r < requests(); ++r) {
      for (int64_t at = offsets[r]; at < offsets[r + 1]; ++at) {
        all.insert(all.end(), user.begin() + r * users, user.begin() + (r + 1) * users);
        const auto own = item.begin() + at * (kProgramInputs - users);
        all.insert(all.end(), own, own + kProgramInputs - users);
      }
    }
    return all;
  }

  // The outputs [count][output_columns] of the kernel of a variant, from poisoned memory, on `blocks` blocks.
  template <Precision kPrecision, int kVariant>
  std::vector<float> run(int64_t blocks = 2) const {
    using namespace cuda;
    Buffers buffers;
    TowerCall call{};
    call.plan = model.plan;
    call.packed = model.bytes.data();
    allow(buffers, model.bytes, false);
    allow(buffers, user, false);
    allow(buffers, item, false);
    allow(buffers, offsets, false);
    const RecordedProgram of_users = RecordedProgram::of_users(model.plan, users);
    const RecordedProgram program = RecordedProgram::of_candidates(model.plan, users);
    std::vector<float> sums(requests() * model.plan.program->user_sums, NAN);
    if (of_users.step_count() > 0) {
      TowerCall users_call = call;
      users_call.plan.in_features = users;
      users_call.candidates.x.rows = {user.data(), Precision::float32, users};
      users_call.candidates.count = requests();
      pass<kPrecision, kVariant>(of_users, users_call, nullptr, sums, buffers, blocks);
    }
    call.candidates.x.rows = {item.data(), Precision::float32, kProgramInputs - users};
    call.candidates.count = count();
    call.candidates.user.rows = {user.data(), Precision::float32, users};
    call.candidates.user_columns = users;
    call.candidates.offsets = offsets.data();
    call.candidates.requests = requests();
    std::vector<float> outputs(count() * model.plan.program->output_columns, NAN);
    pass<kPrecision, kVariant>(program, call, of_users.step_count() > 0 ? sums.data() : nullptr, outputs, buffers,
                               blocks);
    return outputs;
  }

 private:
  template <class T>
  static void allow(cuda::Buffers& buffers, const std::vector<T>& memory, bool writable) {
    if (!memory.empty()) buffers.allow(memory.data(), static_cast<int64_t>(memory.size() * sizeof(T)), writable);
  }

  template <Precision kPrecision, int kVariant>
  void pass(const cuda::RecordedProgram& program, const cuda::TowerCall& call, const float* sums,
            std::vector<float>& outputs, cuda::Buffers& buffers, int64_t blocks) const {
    constexpr cuda::TowerVariant kOwn = cuda::kTowerVariants[kVariant];
    const std::vector<uint64_t> words = program.words();
    allow(buffers, words, false);
    allow(buffers, outputs, true);
    const cuda::ProgramShape shape = cuda::program_shape(program, 0, kOwn.rows);
    std::vector<char> memory(kOwn.in_shared ? 0 : blocks * shape.tile_bytes + 16, '\xff');
    allow(buffers, memory, true);
    char* const aligned = memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16;
    const cuda::ProgramParams params{call,          program.at(reinterpret_cast<const char*>(words.data())),
                                     shape,         aligned,
                                     sums,          model.plan.program->user_sums,
                                     outputs.data()};
    cuda::launch<cuda::ProgramKernel<kPrecision, kOwn.rows, kOwn.in_shared>>(params, blocks,
                                                                             shape.shared_bytes(kOwn.in_shared), {});
  }
};

}  // namespace resflow::testing
