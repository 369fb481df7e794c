#include "emulator/block.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <stdexcept>

namespace resflow::cuda::emulator {

namespace {

thread_local Block* current_block = nullptr;

constexpr const char* kBarrierNames[16] = {"sync_block",    "sync_some(1)",  "sync_some(2)",  "sync_some(3)",
                                           "sync_some(4)",  "sync_some(5)",  "sync_some(6)",  "sync_some(7)",
                                           "sync_some(8)",  "sync_some(9)",  "sync_some(10)", "sync_some(11)",
                                           "sync_some(12)", "sync_some(13)", "sync_some(14)", "sync_some(15)"};

bool same(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && !std::strcmp(a.file_name(), b.file_name());
}

}  // namespace

Block& block() {
  if (!current_block) throw std::logic_error("resflow: an operation of a GPU thread outside of a kernel");
  return *current_block;
}

std::string text_of(const Site& site) {
  const char* const slash = std::strrchr(site.file_name(), '/');
  return std::string(slash ? slash + 1 : site.file_name()) + ":" + std::to_string(site.line());
}

Block::Block(const Grid& grid, SharedMemory& shared, Stacks& stacks, uint64_t seed)
    : grid_(grid), shared_(shared), stacks_(stacks), random_(seed), threads_(static_cast<size_t>(all_threads())) {}

void Block::run(int64_t index) {
  index_ = index;
  exited_ = 0;
  exited_of_.fill(0);
  error_ = nullptr;
  ready_warps_ = 0;
  ready_.fill({});
  waiters_.clear();
  background_.reset();
  barriers_.fill({});
  warps_.clear();
  warpgroups_.clear();
  for (int i = 0; i < all_threads(); i += kWarp) warps_.push_back({i, kWarp, 0, 0, nullptr, {}, {}});
  for (int i = 0; i + kWarpgroup <= all_threads(); i += kWarpgroup) {
    warpgroups_.push_back({i, kWarpgroup, 0, 0, nullptr, {}, {}});
  }
  // Some mistakes show when one warp is far ahead of another or copies are late, others when all are close: each block
  // has one kind of schedule.
  constexpr uint32_t kStay[] = {8, 256, 0xffffffffu};
  stay_in_warp_ = kStay[random_.below(3)];
  background_lag_ = kStay[random_.below(3)];
  shared_.poison();
  for (int i = 0; i < all_threads(); ++i) {
    Thread& thread = threads_[i];
    thread.index = i;
    thread.copies.clear();
    thread.group_ends.clear();
    prepare(thread.fiber, stacks_.bottom(i), stacks_.top(i), &Block::enter);
    make_ready(i);
  }
  current_block = this;
  running_ = &choose();
  go(outside_, running_->fiber);
  current_block = nullptr;
  if (error_) std::rethrow_exception(error_);
  if (!shared_.intact()) {
    throw std::runtime_error(std::string(grid_.name) + ", block " + std::to_string(index_) +
                             ": writes shared memory outside of the " + std::to_string(grid_.shared_bytes) +
                             " bytes it was launched with");
  }
}

// A fiber's first function: nothing may be thrown out of it, and there is nothing to return to.
void Block::enter() {
  Block& self = *current_block;
  Thread& thread = *self.running_;
  Fiber* next = &self.outside_;
  try {
    self.grid_.run(self.grid_.params, self.shared(self.rank()));
    self.leave();
    if (self.exited_ < self.all_threads()) {
      self.running_ = &self.choose();
      next = &self.running_->fiber;
    }
  } catch (...) {
    self.error_ = std::current_exception();
    next = &self.outside_;
  }
  go(thread.fiber, *next);
  std::terminate();
}

void Block::leave() {
  const int at = running_->index;
  ++exited_;
  ++exited_of_[rank()];
  const auto leave_group = [&](Group& group) {
    ++group.exited;
    if (group.arrived) fail(std::string("returns while others of its group wait at ") + group.what, group.site);
  };
  leave_group(warps_[at / kWarp]);
  if (at / kWarpgroup < static_cast<int>(warpgroups_.size())) leave_group(warpgroups_[at / kWarpgroup]);
  if (barriers_[rank() * kBarriers].arrived) fail("returns while others of its block wait at sync_block");
}

void Block::make_ready(int thread) {
  const int warp = thread / kWarp;
  ReadyLanes& ready = ready_[warp];
  ready.lanes[ready.count++] = static_cast<uint8_t>(thread % kWarp);
  ready_warps_ |= uint32_t(1) << warp;
}

Thread& Block::choose() {
  if (background_ && random_.one_in(background_lag_)) background_->step(random_);
  while (!ready_warps_) {
    if (!wake_waiters() && !(background_ && background_->step(random_))) fail_stuck();
  }
  if (!(ready_warps_ >> warp_ & 1) || random_.one_in(stay_in_warp_)) {
    uint32_t left = ready_warps_;
    for (uint32_t skip = random_.below(std::popcount(left)); skip; --skip) left &= left - 1;
    warp_ = std::countr_zero(left);
    wake_waiters();
  }
  ReadyLanes& ready = ready_[warp_];
  const uint32_t at = random_.below(ready.count);
  const int lane = ready.lanes[at];
  ready.lanes[at] = ready.lanes[--ready.count];
  if (!ready.count) ready_warps_ &= ~(uint32_t(1) << warp_);
  return threads_[warp_ * kWarp + lane];
}

bool Block::wake_waiters() {
  bool woke = false;
  for (size_t i = 0; i < waiters_.size();) {
    if (waiters_[i].ready(waiters_[i].argument)) {
      make_ready(waiters_[i].thread);
      waiters_[i] = waiters_.back();
      waiters_.pop_back();
      woke = true;
    } else {
      ++i;
    }
  }
  return woke;
}

void Block::suspend(const char* waits_for, const Site& site) {
  Thread& self = *running_;
  self.waits_for = waits_for;
  self.site = site;
  Thread& next = choose();
  self.waits_for = &next == &self ? nullptr : waits_for;
  running_ = &next;
  if (&next != &self) go(self.fiber, next.fiber);
  self.waits_for = nullptr;
}

void Block::maybe_yield(uint32_t n) {
  if (!random_.one_in(n)) return;
  make_ready(running_->index);
  suspend("its turn", running_->site);
}

void Block::meet(Group& group, const char* what, const Site& site, void* argument,
                 void (*complete)(void* const* arguments)) {
  const int at = running_->index;
  if (group.exited) {
    fail(std::to_string(group.exited) + " of its group have returned when it comes to " + what, site);
  }
  if (!group.arrived) {
    group.what = what;
    group.site = site;
  } else if (group.what != what || !same(group.site, site)) {
    fail(std::string("comes to ") + what + " while " + std::to_string(group.arrived) + " of its group wait at " +
             group.what + " (" + text_of(group.site) + ")",
         site);
  }
  group.arguments[at - group.first] = argument;
  if (++group.arrived < group.size) return suspend(what, site);
  group.arrived = 0;
  complete(group.arguments.data());
  for (int i = group.first; i < group.first + group.size; ++i) {
    if (i != at) make_ready(i);
  }
  maybe_yield(4);
}

void Block::sync_block(const Site& site) {
  if (exited_) fail(std::to_string(exited_) + " of its block have returned when it comes to sync_block", site);
  sync(0, grid_.threads, site);
}

void Block::sync_some(int barrier, int threads, const Site& site) {
  if (barrier < 1 || barrier > 15 || threads <= 0 || threads % kWarp || threads > grid_.threads) {
    fail("sync_some(" + std::to_string(barrier) + ", " + std::to_string(threads) +
             "): barriers are 1 to 15, of whole warps of the block's " + std::to_string(grid_.threads) + " threads",
         site);
  }
  sync(barrier, threads, site);
}

void Block::sync_cluster(const Site& site) {
  if (exited_) fail(std::to_string(exited_) + " of its cluster have returned when it comes to sync_cluster", site);
  sync(kBarriers * kMostCluster, all_threads(), site);
}

void Block::sync(int at, int threads, const Site& site) {
  const bool of_cluster = at == kBarriers * kMostCluster;
  NamedBarrier& barrier = barriers_[of_cluster ? at : rank() * kBarriers + at];
  const char* const name = of_cluster ? "sync_cluster" : kBarrierNames[at];
  if (!barrier.arrived) barrier.expected = threads;
  if (barrier.expected != threads) {
    fail(std::string("comes to ") + name + " of " + std::to_string(threads) + " threads where others wait for " +
             std::to_string(barrier.expected),
         site);
  }
  const int warp = running_->index / kWarp;
  if (barrier.warp_arrived[warp]++ % kWarp == 0) {
    barrier.warp_site[warp] = site;
  } else if (!same(barrier.warp_site[warp], site)) {
    fail(std::string("comes to ") + name + ", others of its warp at another place, " + text_of(barrier.warp_site[warp]),
         site);
  }
  barrier.threads[barrier.arrived++] = static_cast<uint16_t>(running_->index);
  if (barrier.arrived < threads) return suspend(name, site);
  for (int i = 0; i < threads - 1; ++i) make_ready(barrier.threads[i]);
  barrier.arrived = 0;
  barrier.warp_arrived.fill(0);
  maybe_yield(2);
}

void Block::wait_until(bool (*ready)(const void*), const void* argument, const char* what, const Site& site) {
  maybe_yield(4);
  if (ready(argument)) return;
  waiters_.push_back({ready, argument, running_->index});
  suspend(what, site);
}

Group& Block::warpgroup(const Site& site) {
  const size_t at = running_->index / kWarpgroup;
  if (at >= warpgroups_.size()) fail("is not in a whole warpgroup of 128 threads", site);
  return warpgroups_[at];
}

void Block::fail(const std::string& text) {
  throw std::runtime_error(std::string(grid_.name) + ", block " + std::to_string(index()) + ", thread " +
                           std::to_string(thread_index()) + ": " + text);
}

void Block::fail(const std::string& text, const Site& site) { fail(text + " (" + text_of(site) + ")"); }

void Block::fail_stuck() {
  std::map<std::string, int> counts;
  for (const Thread& thread : threads_) {
    if (thread.waits_for == kOtherBlocks) fail("waits for a block that has not run", thread.site);
    if (thread.waits_for) ++counts[thread.waits_for + (" (" + text_of(thread.site) + ")")];
  }
  std::string where;
  for (const auto& [what, count] : counts)
    where += (where.empty() ? "" : ", ") + std::to_string(count) + " for " + what;
  throw std::runtime_error(std::string(grid_.name) + ", block " + std::to_string(index_) +
                           ": threads wait for each other: " + where + "; " + std::to_string(exited_) +
                           " have returned");
}

void Block::require_shared(const void* address, int64_t bytes, int64_t alignment, const char* what, const Site& site) {
  const auto offset = static_cast<const char*>(address) - shared(rank());
  if (offset < 0 || offset + bytes > grid_.shared_bytes) {
    fail(std::string(what) + ": " + std::to_string(bytes) + " bytes at byte " + std::to_string(offset) +
             " of the block's " + std::to_string(grid_.shared_bytes) + " bytes of shared memory",
         site);
  }
  if (offset % alignment) {
    fail(std::string(what) + ": byte " + std::to_string(offset) + " of shared memory is not aligned to " +
             std::to_string(alignment) + " bytes",
         site);
  }
}

void Block::require_global(const void* address, int64_t bytes, int64_t alignment, bool write, const char* what,
                           const Site& site) {
  const std::string wrong = wrong_with(address, bytes, alignment, write);
  if (!wrong.empty()) fail(std::string(what) + ": " + wrong, site);
}

}  // namespace resflow::cuda::emulator
