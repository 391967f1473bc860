// The first stage of a run: the scan read and normalised, its noise, and the start y on the target grid:
// mrisr/infer/start.py.
#pragma once

#include "intensity.h"
#include "job.h"
#include "progress.h"
#include "workspace.h"

namespace mrisr::runtime {

// What is known of a scan before the network runs.
struct Frame {
  Scale scale;              // what w.lr was normalised by
  double noise;             // standard deviation in units of the scale; negative: too little foreground to know
  bool background;          // w.background marks voxels of the scan whose value in the result is known
  double background_value;  // and that value, in units of the input
};

// Into w.lr, w.y and w.background. Raises Error (MRISR_ERROR_ARGUMENT, MRISR_ERROR_INPUT).
Frame start(const Job& job, const Workspace& w, const mrisr_run_options& options, Progress& progress);

}  // namespace mrisr::runtime
