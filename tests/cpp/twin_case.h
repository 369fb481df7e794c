// Twin towers that the CPU scores, and the device in the emulator.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <random>
#include <vector>

#include "core/number_formats.h"
#include "core/topk.h"
#include "cpu/twin/twin.h"
#include "cuda/twin/twin.h"
#include "emulator_launch.h"

namespace resflow::testing {

constexpr Precision kElements[] = {Precision::float32, Precision::bfloat16, Precision::int8};

// NaN are equal, whatever their bits.
inline bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float u, float v) { return (u != u && v != v) || std::memcmp(&u, &v, sizeof(float)) == 0; });
}

inline bool all_nan(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return value != value; });
}

struct Scores {
  std::vector<float> logits, probs, score;

  Scores(int64_t candidates, int64_t tasks)
      : logits(candidates * tasks, -7.0f), probs(candidates * tasks, -7.0f), score(candidates, -7.0f) {}

  ScoresOut out() { return {logits.data(), probs.data(), score.data()}; }

  // Of candidate i of the result: that of candidate `from`[i].
  Scores at(const std::vector<int64_t>& from) const {
    const auto tasks = static_cast<int64_t>(logits.size() / std::max<size_t>(score.size(), 1));
    Scores picked(static_cast<int64_t>(from.size()), tasks);
    for (size_t i = 0; i < from.size(); ++i) {
      std::copy_n(logits.begin() + from[i] * tasks, tasks, picked.logits.begin() + static_cast<int64_t>(i) * tasks);
      std::copy_n(probs.begin() + from[i] * tasks, tasks, picked.probs.begin() + static_cast<int64_t>(i) * tasks);
      picked.score[i] = score[from[i]];
    }
    return picked;
  }
};

inline bool same(const Scores& a, const Scores& b) {
  return same(a.logits, b.logits) && same(a.probs, b.probs) && same(a.score, b.score);
}

// Within the bounds of float32, with the CPU's rounding errors on top.
inline bool near(const std::vector<float>& a, const std::vector<float>& b, float bound) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [bound](float u, float v) {
    return (u != u && v != v) || u == v || std::abs(u - v) <= bound * (1.0f + std::abs(v));
  });
}

// Workspaces full of NaN.
class TestQueue : public cuda::Queue {
 public:
  explicit TestQueue(cuda::Buffers& buffers) : buffers_(buffers) {}
  cuda::Stream stream() const override { return nullptr; }
  void* workspace(int64_t bytes) override {
    std::vector<uint64_t>& words = workspaces_.emplace_back((bytes + 7) / 8, ~uint64_t(0));
    buffers_.allow(words.data(), bytes, true);
    return words.data();
  }

 private:
  cuda::Buffers& buffers_;
  std::deque<std::vector<uint64_t>> workspaces_;
};

struct Case {
  int64_t tasks, width, items, requests;
  Precision element;
  int64_t lead, gap;  // bytes before the first row, and elements between rows
  Fusion fusion = Fusion::additive;
  WeightsPer per = WeightsPer::call;
  bool non_increasing = false;
  Precision user_element = Precision::float32;

  std::vector<float> vectors, user, scales, weights;
  std::vector<uint16_t> user_halves;
  std::vector<char> table;
  std::vector<int64_t> ids, offsets;
  mutable std::mt19937 generator{1};

  float normal() const { return std::normal_distribution<float>()(generator); }
  int64_t columns() const { return tasks * width; }
  int64_t stride() const { return columns() + gap; }

  Case(int64_t tasks, int64_t width, int64_t items, int64_t requests, Precision element, int64_t lead = 0,
       int64_t gap = 0)
      : tasks(tasks), width(width), items(items), requests(requests), element(element), lead(lead), gap(gap) {}

  // 2 ids an item; the first request has none.
  Case& make() {
    vectors.resize(items * columns());
    for (float& value : vectors) value = normal();
    user.resize(requests * columns());
    for (float& value : user) value = normal() / (std::sqrt(static_cast<float>(width)) * static_cast<float>(tasks));
    ids.resize(requests > 0 ? 2 * items : 0);
    for (int64_t& id : ids) id = generator() % items;
    offsets.assign(1, 0);
    const auto count = static_cast<int64_t>(ids.size());
    for (int64_t r = 1; r <= requests; ++r) offsets.push_back(r == requests ? count : (r - 1) * count / requests);
    weights.resize(4 * (tasks + 1) * (std::max(items, count_of_ids()) + requests));
    for (float& weight : weights) weight = std::abs(normal());
    round_table();
    round_users();
    return *this;
  }

  int64_t count_of_ids() const { return static_cast<int64_t>(ids.size()); }

  // A table of its own stride, in memory full of NaN (of 77 in int8).
  void round_table() {
    const int64_t bytes = bytes_of(element);
    std::vector<char> rows(items * columns() * bytes);
    scales.assign(element == Precision::int8 ? items * tasks : 0, 0.0f);
    cpu::twin_rows({vectors.data(), Precision::float32, columns()}, items, tasks, width, element, rows.data(),
                   scales.data(), 1);
    table.assign(lead + items * stride() * bytes + 16, element == Precision::int8 ? 77 : -1);
    for (int64_t i = 0; i < items; ++i) {
      std::memcpy(rows_begin() + i * stride() * bytes, rows.data() + i * columns() * bytes, columns() * bytes);
    }
  }

  // Float users hold what their halves do, so that both are comparable.
  void round_users() {
    user_halves.clear();
    if (user_element == Precision::float32) return;
    const bool bfloat16 = user_element == Precision::bfloat16;
    for (float& value : user) {
      user_halves.push_back(bfloat16 ? to_bfloat16(value) : to_float16(value));
      value = bfloat16 ? from_bfloat16(user_halves.back()) : from_float16(user_halves.back());
    }
  }

  char* rows_begin() {
    auto* const begin = table.data();
    return begin + (16 - reinterpret_cast<uintptr_t>(begin) % 16) % 16 + lead;
  }

  TwinCall call(bool listed) {
    TwinCall twin{};
    twin.model.tasks = static_cast<int32_t>(tasks);
    twin.model.width = width;
    for (int32_t k = 0; k < tasks; ++k) twin.model.parents[k] = k % 3 == 2 ? k - 2 : k - 1;
    twin.model.non_increasing = non_increasing;
    twin.table = {{rows_begin(), element, stride()}, scales.empty() ? nullptr : scales.data(), items};
    twin.user = {user.data(), Precision::float32, columns()};
    twin.requests = requests;
    twin.ids = listed ? ids.data() : nullptr;
    twin.offsets = listed ? offsets.data() : nullptr;
    twin.count = listed ? count_of_ids() : items;
    twin.weights = {fusion, per, weights.data()};
    return twin;
  }

  int64_t candidates(bool listed) const { return listed ? count_of_ids() : requests * items; }

  void allow_inputs(cuda::Buffers& buffers) {
    buffers.allow(rows_begin(), ((items - 1) * stride() + columns()) * bytes_of(element), false);
    for (const std::vector<float>* const values : {&user, &scales, &weights}) allow(buffers, *values, false);
    allow(buffers, user_halves, false);
    allow(buffers, ids, false);
    allow(buffers, offsets, false);
  }

  TwinCall device_call(bool listed) {
    TwinCall twin = call(listed);
    if (!user_halves.empty()) twin.user = {user_halves.data(), user_element, columns()};
    return twin;
  }

  Scores on_cpu(bool listed) {
    Scores scores(candidates(listed), tasks);
    cpu::twin_scores(call(listed), scores.out(), 1);
    return scores;
  }

  Scores on_device(bool listed) {
    Scores scores(candidates(listed), tasks);
    const TwinCall twin = device_call(listed);
    cuda::Buffers buffers;
    TestQueue queue(buffers);
    allow_inputs(buffers);
    allow(buffers, scores.logits, true);
    allow(buffers, scores.probs, true);
    allow(buffers, scores.score, true);
    cuda::twin_scores(twin, scores.out(), queue);
    return scores;
  }

  // The k best of the device's own scores, and whether twin_topk finds them.
  bool finds_best(bool listed, int64_t k, int64_t pass_bytes = 0) {
    const Scores all = on_device(listed);
    const TwinCall twin = device_call(listed);
    std::vector<float> scores(requests * k), expected(requests * k);
    std::vector<int64_t> positions(requests * k), expected_positions(requests * k);
    cuda::Buffers buffers;
    TestQueue queue(buffers);
    allow_inputs(buffers);
    allow(buffers, scores, true);
    allow(buffers, positions, true);
    const TopKOut out{k, scores.data(), positions.data()};
    pass_bytes > 0 ? cuda::stream_topk(twin, out, pass_bytes, queue) : cuda::twin_topk(twin, out, queue);
    TopK best(k);
    for (int64_t r = 0; r < requests; ++r) {
      const int64_t first = listed ? offsets[r] : r * items, end = listed ? offsets[r + 1] : (r + 1) * items;
      best.offer_run(all.score.data() + first, end - first, 0);
      best.write(expected.data() + r * k, expected_positions.data() + r * k);
    }
    return same(scores, expected) && positions == expected_positions;
  }

  // The device's lists have the bits of its stream.
  bool lists_agree() {
    std::vector<int64_t> from;
    for (int64_t r = 0; r < requests; ++r) {
      for (int64_t at = offsets[r]; at < offsets[r + 1]; ++at) from.push_back(r * items + ids[at]);
    }
    return same(on_device(true), on_device(false).at(from));
  }
};

}  // namespace resflow::testing
