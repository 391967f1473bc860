// A handful of assertions: every failure is printed, and counted in the exit code.
#pragma once

#include <cstdio>
#include <string>

namespace check {

inline int failures = 0;

inline void fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  ++failures;
}

inline int result(const char* name) {
  std::printf("%s: %s\n", name, failures == 0 ? "passed" : "FAILED");
  return failures == 0 ? 0 : 1;
}

}  // namespace check

#define EXPECT(condition)                                                      \
  do {                                                                         \
    if (!(condition)) check::fail(__FILE__, __LINE__, "expected " #condition); \
  } while (false)

#define EXPECT_TEXT(text, part)                                                                    \
  do {                                                                                             \
    const std::string found_ = (text);                                                             \
    if (found_.find(part) == std::string::npos)                                                    \
      check::fail(__FILE__, __LINE__, "expected '" + std::string(part) + "' in '" + found_ + "'"); \
  } while (false)
