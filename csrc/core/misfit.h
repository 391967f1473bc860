// How far a scan is from what a forward model makes of a finer image, where the scan is tissue beyond doubt.
#pragma once

#include "tensor.h"

namespace mrisr {

struct Misfit {
  double squares = 0;  // sum of the squared differences
  Index voxels = 0;    // that count
};

namespace cpu {

// made [planes, plane], in place: scan - made where the scan is above `level`, else 0; the sums of that. Sums run plane
// by plane, whatever the thread count. partial: 2 * planes numbers.
Misfit misfit(float* made, const float* scan, float level, Index planes, Index plane, double* partial, int threads);

}  // namespace cpu
}  // namespace mrisr
