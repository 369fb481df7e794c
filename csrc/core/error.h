// Bad input: one exception and one message format, with texts from contract/errors.def.
#pragma once

#include <stdexcept>
#include <string>

namespace resflow {

// Thrown for every input that an op does not accept: a ValueError in Python, under torch and NumPy alike.
struct InvalidInput : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

namespace expected {
#define RESFLOW_EXPECT(name, text) constexpr const char* name = text;
#include "contract/errors.def"
#undef RESFLOW_EXPECT
}  // namespace expected

// Throws "<op>: <argument> must be <what>, got <got>"; {0} and {1} in `what` are replaced.
[[noreturn]] void fail(const char* op, const std::string& argument, const char* what, const std::string& got,
                       const std::string& detail0 = "", const std::string& detail1 = "");

}  // namespace resflow
