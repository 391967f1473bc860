// The last stage of a run: consistency with the scan, interpolation where the network does not count, and the way back to
// the units of the input: mrisr/infer/finish.py.
#pragma once

#include "job.h"
#include "start.h"
#include "workspace.h"

namespace mrisr::runtime {

// From the start in w.y and the residual in w.residual (and the spread in w.spread) to the caller's output. Fills the parts
// of info that are about consistency.
void finish(const Job& job, const Workspace& w, const mrisr_run_options& options, const Frame& frame,
            mrisr_run_info& info);

}  // namespace mrisr::runtime
