// What a call brings along from the host: the stream its kernels run on, and memory for them.
#pragma once

#include <cstdint>

#include "cuda/device/stream.h"

namespace resflow::cuda {

class Queue {
 public:
  virtual Stream stream() const = 0;
  // Aligned to 16 bytes, for the kernels of this call; null for 0 bytes.
  virtual void* workspace(int64_t bytes) = 0;

 protected:
  ~Queue() = default;
};

}  // namespace resflow::cuda
