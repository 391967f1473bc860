// What of the measured band stands in a result from which noise was to go: mrisr/infer/wiener.py.
#pragma once

#include "workspace.h"

namespace mrisr::runtime {

// w.y, the network's answer, gets what of the scan is signal, with the answer as a pilot. w.residual is written over.
void restore_signal(const Job& job, const Workspace& w);

}  // namespace mrisr::runtime
