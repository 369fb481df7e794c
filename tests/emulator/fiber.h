// Stacks that one CPU thread runs in turn.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace resflow::cuda::emulator {

struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
};

// `fiber` is to begin with enter(), which must not return, on the stack that ends at `top` (aligned to 16).
void prepare(Fiber& fiber, char* bottom, char* top, void (*enter)());
// Goes on where `to` left off; returns when something goes back to `from`.
void go(Fiber& from, Fiber& to);

// Stacks of as many fibers as were ever asked for; each ends in a page that must not be touched.
class Stacks {
 public:
  static constexpr size_t kBytes = 64 * 1024;

  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks();

  void reserve(int count);
  char* bottom(int index) const { return memory_ + index * kBytes; }
  // Same places of different stacks must not all fall into the same few sets of the CPU's cache: they are moved
  // against each other by two cache lines.
  char* top(int index) const { return memory_ + (index + 1) * kBytes - index % 32 * 128; }

 private:
  char* memory_ = nullptr;
  int count_ = 0;
};

}  // namespace resflow::cuda::emulator
