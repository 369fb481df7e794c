// Launches kernels written against target.h, and queries the device. The emulator's version is tests/emulator/launch.h.
#pragma once

#include "cuda/device/stream.h"
#include "cuda/device/target.h"

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

// Properties of the current device.
struct Device {
  int64_t multiprocessors;
  int64_t shared_bytes;  // largest dynamic shared memory per block
  int capability;        // 80, 90, ...
};

inline const Device& current_device() {
  constexpr int kMost = 64;
  static Device devices[kMost];
  static std::atomic<bool> known[kMost];
  int index = 0;
  require_success(cudaGetDevice(&index), "cudaGetDevice");
  if (index >= kMost) throw std::runtime_error("resflow: more than 64 devices");
  if (!known[index].load(std::memory_order_acquire)) {
    const auto query = [&](cudaDeviceAttr attribute) {
      int value = 0;
      require_success(cudaDeviceGetAttribute(&value, attribute, index), "cudaDeviceGetAttribute");
      return value;
    };
    // Two threads may write this at once; both write the same values.
    devices[index] = {query(cudaDevAttrMultiProcessorCount), query(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                      10 * query(cudaDevAttrComputeCapabilityMajor) + query(cudaDevAttrComputeCapabilityMinor)};
    known[index].store(true, std::memory_order_release);
  }
  return devices[index];
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, Kernel::kMinBlocks)
    kernel_entry(const __grid_constant__ typename Kernel::Params params) {
  extern __shared__ __align__(1024) char shared[];
  Kernel::run(params, shared);
}

// Launches `blocks` blocks with `shared_bytes` of dynamic shared memory each; an empty grid launches nothing.
template <class Kernel>
void launch(const typename Kernel::Params& params, int64_t blocks, int64_t shared_bytes, Stream stream) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX)
    throw std::runtime_error(std::string(Kernel::kName) + ": a grid of more than 2^31 - 1 blocks");
  // Shared memory beyond 48 KiB has to be allowed for each kernel, once per device.
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
  // The runtime API instead of the <<< >>> syntax, which clang-format breaks apart.
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
