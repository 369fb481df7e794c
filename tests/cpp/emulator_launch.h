// What the emulator's tests share.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device/launch.h"

namespace resflow::testing {

constexpr uint64_t kSeeds = 20;

// Empty if the launch succeeded.
template <class Kernel>
std::string error_of(const typename Kernel::Params& params, int64_t blocks, int64_t shared_bytes) {
  try {
    cuda::launch<Kernel>(params, blocks, shared_bytes, nullptr);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

inline bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

template <class T>
void allow(cuda::Buffers& buffers, const std::vector<T>& values, bool writable) {
  buffers.allow(values.data(), static_cast<int64_t>(values.size() * sizeof(T)), writable);
}

}  // namespace resflow::testing
