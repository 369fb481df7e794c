#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "core/topk.h"
#include "cuda/topk/topk.h"
#include "emulator_launch.h"

using namespace resflow;
using resflow::testing::allow;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

struct Best {
  std::vector<float> scores;
  std::vector<int64_t> positions;

  Best(int64_t requests, int64_t k) : scores(requests * k, -7.0f), positions(requests * k, -7) {}

  // Equal to the bit, NaN included.
  bool operator==(const Best& other) const {
    return positions == other.positions &&
           std::memcmp(scores.data(), other.scores.data(), scores.size() * sizeof(float)) == 0;
  }
};

// Many ties; every kind of number.
std::vector<float> some_scores(int64_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<float> scores(count);
  const float odd[] = {kNan, -kNan, kInfinity, -kInfinity, 0.0f, -0.0f, 1e-40f, -1e-40f};
  for (float& score : scores) {
    score = generator() % 8 ? static_cast<float>(generator() % 1000) / 500.0f - 1.0f : odd[generator() % 8];
  }
  return scores;
}

Best expected(const std::vector<float>& scores, const std::vector<int64_t>& offsets, int64_t k) {
  const auto requests = static_cast<int64_t>(offsets.size()) - 1;
  Best best(requests, k);
  TopK kept(k);
  for (int64_t r = 0; r < requests; ++r) {
    kept.offer_run(scores.data() + offsets[r], offsets[r + 1] - offsets[r], 0);
    kept.write(best.scores.data() + r * k, best.positions.data() + r * k);
  }
  return best;
}

// `offsets` may be empty: requests of equal length. The workspace holds what it happens to hold.
Best found(const std::vector<float>& scores, const std::vector<int64_t>& offsets, int64_t requests, int64_t k,
           uint32_t seed = 1) {
  const auto count = static_cast<int64_t>(scores.size());
  Best best(requests, k);
  std::vector<uint64_t> workspace(cuda::topk_workspace_bytes(requests, count, k) / 8);
  std::mt19937_64 generator(seed);
  for (uint64_t& word : workspace) word = generator();
  cuda::Buffers buffers;
  allow(buffers, scores, false);
  allow(buffers, offsets, false);
  allow(buffers, workspace, true);
  allow(buffers, best.scores, true);
  allow(buffers, best.positions, true);
  cuda::set_schedule_seed(seed);
  cuda::topk(scores.data(), offsets.empty() ? nullptr : offsets.data(), requests, count, k, best.scores.data(),
             best.positions.data(), workspace.data(), nullptr);
  return best;
}

std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> offsets{0};
  for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

void check(const std::vector<int64_t>& lengths, std::initializer_list<int64_t> ks, uint32_t seed) {
  const std::vector<int64_t> offsets = offsets_of(lengths);
  const std::vector<float> scores = some_scores(offsets.back(), seed);
  for (const int64_t k : ks) {
    const bool same = found(scores, offsets, static_cast<int64_t>(lengths.size()), k) == expected(scores, offsets, k);
    CHECK(same);
    if (!same) std::printf("  k = %lld\n", static_cast<long long>(k));
  }
}

}  // namespace

TEST(the_k_best_of_requests_of_all_lengths) {
  check({0, 3, 0, 0, 5000, 1, 100, 4096, 0}, {1, 7, 100, 600}, 1);
  check({4096}, {1, 4096}, 2);
  check({4095, 1, 4097}, {50}, 3);
  check({0, 0, 0}, {1, 5}, 4);
  check({1}, {1, 3, 5000}, 5);
  std::vector<int64_t> small(300);
  for (size_t i = 0; i < small.size(); ++i) small[i] = static_cast<int64_t>(i * 7 % 40);
  check(small, {1, 20, 64}, 6);
}

TEST(lists_are_merged_over_several_levels) {
  check({30'000}, {1500, 2048}, 7);     // in pairs: 3 levels and a last one
  check({9, 40'000, 0, 17}, {300}, 8);  // 13 at a time
}

TEST(a_large_k_sorts) {
  check({5000, 0, 9000, 3, 8192}, {2049, 5000, 12'000}, 9);
  check({25'000}, {25'000}, 10);
}

TEST(requests_of_equal_length_need_no_offsets) {
  for (const int64_t k : {3, 2500}) {
    const std::vector<float> scores = some_scores(3 * 6000, 11);
    CHECK(found(scores, {}, 3, k) == expected(scores, {0, 6000, 12'000, 18'000}, k));
  }
  CHECK(found({}, {}, 2, 3) == expected({}, {0, 0, 0}, 3));
}

TEST(scores_that_are_all_alike) {
  for (const float score : {0.5f, kNan, -kInfinity}) {
    const std::vector<float> scores(9000, score);
    for (const int64_t k : {10, 3000}) CHECK(found(scores, {0, 9000}, 1, k) == expected(scores, {0, 9000}, k));
  }
}

TEST(zeros_of_both_signs_are_equal_and_come_back_as_they_were) {
  const std::vector<float> scores{-0.0f, 0.0f, -1.0f, 0.0f, -0.0f};
  const Best best = found(scores, {0, 5}, 1, 4);
  CHECK((best.positions == std::vector<int64_t>{0, 1, 3, 4}));
  CHECK(std::signbit(best.scores[0]) && !std::signbit(best.scores[1]) && std::signbit(best.scores[3]));
}

TEST(any_schedule_finds_the_same) {
  const std::vector<int64_t> offsets = offsets_of({9000, 40});
  const std::vector<float> scores = some_scores(offsets.back(), 12);
  for (const int64_t k : {100, 2500}) {
    const Best best = expected(scores, offsets, k);
    for (uint32_t seed = 1; seed <= 4; ++seed) CHECK(found(scores, offsets, 2, k, seed) == best);
  }
}

TEST(offsets_that_do_not_grow_find_nothing_and_touch_nothing_else) {
  constexpr int64_t kCount = 9000, kFar = int64_t(1) << 62;
  const std::vector<float> scores = some_scores(kCount, 13);
  std::vector<std::vector<int64_t>> all{{0, 5000, 4000, kCount}, {1, 2, 3, kCount},       {0, 5, 10, kCount - 1},
                                        {0, -5, 10, kCount},     {kFar, -kFar, kFar, -1}, {0, kFar, kFar, kFar},
                                        {kCount, kCount, 0, 0}};
  std::mt19937_64 generator(14);
  for (int i = 0; i < 5; ++i) {
    std::vector<int64_t> offsets(4);
    for (int64_t& offset : offsets) offset = static_cast<int64_t>(generator());
    all.push_back(offsets);
  }
  for (const std::vector<int64_t>& offsets : all) {
    for (const int64_t k : {20, 3000}) {
      const Best best = found(scores, offsets, 3, k);
      CHECK(std::all_of(best.positions.begin(), best.positions.end(), [](int64_t at) { return at == -1; }));
      CHECK(std::all_of(best.scores.begin(), best.scores.end(), [](float score) { return score != score; }));
    }
  }
}
