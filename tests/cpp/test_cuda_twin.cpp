// The device's twin towers in the emulator, against the CPU's.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "twin_case.h"

using namespace resflow;
using namespace resflow::testing;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

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

TEST(any_schedule_gives_the_same_bits) {
  for (const Precision element : kElements) {
    Case of(3, 40, 200, 3, element);
    const Scores expected = of.make().on_device(false);
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      cuda::set_schedule_seed(seed);
      CHECK(same(of.on_device(false), expected));
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
        cpu::twin_rows(from, kCount, kTasks, width, element, expected.data(), expected_scales.data(), 1);
        cuda::Buffers buffers;
        TestQueue queue(buffers);
        allow(buffers, values, false);
        allow(buffers, halves, false);
        allow(buffers, got, true);
        allow(buffers, scales, true);
        cuda::twin_rows(from, kCount, kTasks, width, element, got.data(), scales.data(), queue);
        CHECK(got == expected && same(scales, expected_scales));
      }
    }
  }
}
