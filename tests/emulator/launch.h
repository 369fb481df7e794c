// What ../launch.h offers, on a CPU: blocks run one after another, in random order, on the thread that launches.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/device/stream.h"
#include "emulator/device.h"
#include "emulator/device_sm90.h"

namespace resflow::cuda {

struct Device {
  int64_t multiprocessors;
  int64_t shared_bytes;  // the most a block can have
  int capability;        // 80, 90, ...
};

// An H100's at first.
const Device& current_device();
// Of all threads: not while kernels run.
void set_device(const Device& device);
// Which order blocks and threads run in, from the next launch on; a launch changes it for the one after.
void set_schedule_seed(uint64_t seed);

namespace emulator {

void run_grid(Grid grid);

}  // namespace emulator

// Throws std::runtime_error for what would be an error, or undefined, on a GPU: kernel, block, thread and place.
template <class Kernel>
void launch(const typename Kernel::Params& params, int64_t blocks, int64_t shared_bytes, Stream) {
  using Params = typename Kernel::Params;
  static_assert(std::is_trivially_copyable_v<Params>);
  static_assert(Kernel::kThreads % emulator::kWarp == 0 && Kernel::kThreads <= emulator::kMostThreads);
  static_assert(Kernel::kMinBlocks > 0);
  const Params copy = params;
  emulator::Grid grid{
      Kernel::kName, Kernel::kThreads, blocks, shared_bytes, &copy, sizeof(copy), [](const void* of, char* shared) {
        Kernel::run(*static_cast<const Params*>(of), shared);
      }};
  if constexpr (requires { Kernel::kCluster; }) {
    static_assert(Kernel::kCluster <= emulator::kMostCluster &&
                  Kernel::kCluster * Kernel::kThreads <= emulator::kMostThreads);
    grid.cluster = Kernel::kCluster;
  }
  emulator::run_grid(grid);
}

void set_zero(void* memory, int64_t bytes, Stream stream);

}  // namespace resflow::cuda
