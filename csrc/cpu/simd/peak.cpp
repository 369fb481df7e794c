// Measures the arithmetic peak that benchmarks are compared with.
#include <chrono>
#include <thread>
#include <vector>

#include "cpu/simd/isa.h"
#include "cpu/towers/towers.h"

namespace resflow::cpu {

double measure_peak(Precision precision, int64_t threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  const Kernels& kernels = cpu::kernels();
  std::vector<double> rates(threads);
  std::vector<std::thread> workers;
  for (int64_t t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      alignas(64) float sink[kLane] = {1.0f, 0.0f};
      const auto begin = Clock::now();
      double operations = 0, elapsed = 0;
      for (; elapsed < seconds; elapsed = std::chrono::duration<double>(Clock::now() - begin).count()) {
        operations += kernels.peak_operations(precision, 100000, sink);
      }
      rates[t] = operations / elapsed * 1e-9;
    });
  }
  for (std::thread& worker : workers) worker.join();
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}

}  // namespace resflow::cpu
