#include "emulator/launch.h"

#include <atomic>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace resflow::cuda {

namespace {

constexpr int64_t kMostBlocks = 0x7fffffff;

Device device = {132, 232448, 90};
std::atomic<uint64_t> schedule_seed{1};

}  // namespace

const Device& current_device() { return device; }

void set_device(const Device& as) { device = as; }

void set_schedule_seed(uint64_t seed) { schedule_seed = seed; }

void set_zero(void* memory, int64_t bytes, Stream) {
  if (bytes <= 0) return;
  const std::string wrong = emulator::wrong_with(memory, bytes, 1, true);
  if (!wrong.empty()) throw std::runtime_error("set_zero: " + wrong);
  std::memset(memory, 0, static_cast<size_t>(bytes));
}

namespace emulator {

namespace {

void check_grid(const Grid& grid) {
  const auto complain = [&](const char* what, int64_t least, int64_t most, int64_t got) {
    throw std::runtime_error(std::string(grid.name) + ": " + what + " must be " + std::to_string(least) + " to " +
                             std::to_string(most) + ", got " + std::to_string(got));
  };
  if (grid.blocks < 0 || grid.blocks > kMostBlocks) complain("blocks", 0, kMostBlocks, grid.blocks);
  if (grid.shared_bytes < 0 || grid.shared_bytes > device.shared_bytes) {
    complain("shared_bytes", 0, device.shared_bytes, grid.shared_bytes);
  }
  if (grid.blocks % grid.cluster) {
    throw std::runtime_error(std::string(grid.name) + ": blocks must be whole clusters of " +
                             std::to_string(grid.cluster) + ", got " + std::to_string(grid.blocks));
  }
}

}  // namespace

void run_grid(Grid grid) {
  check_grid(grid);
  grid.capability = device.capability;
  if (grid.blocks == 0) return;
  thread_local Stacks stacks;
  stacks.reserve(grid.threads * grid.cluster);
  Random random(schedule_seed.fetch_add(1));
  SharedMemory shared(grid.cluster > 1 ? grid.cluster * grid.shared_stride() : grid.shared_bytes);
  Block block(grid, shared, stacks, random.next());
  std::vector<int64_t> order(static_cast<size_t>(grid.blocks / grid.cluster));
  std::iota(order.begin(), order.end(), 0);
  for (auto left = static_cast<uint32_t>(order.size()); left > 1; --left) {
    std::swap(order[left - 1], order[random.below(left)]);
  }
  for (const int64_t index : order) block.run(index * grid.cluster);
}

}  // namespace emulator
}  // namespace resflow::cuda
