// A block of threads: who runs, who waits for whom. Threads are fibers of the CPU thread that launches; one runs until
// it has to wait, and now and then hands over at random.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "emulator/fiber.h"
#include "emulator/memory.h"
#include "emulator/random.h"

namespace resflow::cuda::emulator {

using Site = std::source_location;  // of an operation in the kernel's source

constexpr int kBarriers = 16, kMostCluster = 2;
constexpr int kWarp = 32, kWarpgroup = 128, kMostThreads = 1024, kMostWarps = kMostThreads / kWarp;

// A kernel and what it is launched with.
struct Grid {
  const char* name;
  int threads;
  int64_t blocks, shared_bytes;
  const void* params;
  int64_t params_bytes;
  void (*run)(const void* params, char* shared);
  int cluster = 1;     // blocks of a cluster
  int capability = 0;  // of the device

  int64_t shared_stride() const { return (shared_bytes + 1023) / 1024 * 1024; }
};

struct AsyncCopy {
  void* to;
  const void* from;
  int bytes;
};

struct Thread {
  Fiber fiber;
  int index;
  // What it waits for, where, since it stopped.
  const char* waits_for;
  Site site;
  // Copies whose groups it has not waited for yet, oldest first; where each committed group ends.
  std::vector<AsyncCopy> copies;
  std::vector<size_t> group_ends;
};

// Threads that must come together: a warp, or a warpgroup.
struct Group {
  int first, size;
  int arrived = 0, exited = 0;
  const char* what = nullptr;
  Site site;
  std::array<void*, kWarpgroup> arguments;
};

struct NamedBarrier {
  int expected = 0, arrived = 0;
  std::array<uint8_t, kMostWarps> warp_arrived{};
  std::array<Site, kMostWarps> warp_site;
  std::array<uint16_t, kMostThreads> threads;
};

// What a thread waits for that only another block can bring.
inline constexpr const char* kOtherBlocks = "another block";

// What of the emulated hardware goes on by itself while threads run (the copy engine).
class Background {
 public:
  virtual ~Background() = default;
  // Does one thing that was left to do, if there is any.
  virtual bool step(Random& random) = 0;
};

// A block, or the blocks of a cluster, whose threads run side by side: those of its first block, then of the next.
class Block {
 public:
  Block(const Grid& grid, SharedMemory& shared, Stacks& stacks, uint64_t seed);

  // Block `index`, the first of its cluster.
  void run(int64_t index);

  const Grid& grid() const { return grid_; }
  // Of the running thread: its block's place in the cluster, its block, its place in the block.
  int rank() const { return running_->index / grid_.threads; }
  int64_t index() const { return index_ + rank(); }
  int thread_index() const { return running_->index % grid_.threads; }
  // Shared memory of a block of the cluster, and an address in it as the running thread's block knows it.
  char* shared(int rank) const { return shared_.begin() + rank * grid_.shared_stride(); }
  uint32_t shared_address(const void* pointer) const { return shared_.address_of(pointer) - shared_offset(); }
  char* shared_pointer(uint32_t address) const { return shared_.pointer_to(address + shared_offset()); }
  Thread& thread() { return *running_; }
  Group& warp() { return warps_[running_->index / kWarp]; }
  Group& warpgroup(const Site& site);
  Random& random() { return random_; }
  // None until a thread sets it.
  Background* background() { return background_.get(); }
  void set_background(std::unique_ptr<Background> background) { background_ = std::move(background); }

  // The last of the group's threads to come runs complete(arguments of all, by thread), then all go on.
  void meet(Group& group, const char* what, const Site& site, void* argument, void (*complete)(void* const* arguments));
  void sync_block(const Site& site);
  void sync_some(int barrier, int threads, const Site& site);
  void sync_cluster(const Site& site);
  // Returns once ready(argument), which others change.
  void wait_until(bool (*ready)(const void* argument), const void* argument, const char* what, const Site& site);
  // Whether all threads of a block of the cluster have: its shared memory is gone.
  bool has_returned(int rank) const { return exited_of_[rank] == grid_.threads; }
  // Lets others run, one time in `n`.
  void maybe_yield(uint32_t n);

  // Errors of the running thread: the kernel, the block and the thread are put before the text.
  [[noreturn]] void fail(const std::string& text, const Site& site);
  [[noreturn]] void fail(const std::string& text);
  // Shared memory the running thread is about to use.
  void require_shared(const void* address, int64_t bytes, int64_t alignment, const char* what, const Site& site);
  void require_global(const void* address, int64_t bytes, int64_t alignment, bool write, const char* what,
                      const Site& site);

 private:
  struct Waiter {
    bool (*ready)(const void*);
    const void* argument;
    int thread;
  };
  struct ReadyLanes {
    int count = 0;
    std::array<uint8_t, kWarp> lanes;
  };

  uint32_t shared_offset() const { return static_cast<uint32_t>(rank() * grid_.shared_stride()); }
  int all_threads() const { return grid_.threads * grid_.cluster; }
  static void enter();
  void leave();
  void sync(int barrier, int threads, const Site& site);
  void suspend(const char* waits_for, const Site& site);
  void make_ready(int thread);
  Thread& choose();
  bool wake_waiters();
  [[noreturn]] void fail_stuck();

  const Grid& grid_;
  SharedMemory& shared_;
  Stacks& stacks_;
  Random random_;
  std::unique_ptr<Background> background_;
  int64_t index_ = 0;
  Fiber outside_;
  std::exception_ptr error_;
  std::vector<Thread> threads_;
  std::vector<Group> warps_, warpgroups_;
  std::array<NamedBarrier, kBarriers * kMostCluster + 1> barriers_;  // of each block, and of the cluster
  std::vector<Waiter> waiters_;
  std::array<ReadyLanes, kMostWarps> ready_;
  uint32_t ready_warps_ = 0;
  // A warp keeps running while it can, but for one time in this many.
  uint32_t stay_in_warp_ = 1;
  // One time in this many that a thread stops, the background does something; also when no thread can go on.
  uint32_t background_lag_ = 1;
  int warp_ = 0;
  Thread* running_ = nullptr;
  int exited_ = 0;
  std::array<int, kMostCluster> exited_of_{};
};

// The block whose thread is running; what called this must be a kernel.
Block& block();

std::string text_of(const Site& site);

}  // namespace resflow::cuda::emulator
