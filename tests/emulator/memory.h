// The memory a kernel may touch: global memory is what Buffers allow, shared memory what the launch asked for.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace resflow::cuda {

// What kernels that this CPU thread launches may read (and write) while this object lives.
class Buffers {
 public:
  Buffers() = default;
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  ~Buffers();

  void allow(const void* begin, int64_t bytes, bool writable);
};

namespace emulator {

// Empty if global memory may be accessed so, or else what is wrong.
std::string wrong_with(const void* address, int64_t bytes, int64_t alignment, bool write);

// The shared memory of the blocks of a launch, which take turns.
class SharedMemory {
 public:
  // All bytes 0xff: NaN as any float, -1 as any integer.
  static constexpr unsigned char kPoison = 0xff;
  // Where shared memory begins in its own 32-bit addresses: CUDA keeps the first 1024 bytes.
  static constexpr uint32_t kFirstAddress = 1024;

  explicit SharedMemory(int64_t bytes);

  char* begin() const { return begin_; }
  int64_t bytes() const { return bytes_; }
  void poison();
  bool holds(const void* address, int64_t bytes) const {
    const auto at = reinterpret_cast<uintptr_t>(address), first = reinterpret_cast<uintptr_t>(begin_);
    return at >= first && at - first + static_cast<uintptr_t>(bytes) <= static_cast<uintptr_t>(bytes_);
  }
  uint32_t address_of(const void* pointer) const {
    return static_cast<uint32_t>(static_cast<const char*>(pointer) - begin_) + kFirstAddress;
  }
  char* pointer_to(uint32_t address) const { return begin_ + (static_cast<int64_t>(address) - kFirstAddress); }
  // Whether nothing was written just before or after it.
  bool intact() const;

 private:
  static constexpr int64_t kGuardBytes = 4096;

  std::vector<unsigned char> memory_;
  char* begin_;
  int64_t bytes_;
};

}  // namespace emulator
}  // namespace resflow::cuda
