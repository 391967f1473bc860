#include "progress.h"

#include <algorithm>

#include "error.h"

namespace mrisr::runtime {

bool Progress::ask() {
  if (callback_ != nullptr && callback_(user_, fraction_) != 0) stopped_ = true;
  return stopped_;
}

void Progress::at(double fraction) {
  fraction_ = std::max(fraction_, std::min(fraction, 1.0));
  if (cancelled()) MRISR_FAIL(MRISR_ERROR_CANCELLED, "cancelled by the caller");
}

}  // namespace mrisr::runtime
