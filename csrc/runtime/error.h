// One exception type inside the runtime; api.cpp turns it into a status and a text.
#pragma once

#include <exception>
#include <sstream>
#include <string>

#include "mrisr.h"

namespace mrisr::runtime {

class Error : public std::exception {
 public:
  Error(mrisr_status status, std::string text) : status_(status), text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }
  mrisr_status status() const noexcept { return status_; }

 private:
  mrisr_status status_;
  std::string text_;
};

// Another library's text for one of ours: it may be long, and quote a damaged file.
inline std::string plain_text(std::string text) {
  if (text.size() > 600) text.resize(600);
  for (char& c : text)
    if (static_cast<unsigned char>(c) - 0x20u > 0x5eu) c = c == '\n' ? ' ' : '?';
  return text;
}

}  // namespace mrisr::runtime

// MRISR_FAIL(MRISR_ERROR_ARGUMENT, "steps: expected at least 1, found " << steps);
#define MRISR_FAIL(status, message)                     \
  do {                                                  \
    std::ostringstream text_;                           \
    text_ << message;                                   \
    throw ::mrisr::runtime::Error(status, text_.str()); \
  } while (false)
