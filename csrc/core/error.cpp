#include "core/error.h"

namespace resflow {
namespace {

void replace(std::string& text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  if (at != std::string::npos) text.replace(at, from.size(), to);
}

}  // namespace

void fail(const char* op, const std::string& argument, const char* what, const std::string& got,
          const std::string& detail0, const std::string& detail1) {
  std::string text = what;
  replace(text, "{0}", detail0);
  replace(text, "{1}", detail1);
  throw InvalidInput(std::string(op) + ": " + argument + " must be " + text + ", got " + got);
}

}  // namespace resflow
