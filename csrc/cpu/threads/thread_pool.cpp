#include "cpu/threads/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace resflow::cpu {
namespace {

constexpr int64_t kMaxWorkers = 255;

// Polls before sleeping: about 20 us, so that back-to-back calls find the workers awake and workers do not occupy a
// core during a pause.
constexpr int kPolls = 400;
constexpr int kSummonedPolls = 2000;

// Small batches that follow each other within this time are a stream, worth keeping a worker awake for.
constexpr int64_t kCloseMicroseconds = 100;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Job {
  int64_t count;
  void (*work)(void*, int64_t);
  void* context;
  int64_t seats;  // helpers that may still join; guarded by the pool's mutex
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> done{0};

  // Takes tiles until none is left to start. A helper that is too late accesses neither work nor context.
  void help() {
    int64_t finished = 0;
    for (int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < count; ++finished) {
      work(context, index);
    }
    if (finished && done.fetch_add(finished, std::memory_order_acq_rel) + finished == count) done.notify_all();
  }

  void wait() {
    for (int poll = 0; poll < kPolls && done.load(std::memory_order_acquire) < count; ++poll) relax();
    for (int64_t seen; (seen = done.load(std::memory_order_acquire)) < count;) done.wait(seen);
  }
};

// With more workers than this there is always an idle core, and moving them all would cost more than it gains.
constexpr int64_t kMaxSteeredWorkers = 8;

// Keeps woken workers off the caller's core.
//
// After a pause of some milliseconds Linux tends to wake a worker on the very core that wakes it (28 of 40 times on a
// 2-core 6.18 guest), where it competes with the caller: the caller was descheduled for 2 ms, and the call ran at the
// speed of one thread. A worker may therefore run on every core that its caller may use, except the one that the caller
// runs on. The main thread's cores are no substitute (a server may have pinned it elsewhere), nor are those that the
// caller had in an earlier call.
class Steering {
 public:
  void add(pid_t thread) {
    workers_.push_back(thread);
    known_ = false;
  }

  // The caller itself calls this. If it has a single core, the workers stay where they are.
  void avoid_caller() {
    const int core = sched_getcpu();
    const Clock::time_point now = Clock::now();
    if (core < 0 || core >= CPU_SETSIZE || static_cast<int64_t>(workers_.size()) > kMaxSteeredWorkers) return;
    if (known_ && core == core_ && now - read_ < kSameCores) return;
    core_ = core;
    read_ = now;
    cpu_set_t others;
    if (sched_getaffinity(0, sizeof(others), &others) != 0) return;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others) == 0 || (known_ && CPU_EQUAL(&others, &others_))) return;
    for (const pid_t worker : workers_) sched_setaffinity(worker, sizeof(others), &others);
    others_ = others;
    known_ = true;
  }

 private:
  using Clock = std::chrono::steady_clock;
  // Callers on the same core within this time are assumed to have the same cores: reading them takes 0.3 us, a call of
  // several threads about 20.
  static constexpr std::chrono::milliseconds kSameCores{1};

  std::vector<pid_t> workers_;
  bool known_ = false;  // whether all workers have been told `others_`
  cpu_set_t others_;
  int core_ = -1;  // of the last caller whose cores were read
  Clock::time_point read_;
};

class ThreadPool {
 public:
  void run(const std::shared_ptr<Job>& job) {
    {
      std::lock_guard lock(mutex_);
      start_workers(job->seats);
      steering_.avoid_caller();
      jobs_.push_back(job);
      posted_.fetch_add(1, std::memory_order_release);
    }
    for (int64_t seat = job->seats; seat > 0; --seat) wake_.notify_one();
    job->help();
    {
      std::lock_guard lock(mutex_);
      const auto at = std::find(jobs_.begin(), jobs_.end(), job);
      if (at != jobs_.end()) jobs_.erase(at);
    }
    job->wait();
  }

  // See awake_workers.
  int64_t awake(int64_t wanted) {
    const int64_t now = std::chrono::steady_clock::now().time_since_epoch() / std::chrono::microseconds(1);
    const bool close = now - last_asked_.exchange(now, std::memory_order_relaxed) < kCloseMicroseconds;
    const int64_t awake = awake_.load(std::memory_order_relaxed);
    if (awake < wanted && close) summon(wanted - awake);
    return std::min(awake, wanted);
  }

 private:
  void summon(int64_t workers) {
    std::lock_guard lock(mutex_);
    start_workers(workers);
    steering_.avoid_caller();
    summoned_ = workers;
    for (; workers > 0; --workers) wake_.notify_one();
  }

  void start_workers(int64_t wanted) {
    for (; workers_ < std::min(wanted, kMaxWorkers); ++workers_) std::thread([this] { serve(); }).detach();
  }

  [[noreturn]] void serve() {
    {
      std::lock_guard lock(mutex_);
      steering_.add(gettid());
    }
    int polls = kPolls;
    for (;;) {
      const int64_t seen = posted_.load(std::memory_order_acquire);
      if (const std::shared_ptr<Job> job = take_seat()) {
        job->help();
        polls = kPolls;
        continue;
      }
      awake_.fetch_add(1, std::memory_order_relaxed);
      for (int poll = 0; poll < polls && posted_.load(std::memory_order_acquire) == seen; ++poll) relax();
      awake_.fetch_sub(1, std::memory_order_relaxed);
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return !jobs_.empty() || summoned_ > 0; });
      // A summoned worker waits longer: its work comes with a later call, not at once.
      polls = summoned_ > 0 ? kSummonedPolls : kPolls;
      if (summoned_ > 0) --summoned_;
    }
  }

  std::shared_ptr<Job> take_seat() {
    std::lock_guard lock(mutex_);
    if (jobs_.empty()) return nullptr;
    const std::shared_ptr<Job> job = jobs_.front();
    if (--job->seats == 0) jobs_.pop_front();
    return job;
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Job>> jobs_;
  std::atomic<int64_t> posted_{0};
  std::atomic<int64_t> awake_{0};
  std::atomic<int64_t> last_asked_{0};  // microseconds
  int64_t summoned_ = 0;                // number of workers to wake without a job; guarded by the mutex
  int64_t workers_ = 0;
  Steering steering_;
};

// Never destroyed: workers may outlive main. A forked child has none of its parent's workers, and possibly a locked
// mutex, so it starts with a new pool.
std::atomic<ThreadPool*> shared_pool{nullptr};

ThreadPool& pool() {
  static const bool created = [] {
    shared_pool = new ThreadPool;
    pthread_atfork(nullptr, nullptr, [] { shared_pool = new ThreadPool; });
    return true;
  }();
  (void)created;
  return *shared_pool.load(std::memory_order_acquire);
}

}  // namespace

void parallel_for(int64_t count, int64_t threads, void (*work)(void*, int64_t), void* context) {
  const int64_t helpers = std::min(threads, count) - 1;
  if (helpers <= 0) {
    for (int64_t index = 0; index < count; ++index) work(context, index);
    return;
  }
  const auto job = std::make_shared<Job>();
  job->count = count;
  job->work = work;
  job->context = context;
  job->seats = helpers;
  pool().run(job);
}

int64_t awake_workers(int64_t wanted) { return pool().awake(wanted); }

int64_t usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(CPU_COUNT(&set), 1);
  return std::max<int64_t>(std::thread::hardware_concurrency(), 1);
}

}  // namespace resflow::cpu
