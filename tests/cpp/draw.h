// Draws cases: plans, programs and numbers, the same in every run and with every compiler.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "models.h"

namespace resflow::testing {

// A drawn case, which says its number if a check fails in it.
class Draw {
 public:
  explicit Draw(uint32_t seed) : seed_(seed), failures_(failures), generator_(seed) {}
  Draw(const Draw&) = delete;
  ~Draw() {
    if (failures > failures_) std::printf("  ... in drawn case %u\n", seed_);
  }

  int64_t number(int64_t first, int64_t last) {
    return first + static_cast<int64_t>(generator_() % static_cast<uint64_t>(last - first + 1));
  }
  bool flip() { return number(0, 1) == 1; }
  template <class Value>
  Value one_of(const std::vector<Value>& values) {
    return values[number(0, static_cast<int64_t>(values.size()) - 1)];
  }
  template <class Name>
  Name name() {
    return static_cast<Name>(number(0, static_cast<int64_t>(Name::count) - 1));
  }
  Precision precision() { return one_of<Precision>({Precision::float32, Precision::bfloat16, Precision::int8}); }

  // A sum of 4 uniform numbers, of deviation 1: std::normal_distribution differs between libraries.
  float normal() {
    double sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<double>(generator_()) / 4294967296.0 - 0.5;
    return static_cast<float>(sum * std::sqrt(3.0));
  }
  std::vector<float> normals(int64_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = normal();
    return values;
  }

 private:
  uint32_t seed_;
  int failures_;
  std::mt19937 generator_;
};

// Calls run with `count` drawn cases.
template <class Run>
void drawn(uint32_t count, Run run) {
  for (uint32_t seed = 0; seed < count; ++seed) {
    Draw draw(seed);
    run(draw);
  }
}

// The bits of `count` floats are equal; NaN are equal whatever their bits.
inline bool same_bits(const float* a, const float* b, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::memcmp(a + i, b + i, sizeof(float)) != 0 && (a[i] == a[i] || b[i] == b[i])) return false;
  }
  return true;
}

// The fields and parents of a plan; `layers` is 0 for a program.
inline Encoded draw_head(Draw& draw, int64_t in_features, int64_t tasks, int64_t layers, Precision precision) {
  const bool conditional = draw.flip(), residual = !conditional && draw.flip(), towers = layers > 0;
  const bool feature_residual = towers && draw.flip(), non_increasing = residual && draw.flip();
  return {limit::version,
          in_features,
          tasks,
          layers,
          conditional,
          feature_residual,
          residual,
          non_increasing,
          towers && draw.flip(),
          static_cast<int64_t>(precision)};
}

inline void append_parents(Draw& draw, int64_t tasks, Encoded& plan) {
  for (int64_t k = 0; k < tasks; ++k) plan.push_back(draw.number(-1, k - 1));
}

inline Encoded draw_towers(Draw& draw, int64_t in_features, Precision precision) {
  const int64_t tasks = draw.number(1, 4), layers = draw.number(1, 3);
  Encoded plan = draw_head(draw, in_features, tasks, layers, precision);
  for (int64_t l = 0; l < layers; ++l) plan.push_back(draw.number(1, draw.flip() ? 20 : 90));
  for (int64_t l = 0; l < layers; ++l) plan.push_back(static_cast<int64_t>(draw.name<Activation>()));
  append_parents(draw, tasks, plan);
  return plan;
}

}  // namespace resflow::testing
