// Scores a few candidates with the tower kernels in the emulator, under several schedules, and compares with the CPU's
// kernels. Exits with 1 if a score is off or the emulator finds a fault: what test_mutations.py plants.
#include <cmath>
#include <cstdio>
#include <exception>
#include <random>
#include <vector>

#include "../cpp/models.h"
#include "core/number_formats.h"
#include "cpu/towers/towers.h"
#include "cuda/device/launch.h"
#include "cuda/towers/dispatch.h"
#include "cuda/towers/tower.h"

using namespace resflow;
using namespace resflow::cuda;

namespace {

constexpr int64_t kInputs = 168, kCandidates = 70;

std::vector<uint16_t> random_rows() {
  std::mt19937 generator(3);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> x(kCandidates * kInputs);
  for (uint16_t& value : x) value = to_bfloat16(normal(generator));
  return x;
}

struct Results {
  std::vector<float> logits, probs, score;

  explicit Results(int64_t tasks)
      : logits(kCandidates * tasks, NAN), probs(kCandidates * tasks, NAN), score(kCandidates, NAN) {}
};

template <int kVariant>
Results scores_of(const testing::Packed& model, const Candidates& candidates, const FusionWeights& weights) {
  Results results(model.plan.tasks);
  constexpr TowerVariant kOwn = kTowerVariants[kVariant];
  TowerParams params{};
  params.call = {
      model.plan,           model.bytes.data(),  candidates, weights, model.plan.tasks, nullptr, results.logits.data(),
      results.probs.data(), results.score.data()};
  params.shape = tower_shape(model.plan, kOwn.rows, 0, kInputs);
  Buffers buffers;
  buffers.allow(model.bytes.data(), static_cast<int64_t>(model.bytes.size()), false);
  buffers.allow(candidates.x.rows.data, kCandidates * kInputs * 2, false);
  buffers.allow(weights.values, model.plan.tasks * 4, false);
  buffers.allow(results.logits.data(), static_cast<int64_t>(results.logits.size()) * 4, true);
  buffers.allow(results.probs.data(), static_cast<int64_t>(results.probs.size()) * 4, true);
  buffers.allow(results.score.data(), static_cast<int64_t>(results.score.size()) * 4, true);
  launch<TowerKernel<Precision::bfloat16, kOwn.rows, kOwn.in_shared>>(params, 2, params.shape.shared_bytes(true), {});
  return results;
}

bool close(const std::vector<float>& got, const std::vector<float>& expected) {
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(std::abs(got[i] - expected[i]) <= 2e-2f * (1 + std::abs(expected[i])))) return false;
  }
  return true;
}

bool passes() {
  const testing::Packed model(
      testing::encode(kInputs, {80, 33}, {-1, 0, 1}, Activation::prelu, true, Precision::bfloat16));
  const std::vector<uint16_t> x = random_rows();
  const std::vector<float> ones(model.plan.tasks, 1.0f);
  Candidates candidates{};
  candidates.x = {{x.data(), Precision::bfloat16, kInputs}, {}};
  candidates.count = kCandidates;
  const FusionWeights weights{Fusion::additive, WeightsPer::call, ones.data()};
  Results expected(model.plan.tasks);
  cpu::towers_scores({{model.plan, model.bytes.data()}, candidates, weights},
                     {expected.logits.data(), expected.probs.data(), expected.score.data()}, 1);
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    set_schedule_seed(seed);
    for (const Results& got : {scores_of<0>(model, candidates, weights), scores_of<2>(model, candidates, weights)}) {
      if (!close(got.logits, expected.logits) || !close(got.score, expected.score)) return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  try {
    if (passes()) return 0;
    std::puts("scores are off");
  } catch (const std::exception& error) {
    std::puts(error.what());
  }
  return 1;
}
