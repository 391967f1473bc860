// Where the network's answer counts, and what stands where it does not: mrisr/infer/fade.py.
#pragma once

#include "job.h"
#include "workspace.h"

namespace mrisr::runtime {

// w.y, start and residual together, is held to what a scan can have whose no signal is `zero`, and becomes plain
// interpolation in air and beyond the end slices; w.spread fades there.
void fade(const Job& job, const Workspace& w, float zero);

// Floats of w.fade.scratch.
std::int64_t fade_scratch(const Job& job);

// w.fade.weights: above config.fade.half where the target is background.
void resample_background(const Job& job, const Workspace& w);

}  // namespace mrisr::runtime
