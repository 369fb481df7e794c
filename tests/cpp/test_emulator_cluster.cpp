#include <string>
#include <vector>

#include "check.h"
#include "emulator_kernels.h"
#include "emulator_launch.h"

using namespace resflow::testing;

namespace {

// Each block of a cluster copies its half of `in` to `to` blocks and, once it has all of it, writes it out; then it
// tells the other that it has.
template <bool kWaitsAtTheEnd>
struct ShareCopies {
  struct Params {
    const uint32_t* in;  // [64]
    uint32_t* out;       // [blocks][64]
    int to;
  };
  RESFLOW_KERNEL(64);
  static constexpr int kCluster = 2;
  static constexpr int kWords = 64, kHalf = kWords / kCluster, kSharedBytes = 4 * kWords + 16;

  static RESFLOW_DEVICE void run(const Params& params, char* shared) {
    auto* const words = reinterpret_cast<uint32_t*>(shared);
    auto* const full = reinterpret_cast<uint64_t*>(words + kWords);
    uint64_t* const told = full + 1;
    if (thread_index() == 0) {
      barrier_init(full, 1);
      barrier_init(told, kThreads);
      barrier_init_done();
    }
    sync_cluster();
    if (thread_index() == 0) {
      const int first = cluster_rank() * kHalf;
      barrier_expect(full, 4 * kWords);
      copy_bulk_to_cluster(words + first, params.in + first, 4 * kHalf, full, params.to);
    }
    barrier_wait(full, 0);
    store_global(params.out + block_index() * kWords + thread_index(), words[thread_index()]);
    barrier_arrive_at(told, 1 - cluster_rank());
    if constexpr (kWaitsAtTheEnd) {
      barrier_wait(told, 0);
      sync_cluster();
    }
  }
};

template <class Kernel>
std::string run(int64_t blocks, int to, std::vector<uint32_t>& out) {
  std::vector<uint32_t> in(Kernel::kWords);
  for (uint32_t i = 0; i < in.size(); ++i) in[i] = i + 1;
  Buffers buffers;
  allow(buffers, in, false);
  allow(buffers, out, true);
  return error_of<Kernel>({in.data(), out.data(), to}, blocks, Kernel::kSharedBytes);
}

}  // namespace

TEST(blocks_of_a_cluster_copy_for_each_other) {
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    set_schedule_seed(seed);
    std::vector<uint32_t> out(4 * 64);
    CHECK(run<ShareCopies<true>>(4, 3, out).empty());
    for (uint32_t i = 0; i < out.size(); ++i) CHECK(out[i] == i % 64 + 1);
  }
}

TEST(a_copy_that_leaves_a_block_out_is_waited_for_in_vain) {
  std::vector<uint32_t> out(2 * 64);
  for (const int to : {1, 2}) CHECK(contains(run<ShareCopies<true>>(2, to, out), "wait for each other"));
}

TEST(a_block_that_returns_early_is_missed_by_its_cluster) {
  bool missed = false;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    set_schedule_seed(seed);
    std::vector<uint32_t> out(2 * 64);
    missed |= contains(run<ShareCopies<false>>(2, 3, out), "of the cluster has returned");
  }
  CHECK(missed);
}

TEST(a_grid_is_whole_clusters) {
  std::vector<uint32_t> out(3 * 64);
  CHECK(contains(run<ShareCopies<true>>(3, 3, out), "blocks must be whole clusters of 2, got 3"));
}
