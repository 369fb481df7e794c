#include "emulator/memory.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace resflow::cuda {

namespace {

struct Range {
  uintptr_t begin, end;
  bool writable;
  const Buffers* owner;
};

thread_local std::vector<Range> ranges;
// Where the last access was: the next one is likely to be there too.
thread_local size_t last_range = 0;

bool covers(const Range& range, uintptr_t at, int64_t bytes, bool write) {
  return at >= range.begin && at + static_cast<uintptr_t>(bytes) <= range.end && (range.writable || !write);
}

std::string describe_nearest(uintptr_t at) {
  const Range* nearest = nullptr;
  uintptr_t least = 0;
  for (const Range& range : ranges) {
    const uintptr_t away = at < range.begin ? range.begin - at : at >= range.end ? at - range.end : 0;
    if (!nearest || away < least) nearest = &range, least = away;
  }
  if (!nearest) return "; no buffer is registered";
  char text[160];
  std::snprintf(text, sizeof(text), "; the nearest buffer is a %s one of %lld bytes, and this is at byte %lld of it",
                nearest->writable ? "writable" : "read-only", static_cast<long long>(nearest->end - nearest->begin),
                static_cast<long long>(at - nearest->begin));
  return text;
}

}  // namespace

Buffers::~Buffers() {
  std::erase_if(ranges, [this](const Range& range) { return range.owner == this; });
  last_range = 0;
}

void Buffers::allow(const void* begin, int64_t bytes, bool writable) {
  if (bytes <= 0) return;
  const auto first = reinterpret_cast<uintptr_t>(begin);
  ranges.push_back({first, first + static_cast<uintptr_t>(bytes), writable, this});
}

namespace emulator {

std::string wrong_with(const void* address, int64_t bytes, int64_t alignment, bool write) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  char text[120];
  if (at % static_cast<uintptr_t>(alignment)) {
    std::snprintf(text, sizeof(text), "%p is not aligned to %lld bytes", address, static_cast<long long>(alignment));
    return text;
  }
  if (last_range < ranges.size() && covers(ranges[last_range], at, bytes, write)) return {};
  for (size_t i = 0; i < ranges.size(); ++i) {
    if (covers(ranges[i], at, bytes, write)) {
      last_range = i;
      return {};
    }
  }
  std::snprintf(text, sizeof(text), "%s %lld bytes at %p, which no %sbuffer holds", write ? "writes" : "reads",
                static_cast<long long>(bytes), address, write ? "writable " : "");
  return text + describe_nearest(at);
}

SharedMemory::SharedMemory(int64_t bytes)
    : memory_(static_cast<size_t>(bytes + 2 * kGuardBytes + 1024), kPoison), bytes_(bytes) {
  const auto first = reinterpret_cast<uintptr_t>(memory_.data()) + kGuardBytes;
  begin_ = reinterpret_cast<char*>((first + 1023) / 1024 * 1024);
}

void SharedMemory::poison() { std::memset(memory_.data(), kPoison, memory_.size()); }

bool SharedMemory::intact() const {
  const auto poisoned = [](const char* from, const char* to) {
    return std::all_of(from, to, [](char byte) { return static_cast<unsigned char>(byte) == kPoison; });
  };
  return poisoned(begin_ - kGuardBytes, begin_) && poisoned(begin_ + bytes_, begin_ + bytes_ + kGuardBytes);
}

}  // namespace emulator
}  // namespace resflow::cuda
