#include <cmath>
#include <cstring>
#include <limits>

#include "check.h"
#include "cpu/towers/towers.h"
#include "models.h"
#include "reference.h"

using namespace resflow;
using namespace resflow::testing;

namespace {

constexpr float kGuard = 12345.0f;

}  // namespace

TEST(logits_are_those_of_the_formulas_and_nothing_beyond_the_outputs_is_touched) {
  const Packed model(encode(37, {80, 33}, {-1, 0, 1, 0}));
  const int64_t tasks = model.plan.tasks;
  const Reference reference(model);
  const std::vector<float> weights(tasks, 1.0f);
  for (const int64_t rows : {1, 5, 6, 7, 16, 17, 100}) {
    // Inputs end exactly at the end of their buffer and are followed by NaN: a read beyond shows in a logit.
    std::vector<float> x(rows * 37 + 64, std::numeric_limits<float>::quiet_NaN());
    std::mt19937 generator(7);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < rows * 37; ++i) x[i] = normal(generator);
    std::vector<float> logits(rows * tasks + 16, kGuard), probs(rows * tasks + 16, kGuard), score(rows + 16, kGuard);
    Candidates candidates{};
    candidates.x = {x.data(), Precision::float32, 37};
    candidates.count = rows;
    const FusionWeights fusion{Fusion::additive, WeightsPer::call, weights.data()};
    cpu::towers_scores({{model.plan, model.bytes.data()}, candidates, fusion},
                       {logits.data(), probs.data(), score.data()}, 2);
    for (int64_t r = 0; r < rows; ++r) {
      const Row exact = reference.logits(Row(x.begin() + r * 37, x.begin() + (r + 1) * 37));
      double sum = 0;
      for (int64_t k = 0; k < tasks; ++k) {
        CHECK(std::abs(logits[r * tasks + k] - exact[k]) <= 1e-5 * (1 + std::abs(exact[k])));
        const double prob = 1 / (1 + std::exp(-exact[k]));
        CHECK(std::abs(probs[r * tasks + k] - prob) <= 2e-6);
        sum += prob;
      }
      CHECK(std::abs(score[r] - sum) <= 8e-6);
    }
    for (int64_t i = 0; i < 16; ++i) {
      CHECK(logits[rows * tasks + i] == kGuard && probs[rows * tasks + i] == kGuard && score[rows + i] == kGuard);
    }
  }
}
