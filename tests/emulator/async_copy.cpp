#include "emulator/async_copy.h"

#include <cstring>

namespace resflow::cuda::emulator {

void copy_async_16(void* shared, const void* from, int bytes, const Site& site) {
  Block& self = block();
  if (bytes < 0 || bytes > 16) self.fail("copy_async_16 of " + std::to_string(bytes) + " bytes", site);
  self.require_shared(shared, 16, 16, "copy_async_16", site);
  if (bytes > 0) self.require_global(from, bytes, 16, false, "copy_async_16", site);
  std::memset(shared, SharedMemory::kPoison, 16);
  self.thread().copies.push_back({shared, from, bytes});
  self.maybe_yield(16);
}

void copy_async_commit() {
  Thread& thread = block().thread();
  thread.group_ends.push_back(thread.copies.size());
}

void copy_async_wait(int left) {
  Thread& thread = block().thread();
  const auto groups = static_cast<int>(thread.group_ends.size()) - left;
  if (groups <= 0) return;
  const size_t count = thread.group_ends[groups - 1];
  for (size_t i = 0; i < count; ++i) {
    const AsyncCopy& copy = thread.copies[i];
    std::memset(copy.to, 0, 16);
    if (copy.bytes > 0) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<ptrdiff_t>(count));
  thread.group_ends.erase(thread.group_ends.begin(), thread.group_ends.begin() + groups);
  for (size_t& end : thread.group_ends) end -= count;
}

}  // namespace resflow::cuda::emulator
