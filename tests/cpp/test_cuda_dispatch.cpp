// Which tower kernel a call gets, and that its blocks fit an SM, on GPUs of three sizes.
#include "check.h"
#include "cuda/towers/dispatch.h"
#include "models.h"

namespace resflow::cuda {
namespace {

using testing::decode;
using testing::encode;

constexpr Device kGpus[] = {{132, 232448, 90}, {108, 166912, 80}, {72, 101376, 86}};  // H100, A100, A10
constexpr Precision kPrecisions[] = {Precision::float32, Precision::bfloat16, Precision::float16,
                                     Precision::tensorfloat32};

struct Workload {
  int64_t in_features, user_features;
  std::vector<int64_t> widths;
  int64_t tasks;
};

const std::vector<Workload>& workloads() {
  static const std::vector<Workload> all = {
      {608, 320, {128, 64}, 2}, {576, 320, {128, 64}, 3},        {744, 400, {128, 64}, 5},
      {744, 400, {128, 64}, 9}, {1024, 512, {512, 256, 128}, 3}, {20000, 1000, {2000, 33}, 16},
  };
  return all;
}

template <class Each>
void for_each_plan(Each each) {
  for (const Workload& of : workloads()) {
    std::vector<int64_t> parents;
    for (int64_t k = 0; k < of.tasks; ++k) parents.push_back(k - 1);
    for (const Precision precision : kPrecisions) {
      each(of, decode(encode(of.in_features, of.widths, parents, Activation::prelu, true, precision)));
    }
  }
}

TEST(blocks_of_towers_fit_the_shared_memory_they_are_planned_for) {
  for_each_plan([](const Workload& of, const Plan& plan) {
    for (const Device& gpu : kGpus) {
      for (const int64_t first_input : {int64_t(0), of.user_features, of.in_features}) {  // dense, request, catalogue
        for (const int64_t count : {int64_t(1), int64_t(100), int64_t(65536), int64_t(1) << 33}) {
          const TowerChoice choice = choose_tower(plan, first_input, of.in_features - first_input, count, gpu);
          CHECK(choice.shared_bytes > 0 && choice.shared_bytes <= gpu.shared_bytes);
          const int64_t each_sm = blocks_per_multiprocessor(choice.shared_bytes, kTowerBlocks, gpu);
          CHECK(each_sm >= 1 && each_sm * (choice.shared_bytes + 1024) <= gpu.shared_bytes + 1024);
          const int64_t rows = kTowerVariants[choice.variant].rows, tiles = (count + rows - 1) / rows;
          CHECK(choice.blocks >= 1 && choice.blocks <= tiles && choice.blocks <= each_sm * gpu.multiprocessors);
          CHECK((choice.tile_memory_bytes > 0) == !kTowerVariants[choice.variant].in_shared);
        }
      }
    }
  });
}

TEST(nothing_is_launched_for_no_candidates) {
  for_each_plan([](const Workload& of, const Plan& plan) {
    CHECK(choose_tower(plan, 0, of.in_features, 0, kGpus[0]).blocks == 0);
    CHECK(choose_project(plan, 0, of.in_features, 0, kGpus[0]).blocks == 0);
  });
}

// On an A100 a tile of 64 rows of 576 and its residuals would be 181 KiB.
TEST(towers_of_the_usual_widths_share_weights_among_64_rows_or_32) {
  for (const Precision precision : {Precision::bfloat16, Precision::float16}) {
    const Plan plan = decode(encode(576, {128, 64}, {-1, 0, 1}, Activation::prelu, true, precision));
    const auto rows = [&](const Device& gpu) {
      return kTowerVariants[choose_tower(plan, 0, 576, 65536, gpu).variant].rows;
    };
    CHECK(rows(kGpus[0]) == 64);
    CHECK(rows(kGpus[1]) == 32);
  }
}

TEST(projections_fit_shared_memory_or_get_memory_of_their_own) {
  for_each_plan([](const Workload& of, const Plan& plan) {
    for (const Device& gpu : kGpus) {
      for (const int64_t count : {int64_t(1), int64_t(20), int64_t(100000)}) {
        const ProjectChoice choice = choose_project(plan, 0, of.user_features, count, gpu);
        const int64_t tile = 4 * kProjectRows * choice.stride;
        CHECK(choice.blocks >= 1 && choice.parts >= 1);
        CHECK(choice.tile_memory_bytes == 0 ? kRingBytes + tile <= gpu.shared_bytes
                                            : choice.tile_memory_bytes == choice.blocks * tile);
      }
    }
  });
}

}  // namespace
}  // namespace resflow::cuda
