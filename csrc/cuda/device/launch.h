// Launching kernels of target.h, and what the host asks of a device. The emulator's twin: emulator/launch.h.
#pragma once

#include "cuda/device/target.h"
#include "cuda/device/stream.h"

#if defined(RESFLOW_EMULATED)
#include "emulator/launch.h"
#else

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace resflow::cuda {

inline void require_success(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Of the current device.
struct Device {
  int64_t multiprocessors;
  int64_t shared_bytes;  // the most a block can have
  int capability;        // 80, 90, ...
};

inline const Device& current_device() {
  constexpr int kMost = 64;
  static Device devices[kMost];
  static std::atomic<bool> known[kMost];
  int at = 0;
  require_success(cudaGetDevice(&at), "cudaGetDevice");
  if (at >= kMost) throw std::runtime_error("resflow: more than 64 devices");
  if (!known[at].load(std::memory_order_acquire)) {
    const auto ask = [&](cudaDeviceAttr attribute) {
      int value = 0;
      require_success(cudaDeviceGetAttribute(&value, attribute, at), "cudaDeviceGetAttribute");
      return value;
    };
    // Two threads may both write this; they write the same.
    devices[at] = {ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                   10 * ask(cudaDevAttrComputeCapabilityMajor) + ask(cudaDevAttrComputeCapabilityMinor)};
    known[at].store(true, std::memory_order_release);
  }
  return devices[at];
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    kernel_entry(const __grid_constant__ typename Kernel::Params params) {
  extern __shared__ __align__(1024) char shared[];
  Kernel::run(params, shared);
}

// Blocks of `shared_bytes` of shared memory each; nothing for an empty grid.
template <class Kernel>
void launch(const typename Kernel::Params& params, int64_t blocks, int64_t shared_bytes, Stream stream) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX)
    throw std::runtime_error(std::string(Kernel::kName) + ": a grid of more than 2^31 - 1 blocks");
  // Beyond 48 KiB a kernel has to be allowed its shared memory, once a device.
  if (shared_bytes > 48 * 1024) {
    static std::atomic<uint64_t> allowed;
    int device = 0;
    require_success(cudaGetDevice(&device), "cudaGetDevice");
    if (!(allowed.load() >> device & 1)) {
      require_success(cudaFuncSetAttribute(kernel_entry<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(current_device().shared_bytes)),
                      "cudaFuncSetAttribute");
      allowed.fetch_or(uint64_t(1) << device);
    }
  }
  // Not as <<< >>>, which clang-format takes apart.
  const void* arguments[] = {&params};
  if constexpr (requires { Kernel::kCluster; }) {
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {Kernel::kCluster, 1, 1};
    const cudaLaunchConfig_t config{dim3(static_cast<unsigned>(blocks)),
                                    dim3(Kernel::kThreads),
                                    static_cast<size_t>(shared_bytes),
                                    stream,
                                    &cluster,
                                    1};
    return require_success(cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(&kernel_entry<Kernel>),
                                               const_cast<void**>(arguments)),
                           Kernel::kName);
  }
  require_success(cudaLaunchKernel(kernel_entry<Kernel>, dim3(static_cast<unsigned>(blocks)), dim3(Kernel::kThreads),
                                   const_cast<void**>(arguments), static_cast<size_t>(shared_bytes), stream),
                  Kernel::kName);
}

inline void set_zero(void* memory, int64_t bytes, Stream stream) {
  if (bytes > 0) require_success(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream), "cudaMemsetAsync");
}

}  // namespace resflow::cuda
#endif
