// Scratch memory of kernels: buffers of one call, and buffers that threads keep from tile to tile.
#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace resflow::cpu {

// Uninitialised floats, aligned to a cache line.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count)
      : floats_(static_cast<float*>(::operator new(count * sizeof(float), std::align_val_t{64}))) {}
  float* data() const { return floats_.get(); }

 private:
  struct Free {
    void operator()(float* floats) const { ::operator delete(floats, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> floats_;
};

// A growing buffer of floats.
class Scratch {
 public:
  float* floats(int64_t count) {
    if (count > capacity_) {
      buffer_ = Buffer(count);
      capacity_ = count;
    }
    return buffer_.data();
  }
  int64_t capacity() const { return capacity_; }

 private:
  Buffer buffer_;
  int64_t capacity_ = 0;
};

// The buffers of one call, which its thread keeps for the next call while they are small: new buffers cost a page fault
// per 4 KB, a tenth of a training step. A thread must not have two at once.
class CallMemory {
 public:
  CallMemory() = default;
  CallMemory(const CallMemory&) = delete;
  ~CallMemory() {
    int64_t floats = 0;
    for (const Scratch& one : buffers()) floats += one.capacity();
    if (floats * static_cast<int64_t>(sizeof(float)) > kKeptBytes) buffers().clear();
  }

  float* take(int64_t count) {
    std::vector<Scratch>& all = buffers();
    if (taken_ == all.size()) all.emplace_back();
    return all[taken_++].floats(count);
  }

 private:
  static constexpr int64_t kKeptBytes = 64 << 20;
  static std::vector<Scratch>& buffers() {
    thread_local std::vector<Scratch> kept;
    return kept;
  }

  size_t taken_ = 0;
};

}  // namespace resflow::cpu
