// The matrices of one axis, float64: resampling, acquisition, their band projection and eigenvectors. They follow
// mrisr/ops/resample/matrices.py and mrisr/physics/degrade.py, where the formulas are explained.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "geometry.h"

namespace mrisr::runtime {

// Row-major [rows, cols]; empty stands for the identity.
struct Matrix {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> values;

  Matrix() = default;
  Matrix(std::int64_t r, std::int64_t c) : rows(r), cols(c), values(static_cast<std::size_t>(r * c), 0.0) {}
  bool identity() const { return values.empty(); }
  double* row(std::int64_t i) { return values.data() + i * cols; }
  const double* row(std::int64_t i) const { return values.data() + i * cols; }
};

// Gain at a frequency in cycles per input sample, 0 to 0.5.
using Transfer = std::function<double(double)>;

Matrix fourier_matrix(std::int64_t n_in, const std::vector<double>& positions, const Transfer& transfer);
Matrix bspline_matrix(std::int64_t n_in, const std::vector<double>& positions, int order);
Matrix transposed(const Matrix& m);

// The start y from a coarse axis.
Matrix start_matrix(std::int64_t n_in, double v_in, std::int64_t n_out, double v_out, const AxisPsf& psf,
                    int spline_order);
// Acquisition of a coarse axis from a fine one.
Matrix acquisition_matrix(std::int64_t n_fine, double v_fine, std::int64_t n_coarse, double v_coarse,
                          const AxisPsf& psf);

// The projection [n, n] on what a cut of k-space measured, into `to`. Allocates nothing: `work` holds 2 n + 1 doubles.
void band_matrix(double* to, double* work, std::int64_t n, double voxel, const AxisPsf& psf);
// The smoothing [n, n] over `width` mm (at half maximum) that stands for the local mean; as above.
void mean_matrix(double* to, double* work, std::int64_t n, double voxel, double width);
// What stands where the network does not count: a spline of `order`, beyond the outer samples the nearest of them.
Matrix plain_matrix(std::int64_t n_in, double v_in, std::int64_t n_out, double v_out, int order);

// Eigenvalues (at least 0) and eigenvectors (columns) of m m^T.
void eigen_of_square(const Matrix& m, Matrix& vectors, std::vector<double>& values);

}  // namespace mrisr::runtime
