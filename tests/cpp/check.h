// The smallest test harness that serves: CHECK counts, TEST registers itself.
#pragma once

#include <cstdio>
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
