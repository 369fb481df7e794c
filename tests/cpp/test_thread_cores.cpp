// Where helpers run and when they are awake, in child processes, which have a pool of their own.
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/threads/thread_pool.h"

using namespace resflow;

namespace {

using Cores = std::vector<int>;

Cores cores_of(pid_t thread) {
  cpu_set_t set;
  Cores cores;
  if (sched_getaffinity(thread, sizeof(set), &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

void restrict_to(pid_t thread, const Cores& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int core : cores) CPU_SET(core, &set);
  sched_setaffinity(thread, sizeof(set), &set);
}

// Moves this thread to a core, and leaves it there with all of `cores` allowed.
void stand_on(int core, const Cores& cores) {
  restrict_to(0, {core});
  while (sched_getcpu() != core) sched_yield();
  restrict_to(0, cores);
}

// Whether the helper of calls on `core` comes to run on the cores that are expected. A new worker has been told nothing
// yet, and a caller may be moved to another core before it calls: hence more than one call.
bool helper_is_on(const Cores& expected, int core, const Cores& cores) {
  struct Meeting {
    std::thread::id caller = std::this_thread::get_id();
    std::atomic<int> arrived{0};
    Cores helper;
  } meeting;
  // The call's two indices wait for each other, so it has a helper.
  const auto meet = [](void* context, int64_t) {
    auto& own = *static_cast<Meeting*>(context);
    if (std::this_thread::get_id() != own.caller) own.helper = cores_of(0);
    ++own.arrived;
    while (own.arrived < 2) sched_yield();
  };
  for (int call = 0; call < 50 && (call < 2 || meeting.helper != expected); ++call) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    stand_on(core, cores);
    meeting.arrived = 0;
    cpu::parallel_for(2, 2, meet, &meeting);
  }
  return meeting.helper == expected;
}

// A child process has a pool of its own, without workers. True where `check` is.
template <class Check>
bool in_child(Check check) {
  const pid_t child = fork();
  if (child == 0) _exit(check() ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// Asks for a worker every `pause` until as many are awake as expected; false after some seconds.
bool becomes_awake(int64_t expected, std::chrono::microseconds pause) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::chrono::steady_clock::now() < end) {
    if (cpu::awake_workers(1) == expected) return true;
    std::this_thread::sleep_for(pause);
  }
  return false;
}

}  // namespace

TEST(helpers_stay_off_the_callers_core_wherever_the_main_thread_is) {
  const Cores all = cores_of(0);
  if (all.size() < 2) return;
  CHECK(in_child([&] {
    const int here = all[0];
    const Cores others(all.begin() + 1, all.end());
    restrict_to(getpid(), {here});
    bool right = false;
    std::thread([&] {
      restrict_to(0, all);
      right = helper_is_on(others, here, all);
    }).join();
    return right;
  }));
}

TEST(helpers_follow_when_the_callers_cores_change) {
  const Cores all = cores_of(0);
  if (all.size() < 2) return;
  const Cores two{all[0], all[1]};
  CHECK(in_child([&] {
    restrict_to(0, {two[0]});
    const bool alone = helper_is_on({two[0]}, two[0], {two[0]});
    const bool off_first = helper_is_on({two[1]}, two[0], two);
    return alone && off_first && helper_is_on({two[0]}, two[1], two);
  }));
}

TEST(workers_are_awake_while_calls_are_close_and_asleep_after_a_pause) {
  CHECK(in_child([] {
    const bool none = cpu::awake_workers(1) == 0;
    const bool woken = becomes_awake(1, std::chrono::microseconds(0));
    return none && woken && becomes_awake(0, std::chrono::milliseconds(2));
  }));
}
