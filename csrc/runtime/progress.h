// Progress of a run: one callback, as in mrisr/infer/progress.py.
#pragma once

#include "engine.h"
#include "mrisr.h"

namespace mrisr::runtime {

// Fractions of a run at which its stages end.
constexpr double kRead = 0.005, kStarted = 0.02, kDenoised = 0.97;

// The fraction done, and whether the caller wants the run stopped.
class Progress final : public Watch {
 public:
  Progress(mrisr_progress_callback callback, void* user) : callback_(callback), user_(user) {}

  bool cancelled() override { return stopped_ || ask(); }
  // Raises Error (MRISR_ERROR_CANCELLED) where the caller wants to stop.
  void at(double fraction);

 private:
  bool ask();

  mrisr_progress_callback callback_;
  void* user_;
  double fraction_ = 0;
  bool stopped_ = false;
};

}  // namespace mrisr::runtime
