// Consistency with the scan: mrisr/physics/consistency.py.
#pragma once

#include "job.h"
#include "workspace.h"

namespace mrisr::runtime {

// Compare the result in w.y with the scan in w.lr and, where the job corrects, correct it. noise: in units of the
// intensity scale, at least 0. w.residual is used up.
void make_consistent(const Job& job, const Workspace& w, double noise, mrisr_run_info& info);

}  // namespace mrisr::runtime
