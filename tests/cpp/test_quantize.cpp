// Rounding to int8 at its edges, built so that a sanitizer of undefined behaviour has something to look at.
#include "core/quantize.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "core/round_row.h"
#include "cpu/towers/towers.h"
#include "models.h"

using namespace resflow;
using namespace resflow::testing;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kSmallest = std::numeric_limits<float>::denorm_min();
constexpr int64_t kInputs = 37;

// Rows that begin with these values and go on with zeros.
const std::vector<std::vector<float>> kRows = {{},
                                               {kNan, 1},
                                               {1, kInfinity},
                                               {-kInfinity, kNan},
                                               {kSmallest},
                                               {189 * kSmallest, -189 * kSmallest},
                                               {std::numeric_limits<float>::max(), -1},
                                               {1, -2, 3}};

std::vector<float> whole_row(size_t at) {
  std::vector<float> row = kRows[at];
  row.resize(kInputs);
  return row;
}

}  // namespace

TEST(stored_bytes_are_within_127_steps) {
  for (size_t at = 0; at < kRows.size(); ++at) {
    const std::vector<float> row = whole_row(at);
    std::vector<int8_t> bytes(kInputs, 99);
    float scale = -1;
    round_row(row.data(), kInputs, Precision::int8, bytes.data(), &scale);
    const bool finite = std::isfinite(row[0]) && std::isfinite(row[1]);
    CHECK(finite ? scale >= 0 : std::isnan(scale));
    for (int64_t i = 0; i < kInputs; ++i) {
      CHECK(bytes[i] >= -127);
      CHECK(scale > 0 || bytes[i] == 0);
      if (scale > std::numeric_limits<float>::min())
        CHECK(std::abs(static_cast<double>(bytes[i]) * scale - row[i]) <= 0.501 * scale);
    }
  }
  CHECK(int8_step(kNan) == 0 && int8_step(kInfinity) == 127 && int8_step(-kInfinity) == -127);
  CHECK(int8_step(0.5f) == 0 && int8_step(1.5f) == 2 && int8_step(-126.6f) == -127 && int8_step(-0.4f) == 0);
  CHECK(int8_reciprocal(kNan) == 0 && int8_reciprocal(0) == 0 && int8_reciprocal(4) == 0.25f);
  CHECK(int8_reciprocal(kSmallest) == std::numeric_limits<float>::max());
}

TEST(the_reciprocals_product_needs_no_bounds) {
  for (uint32_t bits = 1; bits < 0x7f000000; bits += 1 + bits / 1000) {
    float largest;
    std::memcpy(&largest, &bits, sizeof(bits));
    const float scale = int8_scale(larger_magnitude(0, -largest));
    CHECK(std::nearbyint(largest * int8_reciprocal(scale)) <= 127);
  }
}

TEST(int8_rows_that_are_not_finite_score_nan_and_leave_their_neighbours_alone) {
  const Packed model(encode(kInputs, {80, 33}, {-1, 0}, Activation::prelu, true, Precision::int8));
  const std::vector<float> weights(2, 1.0f);
  const auto logits_of = [&](const std::vector<float>& x) {
    const auto rows = static_cast<int64_t>(x.size()) / kInputs;
    std::vector<float> logits(rows * 2), probs(rows * 2), score(rows);
    Candidates candidates{};
    candidates.x = {x.data(), Precision::float32, kInputs};
    candidates.count = rows;
    cpu::towers_scores(
        {{model.plan, model.bytes.data()}, candidates, {Fusion::additive, WeightsPer::call, weights.data()}},
        {logits.data(), probs.data(), score.data()}, 1);
    return logits;
  };
  std::vector<float> all;
  for (size_t at = 0; at < kRows.size(); ++at) {
    const std::vector<float> row = whole_row(at);
    all.insert(all.end(), row.begin(), row.end());
  }
  const std::vector<float> together = logits_of(all);
  for (size_t at = 0; at < kRows.size(); ++at) {
    const std::vector<float> alone = logits_of(whole_row(at));
    const bool finite = at == 0 || at >= 4;
    for (int64_t k = 0; k < 2; ++k) {
      CHECK(finite || std::isnan(alone[k]));
      CHECK(std::isnan(alone[k]) ? std::isnan(together[at * 2 + k]) : alone[k] == together[at * 2 + k]);
    }
    if (at == 0 || at == 7) CHECK(std::isfinite(alone[0]) && std::isfinite(alone[1]));
  }
}
