// From the start y to the residual: the network on tiles, the sampler's steps, the samples: mrisr/infer/denoise.py.
#pragma once

#include "job.h"
#include "workspace.h"

namespace mrisr::runtime {

// Progress of a run, and whether its caller wants it stopped.
class Progress final : public Watch {
 public:
  Progress(mrisr_progress_callback callback, void* user) : callback_(callback), user_(user) {}

  bool cancelled() override { return stopped_ || ask(); }
  // The fraction done; raises Error (MRISR_ERROR_CANCELLED) where the caller wants to stop.
  void at(double fraction);

 private:
  bool ask();

  mrisr_progress_callback callback_;
  void* user_;
  double fraction_ = 0;
  bool stopped_ = false;
};

// Into w.found (and w.spread, of several samples); w.y is the start. Fills the parts of info that are about tiles.
void find_residual(Job& job, const Workspace& w, double noise, std::uint64_t seed, Progress& progress, mrisr_run_info& info);

}  // namespace mrisr::runtime
