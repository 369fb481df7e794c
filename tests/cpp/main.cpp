#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/simd/isa.h"

int main() {
  using namespace resflow;
  const std::vector<std::string> supported = cpu::supported_isas();
  const char* const forced = std::getenv("RESFLOW_ISA");
  if (forced && std::find(supported.begin(), supported.end(), forced) == supported.end()) {
    std::printf("skipped: this machine has no %s\n", forced);
    return 77;
  }
  std::printf("kernels: %s\n", cpu::kernels().name);
  return testing::run_tests();
}
