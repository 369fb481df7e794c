// The device's twin towers in the emulator, against the CPU's.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/check.h"
#include "core/number_formats.h"
#include "core/topk.h"
#include "cpu/twin.h"
#include "cuda/rows.h"
#include "cuda/twin.h"

using namespace resflow;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
constexpr Precision kElements[] = {Precision::float32, Precision::bfloat16, Precision::int8};

template <class T>
void allow(cuda::Buffers& buffers, const std::vector<T>& values, bool writable) {
  buffers.allow(values.data(), static_cast<int64_t>(values.size() * sizeof(T)), writable);
}

// NaN are equal, whatever their bits.
bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float u, float v) { return (u != u && v != v) || std::memcmp(&u, &v, sizeof(float)) == 0; });
}

bool all_nan(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return value != value; });
}

struct Scores {
  std::vector<float> logits, probs, score;

  Scores(int64_t candidates, int64_t tasks)
      : logits(candidates * tasks, -7.0f), probs(candidates * tasks, -7.0f), score(candidates, -7.0f) {}

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

bool same(const Scores& a, const Scores& b) {
  return same(a.logits, b.logits) && same(a.probs, b.probs) && same(a.score, b.score);
}

// Within the bounds of float32, with the CPU's rounding errors on top.
bool near(const std::vector<float>& a, const std::vector<float>& b, float bound) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [bound](float u, float v) {
    return (u != u && v != v) || u == v || std::abs(u - v) <= bound * (1.0f + std::abs(v));
  });
}

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
    cpu::twin_rows({vectors.data(), Precision::float32, columns()}, items, tasks, width, 1, element, rows.data(),
                   scales.data());
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
    twin.threads = 1;
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
    cpu::twin_score(call(listed), scores.logits.data(), scores.probs.data(), scores.score.data());
    return scores;
  }

  Scores on_device(bool listed) {
    Scores scores(candidates(listed), tasks);
    const TwinCall twin = device_call(listed);
    std::vector<uint64_t> workspace(cuda::twin_score_workspace_bytes(twin) / 8, ~uint64_t(0));
    cuda::Buffers buffers;
    allow_inputs(buffers);
    allow(buffers, workspace, true);
    allow(buffers, scores.logits, true);
    allow(buffers, scores.probs, true);
    allow(buffers, scores.score, true);
    cuda::twin_score(twin, scores.logits.data(), scores.probs.data(), scores.score.data(), workspace.data(), nullptr);
    return scores;
  }

  // The k best of the device's own scores, and whether twin_topk finds them.
  bool finds_best(bool listed, int64_t k, int64_t pass_bytes = cuda::kTwinPassBytes) {
    const Scores all = on_device(listed);
    const TwinCall twin = device_call(listed);
    std::vector<float> scores(requests * k), expected(requests * k);
    std::vector<int64_t> positions(requests * k), expected_positions(requests * k);
    std::vector<uint64_t> workspace(cuda::twin_topk_workspace_bytes(twin, k, pass_bytes) / 8, ~uint64_t(0));
    cuda::Buffers buffers;
    allow_inputs(buffers);
    allow(buffers, workspace, true);
    allow(buffers, scores, true);
    allow(buffers, positions, true);
    cuda::twin_topk(twin, k, scores.data(), positions.data(), workspace.data(), nullptr, pass_bytes);
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

void check_near(Case& of) {
  for (const bool listed : {false, true}) {
    const Scores got = of.on_device(listed), exact = of.on_cpu(listed);
    CHECK(near(got.logits, exact.logits, 4e-6f));
    CHECK(near(got.probs, exact.probs, 2e-6f));
    CHECK(near(got.score, exact.score, 2e-5f));
  }
}

}  // namespace

TEST(scores_are_the_cpus) {
  uint32_t seed = 1;
  for (const Precision element : kElements) {
    for (const int64_t width : {1, 5, 16, 64, 67, 130}) {
      for (const int64_t requests : {1, 3, 9}) {
        Case of(seed % 5 == 0 ? 17 : 1 + seed % 4, width, 1 + 37 * (seed % 6), requests, element);
        of.fusion = static_cast<Fusion>(seed % 3);
        of.per = static_cast<WeightsPer>(seed / 3 % 3);
        of.non_increasing = seed % 2;
        of.generator.seed(seed++);
        check_near(of.make());
      }
    }
  }
}

TEST(as_many_tasks_as_there_may_be) {
  Case of(limit::max_tasks, 4, 130, 9, Precision::bfloat16);
  check_near(of.make());
}

TEST(an_items_score_is_the_same_to_the_bit_in_lists_and_streams_and_alone) {
  for (const Precision element : kElements) {
    for (const int64_t width : {16, 21}) {
      Case of(3, width, 150, 9, element);
      of.fusion = Fusion::expected_value;
      of.per = WeightsPer::request;
      CHECK(of.make().lists_agree());
      const Scores all = of.on_device(false);
      for (const int64_t requests : {1, 4}) {
        Case fewer = of;
        fewer.requests = requests;
        std::vector<int64_t> first(requests * of.items);
        for (size_t i = 0; i < first.size(); ++i) first[i] = static_cast<int64_t>(i);
        CHECK(same(fewer.on_device(false), all.at(first)));
      }
    }
  }
}

TEST(rows_of_any_stride_and_alignment_give_the_same_bits) {
  for (const Precision element : kElements) {
    const int64_t bytes = bytes_of(element);
    const Scores expected = Case(2, 32, 140, 2, element).make().on_device(false);
    for (const int64_t gap : {16 / bytes, int64_t(3), int64_t(1)}) {
      for (const int64_t lead : {int64_t(0), bytes, int64_t(8)}) {
        CHECK(same(Case(2, 32, 140, 2, element, lead, gap).make().on_device(false), expected));
      }
    }
  }
}

TEST(a_poisoned_item_or_user_keeps_to_itself) {
  for (const Precision element : kElements) {
    for (const float poison : {kNan, kInfinity, -kInfinity}) {
      Case of(2, 19, 40, 2, element);
      of.fusion = Fusion::multiplicative;
      const Scores clean = of.make().on_device(false);
      std::vector<int64_t> others, poisoned;
      for (int64_t c = 0; c < 80; ++c) (c % 40 == 17 ? poisoned : others).push_back(c);
      of.vectors[17 * of.columns() + 18] = poison;
      of.round_table();
      const Scores got = of.on_device(false);
      CHECK(same(got.at(others), clean.at(others)));
      const Scores own = got.at(poisoned);
      if (poison != poison) CHECK(all_nan(own.logits) && all_nan(own.probs) && all_nan(own.score));
      CHECK(std::none_of(own.logits.begin(), own.logits.end(), [](float logit) { return std::isfinite(logit); }));

      Case with_user(2, 19, 40, 2, element);
      with_user.fusion = Fusion::multiplicative;
      with_user.make().user[with_user.columns() + 3] = poison;
      const Scores of_users = with_user.on_device(false);
      std::vector<int64_t> first(40);
      for (int64_t c = 0; c < 40; ++c) first[c] = c;
      CHECK(same(of_users.at(first), clean.at(first)));
      CHECK(std::none_of(of_users.logits.begin() + 80, of_users.logits.end(),
                         [](float logit) { return std::isfinite(logit); }));
    }
  }
}

TEST(ids_that_are_no_items_are_nan_and_their_neighbours_are_not) {
  for (const Precision element : kElements) {
    for (const int64_t width : {16, 9}) {
      Case of(2, width, 70, 3, element);
      const Scores clean = of.make().on_device(true);
      const std::vector<int64_t> bad{3, 64, 65, 139};
      const int64_t wrong[] = {-1, 70, std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::min()};
      for (size_t i = 0; i < bad.size(); ++i) of.ids[bad[i]] = wrong[i];
      const Scores got = of.on_device(true);
      std::vector<int64_t> others;
      for (int64_t c = 0; c < 140; ++c) {
        if (std::find(bad.begin(), bad.end(), c) == bad.end()) others.push_back(c);
      }
      CHECK(same(got.at(others), clean.at(others)));
      const Scores own = got.at(bad);
      CHECK(all_nan(own.logits) && all_nan(own.probs) && all_nan(own.score));
      CHECK(of.finds_best(true, 60));
    }
  }
}

TEST(offsets_that_do_not_grow_make_all_nan) {
  constexpr int64_t kFar = int64_t(1) << 62;
  for (const std::vector<int64_t>& offsets : {std::vector<int64_t>{0, 90, 80, 280},
                                              {1, 2, 3, 280},
                                              {0, 2, 3, 279},
                                              {0, kFar, -kFar, 280},
                                              {-kFar, kFar, kFar, kFar},
                                              {280, 280, 0, 0},
                                              {0}}) {
    Case of(2, 16, 140, 3, Precision::bfloat16);
    of.make().offsets = offsets;
    of.requests = static_cast<int64_t>(offsets.size()) - 1;
    const Scores got = of.on_device(true);
    CHECK(all_nan(got.logits) && all_nan(got.probs) && all_nan(got.score));
  }
}

TEST(users_of_half_the_width) {
  for (const Precision user_element : {Precision::bfloat16, Precision::float16}) {
    for (const Precision element : kElements) {
      Case of(2, 33, 50, 2, element);
      of.user_element = user_element;
      const Scores got = of.make().on_device(false);
      of.user_halves.clear();
      CHECK(same(got, of.on_device(false)));
    }
  }
}

TEST(the_k_best_are_those_of_the_scores) {
  for (const Precision element : kElements) {
    Case of(2, 6, 500, 5, element);
    of.make();
    for (int64_t i = 0; i < 250; ++i) {  // ties
      std::copy_n(of.vectors.begin() + i * of.columns(), of.columns(), of.vectors.begin() + (499 - i) * of.columns());
    }
    for (int64_t i = 3; i < 500; i += 7) of.vectors[i * of.columns()] = kNan;
    of.round_table();
    for (const int64_t k : {1, 100, 600}) CHECK(of.finds_best(false, k) && of.finds_best(true, k));
    // Rows of 5 requests: 40 carried and 60 items, in 9 passes; and passes of k.
    CHECK(of.finds_best(false, 40, 5 * 100 * 4));
    CHECK(of.finds_best(false, 100, 4));
    CHECK(of.finds_best(false, 499, 4) && of.finds_best(false, 500, 4));
  }
  Case many(1, 8, 130, 70, Precision::float32);  // more requests than share a pass
  CHECK(many.make().finds_best(false, 3, 64 * 50 * 4));
}

TEST(nothing_to_score) {
  Case of(2, 8, 3, 0, Precision::int8);
  CHECK(of.make().on_device(false).score.empty() && of.on_device(true).score.empty());
  CHECK(of.finds_best(false, 3) && of.finds_best(true, 3));
  Case empty(2, 8, 1, 2, Precision::float32);
  empty.make();
  empty.ids.clear();
  empty.offsets = {0, 0, 0};
  // An empty vector has no address, and a call without ids means all items.
  empty.ids.reserve(1);
  CHECK(empty.on_device(true).score.empty() && empty.finds_best(true, 3));
}

TEST(rows_are_rounded_to_the_bits_of_the_cpu) {
  constexpr int64_t kCount = 90, kTasks = 3;
  for (const int64_t width : {1, 7, 64, 70}) {
    const int64_t columns = kTasks * width, stride = columns + 5;
    std::mt19937 generator(7);
    std::vector<float> values(kCount * stride);
    for (float& value : values) {
      value = std::normal_distribution<float>()(generator) * std::ldexp(1.0f, static_cast<int>(generator() % 40) - 20);
    }
    std::fill_n(values.begin(), width, 0.0f);
    for (int64_t i = 0; i < width; ++i) values[stride + i] = std::ldexp(static_cast<float>(i + 1), -149);  // subnormal
    values[2 * stride] = kNan;
    values[3 * stride + columns - 1] = -kInfinity;
    values[4 * stride] = std::numeric_limits<float>::max();
    std::vector<uint16_t> halves(values.size());
    std::transform(values.begin(), values.end(), halves.begin(), to_bfloat16);
    for (const Rows& from :
         {Rows{values.data(), Precision::float32, stride}, Rows{halves.data(), Precision::bfloat16, stride}}) {
      for (const Precision element : kElements) {
        std::vector<char> got(kCount * columns * bytes_of(element)), expected(got.size());
        std::vector<float> scales(element == Precision::int8 ? kCount * kTasks : 0), expected_scales(scales.size());
        cpu::twin_rows(from, kCount, kTasks, width, 1, element, expected.data(), expected_scales.data());
        cuda::Buffers buffers;
        allow(buffers, values, false);
        allow(buffers, halves, false);
        allow(buffers, got, true);
        allow(buffers, scales, true);
        cuda::twin_rows(from, kCount, kTasks, width, element, got.data(), scales.data(), nullptr);
        CHECK(got == expected && same(scales, expected_scales));
      }
    }
  }
}
