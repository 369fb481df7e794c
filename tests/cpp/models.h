// Plans and weights for the C++ tests, made the way resflow_kernels/plan.py encodes them.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "core/candidates.h"
#include "core/decode_program.h"
#include "core/pack.h"
#include "core/weights.h"

namespace resflow::testing {

using Encoded = std::vector<int64_t>;

inline Encoded encode(int64_t in_features, std::vector<int64_t> widths, std::vector<int64_t> parents,
                      Activation activation = Activation::prelu, bool affine = true,
                      Precision precision = Precision::float32) {
  const auto layers = static_cast<int64_t>(widths.size()), tasks = static_cast<int64_t>(parents.size());
  Encoded plan = {limit::version, in_features, tasks, layers, 0, 1, 1, 0, affine, static_cast<int64_t>(precision)};
  plan.insert(plan.end(), widths.begin(), widths.end());
  plan.insert(plan.end(), layers, static_cast<int64_t>(activation));
  plan.insert(plan.end(), parents.begin(), parents.end());
  return plan;
}

inline Plan decode(const Encoded& encoded) {
  return decode_plan("test", encoded.data(), static_cast<int64_t>(encoded.size()));
}

// Canonical weights of a plan or of a tile program, and their packed form.
struct Packed {
  ProgramStorage storage;
  Plan plan;
  std::vector<std::vector<float>> weights;
  std::vector<char> bytes;

  explicit Packed(const Encoded& encoded)
      : plan(decode_plan("test", encoded.data(), static_cast<int64_t>(encoded.size()), &storage)) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for_each_weight(plan, [&](const WeightShape& shape) {
      // Deviations that keep outputs of every layer near 1, so that logits depend on all there is.
      const bool head = shape.layer < 0 && shape.kind == WeightKind::weight;
      const int64_t summed = shape.inputs ? shape.inputs : head ? shape.columns : 1;
      weights.emplace_back(shape.size());
      for (float& value : weights.back()) value = normal(generator) / std::sqrt(static_cast<float>(summed));
    });
    pack();
  }
  Packed(const Packed&) = delete;  // the plan points into the storage

  // After a change of the weights.
  void pack() {
    std::vector<TensorView> views;
    std::vector<std::array<int64_t, 2>> sizes, strides;
    sizes.reserve(weights.size());
    strides.reserve(weights.size());
    for_each_weight(plan, [&](const WeightShape& shape) {
      const bool matrix = shape.inputs > 0;
      sizes.push_back({matrix ? shape.inputs : shape.columns, shape.columns});
      strides.push_back({matrix ? shape.columns : 1, 1});
      views.push_back(
          {weights[views.size()].data(), matrix ? 2 : 1, sizes.back().data(), strides.back().data(), "float32"});
    });
    check_weights("test", plan, views.data(), static_cast<int64_t>(views.size()));
    bytes.resize(plan.packed_bytes);
    pack_towers(plan, views.data(), bytes.data());
  }

  Model model() const { return {plan, bytes.data()}; }
};

}  // namespace resflow::testing
