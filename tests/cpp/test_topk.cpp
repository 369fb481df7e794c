#include <algorithm>
#include <limits>
#include <random>

#include "check.h"
#include "core/topk.h"

using namespace resflow;

TEST(topk_equals_a_sort_whatever_the_order_of_arrival) {
  std::mt19937 generator(3);
  std::vector<Ranked> all;
  for (int64_t i = 0; i < 500; ++i) {
    const auto score = static_cast<float>(generator() % 20);
    all.push_back({i % 17 ? score : std::numeric_limits<float>::quiet_NaN(), i});
  }
  std::vector<Ranked> sorted = all;
  std::sort(sorted.begin(), sorted.end(), ranks_before);
  for (const int64_t k : {1, 7, 100, 600}) {
    std::shuffle(all.begin(), all.end(), generator);
    TopK left(k), right(k);
    for (size_t i = 0; i < all.size(); ++i) (i % 3 ? left : right).offer(all[i]);
    left.merge(right);
    std::vector<float> scores(k);
    std::vector<int64_t> positions(k);
    left.write(scores.data(), positions.data());
    for (int64_t i = 0; i < k; ++i) {
      CHECK(positions[i] == (i < 500 ? sorted[i].position : -1));
      CHECK(i < 500 ? !(scores[i] < sorted[i].score) && !(scores[i] > sorted[i].score) : scores[i] != scores[i]);
    }
  }
}

TEST(a_run_is_offered_as_its_scores_one_by_one) {
  std::mt19937 generator(5);
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  std::vector<float> scores(1000);
  for (float& score : scores) score = static_cast<float>(generator() % 50);
  for (size_t i = 0; i < scores.size(); i += 7) scores[i] = i % 2 ? nan : -infinity;
  std::fill_n(scores.begin(), 40, nan);  // the list is full of NaN before the first number comes
  for (const int64_t k : {1, 16, 30, 900, 1200}) {
    TopK one(k), run(k);
    for (int64_t i = 0; i < 1000; ++i) one.offer({scores[i], i});
    run.offer_run(scores.data(), 21, 0);
    run.offer_run(scores.data() + 21, 979, 21);
    std::vector<float> expected(k), got(k);
    std::vector<int64_t> expected_positions(k), positions(k);
    one.write(expected.data(), expected_positions.data());
    run.write(got.data(), positions.data());
    CHECK(positions == expected_positions);
    for (int64_t i = 0; i < k; ++i) CHECK(got[i] == expected[i] || (got[i] != got[i] && expected[i] != expected[i]));
  }
}

TEST(infinities_are_numbers_and_nan_is_last) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(ranks_before({-infinity, 9}, {nan, 0}));
  CHECK(ranks_before({infinity, 9}, {1, 0}));
  CHECK(ranks_before({0.0f, 0}, {-0.0f, 1}) && ranks_before({-0.0f, 0}, {0.0f, 1}));
  CHECK(ranks_before({nan, 0}, {nan, 1}));
}
