// Plans and weights for the C++ tests, made the way resflow_kernels/plan.py encodes them.
#pragma once

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

#include "core/pack.h"
#include "core/plan.h"

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

// Canonical weights of a plan with a PReLU and an affine in every layer, and their packed form.
struct Packed {
  Plan plan;
  std::vector<std::vector<float>> weights;
  std::vector<char> bytes;

  explicit Packed(const Encoded& encoded) : plan(decode(encoded)) {
    // Deviations that keep outputs of every layer near 1, so that logits depend on all there is.
    std::vector<std::vector<int64_t>> sizes;
    std::vector<float> deviations;
    const auto add = [&](std::initializer_list<int64_t> shape, int64_t summed) {
      sizes.emplace_back(shape);
      deviations.push_back(1.0f / std::sqrt(static_cast<float>(summed)));
    };
    for (int32_t k = 0; k < plan.tasks; ++k) {
      for (int32_t l = 0; l < plan.layers; ++l) {
        add({plan.layer[l].inputs, plan.layer[l].width}, plan.layer[l].inputs);
        const int vectors = 1 + (plan.layer[l].activation == Activation::prelu) + 2 * plan.affine;
        for (int v = 0; v < vectors; ++v) add({plan.layer[l].width}, 1);
      }
      add({plan.layer[plan.layers - 1].width}, plan.layer[plan.layers - 1].width);
      add({1}, 1);
    }
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    std::vector<TensorView> views;
    std::vector<std::vector<int64_t>> strides;
    strides.reserve(sizes.size());
    for (const auto& shape : sizes) {
      int64_t count = 1;
      for (const int64_t size : shape) count *= size;
      weights.emplace_back(count);
      for (float& value : weights.back()) value = normal(generator) * deviations[weights.size() - 1];
      strides.push_back(shape.size() == 2 ? std::vector<int64_t>{shape[1], 1} : std::vector<int64_t>{1});
      views.push_back(
          {weights.back().data(), static_cast<int64_t>(shape.size()), shape.data(), strides.back().data(), "float32"});
    }
    check_weights("test", plan, views.data(), static_cast<int64_t>(views.size()));
    bytes.resize(plan.packed_bytes);
    pack_towers(plan, views.data(), bytes.data());
  }
};

}  // namespace resflow::testing
