// Evaluate a B-spline volume at  matrix * (i, j, k, 1) + displacement(i, j, k)  for every voxel of a target grid.
//
// Coefficients come from `prefilter` on all three axes: they reach `spline_halo(order)` places past every end. Positions
// are voxel indices of the volume itself (0 is the centre of its first voxel) and are formed in double. Boundary::linear
// holds a position at the edge of the field of view, half a voxel outside the last centre; Boundary::mirror reflects it
// at the outermost centres. A NaN position gives NaN.
#pragma once

#include "resample_prefilter.h"
#include "tensor.h"

namespace mrisr {

struct Sampling {
  Index batch;            // volumes, each with its own displacement
  Index channels;         // that share a displacement
  Index source[3];        // voxels of the volume, without the halo
  Index target[3];        // voxels of the target grid
  double matrix[12];      // row-major 3 x 4, target index -> source index
  bool one_displacement;  // the same displacement for the whole batch
  int order;
  Boundary boundary;
};

void check_sampling(const Sampling& s, const char* op);

namespace cpu {

// coefficients: [batch, channels, source + 2 halo]; displacement: [batch or 1, 3, target] in source voxels, or null;
// out: [batch, channels, target]. All contiguous. T is float or double.
template <class T>
void resample3d(T* out, const T* coefficients, const T* displacement, const Sampling& s, int threads);

// d(sum(grad * out)) / d(displacement): [batch, 3, target]. Zero where a position is held at the edge.
template <class T>
void resample3d_slope(T* out, const T* coefficients, const T* displacement, const T* grad, const Sampling& s,
                      int threads);

// d(sum(grad * out)) / d(coefficients). Every coefficient is summed in raster order of the target grid: the result does
// not depend on the thread count.
template <class T>
void resample3d_adjoint(T* out, const T* displacement, const T* grad, const Sampling& s, int threads);

}  // namespace cpu
}  // namespace mrisr
