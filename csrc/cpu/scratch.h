// What the drivers share: scratch memory, and the thread pool with a lambda.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "cpu/thread_pool.h"

namespace resflow::cpu {

// A growing buffer of floats that starts on a cache line.
class Scratch {
 public:
  float* floats(int64_t count) {
    if (count > capacity_) {
      buffer_.reset(static_cast<float*>(::operator new(count * sizeof(float), std::align_val_t{64})));
      capacity_ = count;
    }
    return buffer_.get();
  }

 private:
  struct Free {
    void operator()(float* buffer) const { ::operator delete(buffer, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> buffer_;
  int64_t capacity_ = 0;
};

template <class Work>
void run_parallel(int64_t count, int64_t threads, Work work) {
  parallel_for(count, threads, [](void* context, int64_t index) { (*static_cast<Work*>(context))(index); }, &work);
}

}  // namespace resflow::cpu
