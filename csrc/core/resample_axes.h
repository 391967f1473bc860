// out = M x along one axis of a 3D volume: every resampler, forward model and adjoint of mrisr is three of these.
#pragma once

#include "tensor.h"

namespace mrisr {
namespace cpu {

// x, out: contiguous float32 [outer, n_in, inner] and [outer, n_out, inner] (the axis is the middle one);
// matrix: contiguous float64 [n_out, n_in]. Coefficients are used as float32, sums run in float32.
// Entries at the ends of a row below `drop` times the row's largest are left out (B-spline prefilters decay: at 1e-9 a
// quintic row shrinks from n_in to about 45 entries and its sum moves by less than a float32 rounding).
// x and out must not overlap. Fixed order of summation: the result does not depend on the thread count.
void axis_apply(float* out, const float* x, const double* matrix, Index outer, Index n_in, Index n_out, Index inner,
                double drop, int threads);

// The same in two parts, for callers that own all memory: a matrix packed once, and applied.
constexpr Index kAxisRows = 4;  // of a matrix for lines beside each other, packed together

enum class Lines {
  across,  // beside each other: what lies behind the axis is computed together
  along,   // behind each other: the axis is the last one, inner is 1
};

struct AxisBand {
  Index first, count, at;  // columns first .. first + count of some rows, packed at coefficients + at
};

struct AxisMatrix {
  Index n_in, n_out;
  Lines lines;
  Index size;  // of coefficients
  const AxisBand* bands;
  const float* coefficients;
};

Index axis_bands(Index n_out);                     // AxisBands that axis_pack writes
Index axis_coefficients(Index n_out, Index n_in);  // floats that it writes at most
Index axis_scratch(Index n_in, int threads);       // floats that axis_apply works in
AxisMatrix axis_pack(AxisBand* bands, float* coefficients, const double* matrix, Index n_out, Index n_in, double drop,
                     Lines lines);
void axis_apply(float* out, const float* x, const AxisMatrix& matrix, Index outer, Index inner, float* scratch,
                int threads);

}  // namespace cpu
}  // namespace mrisr
