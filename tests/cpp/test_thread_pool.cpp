#include <atomic>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/threads/thread_pool.h"

using namespace resflow;

namespace {

struct Visits {
  std::vector<std::atomic<int>> counts;
  explicit Visits(int64_t n) : counts(n) {}
  static void visit(void* context, int64_t index) { ++static_cast<Visits*>(context)->counts[index]; }
  bool all_once() const {
    for (const auto& count : counts) {
      if (count != 1) return false;
    }
    return true;
  }
};

}  // namespace

TEST(every_index_is_visited_once_by_any_number_of_callers) {
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 8; ++caller) {
    callers.emplace_back([&, caller] {
      for (int turn = 0; turn < 200; ++turn) {
        Visits visits((caller * 7 + turn) % 40);
        cpu::parallel_for(static_cast<int64_t>(visits.counts.size()), 1 + turn % 5, Visits::visit, &visits);
        if (!visits.all_once()) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
}

TEST(no_index_and_many_threads_are_fine) {
  Visits none(0), few(3);
  cpu::parallel_for(0, 4, Visits::visit, &none);
  cpu::parallel_for(3, 100, Visits::visit, &few);
  CHECK(few.all_once());
}
