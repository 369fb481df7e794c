// The host's resources for one call: the stream that its kernels run on, and memory for them.
#pragma once

#include <cstdint>

#include "cuda/device/stream.h"

namespace resflow::cuda {

class Queue {
 public:
  virtual Stream stream() const = 0;
  // Memory for this call's kernels, aligned to 16 bytes; null for 0 bytes.
  virtual void* workspace(int64_t bytes) = 0;

 protected:
  ~Queue() = default;
};

}  // namespace resflow::cuda
