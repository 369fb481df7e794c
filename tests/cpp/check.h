// The smallest test harness that serves: CHECK counts, TEST registers itself.
#pragma once

#include <cstdio>
#include <exception>
#include <vector>

namespace resflow::testing {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int failures = 0;

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

// A process's exit status.
inline int run_tests() {
  int failed_tests = 0;
  for (const Test& test : tests()) {
    const int before = failures;
    try {
      test.run();
    } catch (const std::exception& error) {
      std::printf("%s threw: %s\n", test.name, error.what());
      ++failures;
    }
    if (failures > before) ++failed_tests;
    std::printf("%s %s\n", failures > before ? "FAILED" : "passed", test.name);
  }
  std::printf("%zu passed, %d failed\n", tests().size() - failed_tests, failed_tests);
  return failed_tests ? 1 : 0;
}

}  // namespace resflow::testing

#define TEST(name)                                                      \
  static void name();                                                   \
  static const resflow::testing::Register register_##name(#name, name); \
  static void name()

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::printf("%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
      ++resflow::testing::failures;                                             \
    }                                                                           \
  } while (false)
