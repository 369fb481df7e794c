#include "emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

namespace resflow::cuda::emulator {

#if defined(__x86_64__)

// Saves what the System V ABI has a function keep, and swaps the stacks.
asm(R"(
.text
.hidden resflow_switch_stack
.globl resflow_switch_stack
.type resflow_switch_stack, @function
resflow_switch_stack:
  endbr64
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size resflow_switch_stack, .-resflow_switch_stack
)");
extern "C" void resflow_switch_stack(void** save, void* load) __attribute__((visibility("hidden")));

void prepare(Fiber& fiber, char*, char* top, void (*enter)()) {
  // From the top: a return address for enter() (none), enter() for the `ret` above, six registers.
  auto* const words = reinterpret_cast<uint64_t*>(top);
  for (int i = 1; i <= 8; ++i) words[-i] = 0;
  words[-2] = reinterpret_cast<uint64_t>(enter);
  fiber.stack_pointer = words - 8;
}

void go(Fiber& from, Fiber& to) { resflow_switch_stack(&from.stack_pointer, to.stack_pointer); }

#else

void prepare(Fiber& fiber, char* bottom, char* top, void (*enter)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = bottom;
  fiber.context.uc_stack.ss_size = static_cast<size_t>(top - bottom);
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

void go(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

Stacks::~Stacks() {
  if (memory_) munmap(memory_, static_cast<size_t>(count_) * kBytes);
}

void Stacks::reserve(int count) {
  if (count <= count_) return;
  if (memory_) munmap(memory_, static_cast<size_t>(count_) * kBytes);
  memory_ = nullptr;
  count_ = 0;
  void* const memory =
      mmap(nullptr, static_cast<size_t>(count) * kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  count_ = count;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (int i = 0; i < count; ++i) {
    if (mprotect(bottom(i), page, PROT_NONE)) throw std::bad_alloc();
  }
}

}  // namespace resflow::cuda::emulator
