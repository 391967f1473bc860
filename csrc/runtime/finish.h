// From the start and the residual to the result: interpolation where the network does not count, and what of the scan
// has been masked: mrisr/infer/fade.py and mrisr/physics/foreground.py.
#pragma once

#include "job.h"
#include "workspace.h"

namespace mrisr::runtime {

// w.y, start and residual together, is held to what a scan can have whose no signal is `zero`, and becomes plain
// interpolation in air and beyond the end slices; w.spread fades there.
void fade(const Job& job, const Workspace& w, float zero);

// Into w.background, before the scan in w.lr is normalised: what is masked by `mask` (or, without, by the scan itself).
// Whether anything is; `value` is what it shall have.
bool find_background(const Job& job, const Workspace& w, const std::uint8_t* mask, double& value);

// w.fade.weights: above config.fade.half where the target is background.
void resample_background(const Job& job, const Workspace& w);

}  // namespace mrisr::runtime
