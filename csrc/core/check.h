// Argument checks. A failed one throws mrisr::BadArgument; doorways translate it (Python: ValueError).
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace mrisr {

struct BadArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// A device call failed: not the caller's argument but the machine.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace mrisr

// MRISR_CHECK(n > 0, "noise: size must be positive; it is " << n);
#define MRISR_CHECK(condition, message)        \
  do {                                         \
    if (!(condition)) {                        \
      std::ostringstream text_;                \
      text_ << message;                        \
      throw ::mrisr::BadArgument(text_.str()); \
    }                                          \
  } while (false)
