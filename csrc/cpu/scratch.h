// Memory that threads keep from tile to tile.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

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

}  // namespace resflow::cpu
