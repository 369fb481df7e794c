#include <algorithm>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/isa.h"

int main() {
  using namespace resflow;
  const std::vector<std::string> supported = cpu::supported_isas();
  const char* const forced = std::getenv("RESFLOW_ISA");
  if (forced && std::find(supported.begin(), supported.end(), forced) == supported.end()) {
    std::printf("skipped: this machine has no %s\n", forced);
    return 77;
  }
  std::printf("kernels: %s\n", cpu::kernels().name);
  int failed_tests = 0;
  for (const testing::Test& test : testing::tests()) {
    const int before = testing::failures;
    try {
      test.run();
    } catch (const std::exception& error) {
      std::printf("%s threw: %s\n", test.name, error.what());
      ++testing::failures;
    }
    if (testing::failures > before) ++failed_tests;
    std::printf("%s %s\n", testing::failures > before ? "FAILED" : "passed", test.name);
  }
  std::printf("%zu passed, %d failed\n", testing::tests().size() - failed_tests, failed_tests);
  return failed_tests ? 1 : 0;
}
