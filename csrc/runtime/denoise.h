// The second stage of a run, from the start y to the residual: the network on tiles, the sampler's steps, the samples:
// mrisr/infer/denoise.py.
#pragma once

#include "job.h"
#include "progress.h"
#include "workspace.h"

namespace mrisr::runtime {

// Into w.residual (and w.spread, of several samples); w.y is the start. noise: of the scan, negative where it is not known.
// Fills the parts of info that are about tiles.
void denoise(Job& job, const Workspace& w, double noise, std::uint64_t seed, Progress& progress, mrisr_run_info& info);

}  // namespace mrisr::runtime
