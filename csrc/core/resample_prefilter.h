// B-spline coefficients of the samples of a volume, and what lies beyond its ends.
//
// Unser, Aldroubi and Eden (IEEE TSP 41, 1993): one causal and one anticausal first-order recursion per pole. The start
// values are those of the whole infinite extension, so the result is the solution of the interpolation problem itself.
// The coefficients are continued `spline_halo(order)` places past both ends, so that whoever evaluates the spline at a
// position on the axis reads them without asking where the axis ends.
#pragma once

#include "tensor.h"

namespace mrisr {

// How samples and coefficients go on past the ends of an axis with n samples:
enum class Boundary {
  linear = 0,  // c(-k) = 2 c(0) - c(k): a straight line stays straight
  mirror = 1,  // c(-k) = c(k)
};

MRISR_HD inline Index spline_halo(int order) { return (order + 1) / 2; }

// order is 1, 3 or 5, boundary one of the two; throws BadArgument else.
void check_spline(int order, Boundary boundary, const char* op);

namespace cpu {

// Along all three axes. x: contiguous [outer, n]; out: contiguous [outer, n + 2 halo]. No overlap. T is float or double.
template <class T>
void prefilter(T* out, const T* x, Index outer, const Index (&n)[3], int order, Boundary boundary, int threads);

// The adjoint: grad is [outer, n + 2 halo], out [outer, n]. Takes memory for one volume between the two.
template <class T>
void prefilter_adjoint(T* out, const T* grad, Index outer, const Index (&n)[3], int order, Boundary boundary,
                       int threads);

}  // namespace cpu
}  // namespace mrisr
