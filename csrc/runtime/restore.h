// What of the scan stands in the result beyond the network's answer: mrisr/infer/back_projection.py.
#pragma once

#include "workspace.h"

namespace mrisr::runtime {

// w.y, the network's answer, gets what the scan holds beyond it, less its noise where that is to go. w.residual is
// written over.
void restore_signal(const Job& job, const Workspace& w);

}  // namespace mrisr::runtime
