// As mutation_driver.cpp, of the Hopper kernel: clusters, the ring and several tiles a block.
#include <cmath>
#include <cstdio>
#include <exception>
#include <random>
#include <vector>

#include "../cpp/models.h"
#include "core/number_formats.h"
#include "cpu/towers/towers.h"
#include "cuda/device/launch.h"
#include "cuda/device/tensor_map.h"
#include "cuda/towers/tower_sm90.h"

using namespace resflow;
using namespace resflow::cuda;

namespace {

constexpr int64_t kInputs = 584, kCandidates = 500;

struct Results {
  std::vector<float> logits, probs, score;

  explicit Results(int64_t tasks)
      : logits(kCandidates * tasks, NAN), probs(kCandidates * tasks, NAN), score(kCandidates, NAN) {}
};

Results scores_of(const testing::Packed& model, const Candidates& candidates, const FusionWeights& weights) {
  Results results(model.plan.tasks);
  TowerSm90Params params{};
  params.call = {
      model.plan,           model.bytes.data(),  candidates, weights, model.plan.tasks, nullptr, results.logits.data(),
      results.probs.data(), results.score.data()};
  params.schedule =
      tower_schedule(model.plan.tasks, kInputs, kInputs, kCandidates, kMostGroups, current_device().shared_bytes);
  params.x = make_tensor_map(candidates.x.rows.data, kInputs, kCandidates, 2 * kInputs, 2, kChunkInputs,
                             params.schedule.rows());
  Buffers buffers;
  buffers.allow(model.bytes.data(), static_cast<int64_t>(model.bytes.size()), false);
  buffers.allow(candidates.x.rows.data, kCandidates * kInputs * 2, false);
  buffers.allow(weights.values, model.plan.tasks * 4, false);
  buffers.allow(results.logits.data(), static_cast<int64_t>(results.logits.size()) * 4, true);
  buffers.allow(results.probs.data(), static_cast<int64_t>(results.probs.size()) * 4, true);
  buffers.allow(results.score.data(), static_cast<int64_t>(results.score.size()) * 4, true);
  using Kernel = TowerSm90Kernel<Precision::bfloat16, Activation::prelu, kMostGroups>;
  launch<Kernel>(params, kTowerCluster, params.schedule.bytes(), {});
  return results;
}

bool close(const std::vector<float>& got, const std::vector<float>& expected) {
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(std::abs(got[i] - expected[i]) <= 5e-3f * (1 + std::abs(expected[i])))) return false;
  }
  return true;
}

int run() {
  const testing::Packed model(
      testing::encode(kInputs, {128, 64}, {-1, 0, 1}, Activation::prelu, true, Precision::bfloat16));
  std::mt19937 generator(3);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> x(kCandidates * kInputs);
  for (uint16_t& value : x) value = to_bfloat16(normal(generator));
  const std::vector<float> weights(model.plan.tasks, 1.0f);
  const FusionWeights fusion{Fusion::additive, WeightsPer::call, weights.data()};
  Candidates candidates{};
  candidates.x = {{x.data(), Precision::bfloat16, kInputs}, {}};
  candidates.count = kCandidates;
  Results expected(model.plan.tasks);
  cpu::towers_scores({{model.plan, model.bytes.data()}, candidates, fusion},
                     {expected.logits.data(), expected.probs.data(), expected.score.data()}, 1);
  for (uint64_t seed = 0; seed < 5; ++seed) {
    set_schedule_seed(seed);
    const Results got = scores_of(model, candidates, fusion);
    if (!close(got.logits, expected.logits) || !close(got.score, expected.score)) {
      std::printf("scores are off\n");
      return 1;
    }
  }
  return 0;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}
