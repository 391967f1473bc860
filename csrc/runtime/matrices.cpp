#include "matrices.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "eigen.h"
#include "error.h"

namespace mrisr::runtime {
namespace {

constexpr double kPi = 3.14159265358979323846;

// Centred cardinal B-spline of odd order, by the truncated-power formula.
double bspline(int order, double x) {
  x = std::fabs(x);
  const double half = (order + 1) / 2.0;
  if (x >= half) return 0.0;
  double total = 0, binomial = 1, factorial = 1;
  for (int k = 2; k <= order; ++k) factorial *= k;
  for (int k = 0; k <= order + 1; ++k) {
    total += (k % 2 == 0 ? 1 : -1) * binomial * std::pow(std::max(half - k - x, 0.0), order);
    binomial *= static_cast<double>(order + 1 - k) / (k + 1);
  }
  return total / factorial;
}

// Add `weight` times the coefficient at `index`, beyond the ends by the odd extension c(-k) = 2 c(0) - c(k).
void add_coefficient(double* row, std::int64_t n, std::int64_t index, double weight) {
  while (index < 0 || index > n - 1) {
    if (index < 0) {
      row[0] += 2 * weight;
      index = -index;
    } else {
      row[n - 1] += 2 * weight;
      index = 2 * (n - 1) - index;
    }
    weight = -weight;
  }
  row[index] += weight;
}

Matrix spline_rows(std::int64_t n, const std::vector<double>& positions, int order) {
  Matrix rows(static_cast<std::int64_t>(positions.size()), n);
  for (std::int64_t i = 0; i < rows.rows; ++i) {
    const auto first = static_cast<std::int64_t>(std::floor(positions[i])) - order / 2;
    for (std::int64_t tap = first; tap <= first + order; ++tap)
      add_coefficient(rows.row(i), n, tap, bspline(order, positions[i] - static_cast<double>(tap)));
  }
  return rows;
}

// a x = b by elimination with row pivots; a [n, n] is banded, so that most factors are zero and skipped. b becomes x.
void solve(Matrix& a, Matrix& b) {
  const std::int64_t n = a.rows;
  for (std::int64_t k = 0; k < n; ++k) {
    std::int64_t best = k;
    for (std::int64_t i = k + 1; i < n; ++i)
      if (std::fabs(a.row(i)[k]) > std::fabs(a.row(best)[k])) best = i;
    if (best != k) {
      std::swap_ranges(a.row(k), a.row(k) + n, a.row(best));
      std::swap_ranges(b.row(k), b.row(k) + b.cols, b.row(best));
    }
    for (std::int64_t i = k + 1; i < n; ++i) {
      const double factor = a.row(i)[k] / a.row(k)[k];
      if (factor == 0) continue;
      for (std::int64_t j = k; j < n; ++j) a.row(i)[j] -= factor * a.row(k)[j];
      for (std::int64_t j = 0; j < b.cols; ++j) b.row(i)[j] -= factor * b.row(k)[j];
    }
  }
  for (std::int64_t k = n - 1; k >= 0; --k) {
    for (std::int64_t j = 0; j < b.cols; ++j) b.row(k)[j] /= a.row(k)[k];
    for (std::int64_t i = 0; i < k; ++i) {
      const double factor = a.row(i)[k];
      if (factor == 0) continue;
      for (std::int64_t j = 0; j < b.cols; ++j) b.row(i)[j] -= factor * b.row(k)[j];
    }
  }
}

// sum_k gain(k) cos(angle k), k = 0 .. n - 1, as one row of the synthesis.
void cosines(double* to, std::int64_t n, double angle) {
  for (std::int64_t k = 0; k < n; ++k) to[k] = std::cos(angle * static_cast<double>(k));
}

// A filter of the half-sample-symmetric extension by its gain at k / (2 n) cycles per voxel, constants kept.
template <class Gain>
void filter_matrix(double* to, double* work, std::int64_t n, const Gain& gain) {
  const double size = static_cast<double>(n);
  // sum_k g_k cos a_k cos b_k is half the sum of cosines of difference and sum, and both are whole multiples of pi / n.
  std::fill_n(work, 2 * n + 1, 0.0);
  for (std::int64_t k = 1; k < n; ++k) {
    const double g = gain(static_cast<double>(k) / (2.0 * size));
    if (g < 1e-17) continue;
    for (std::int64_t m = 0; m <= 2 * n; ++m)
      work[m] += g * std::cos(kPi * static_cast<double>(k * m % (2 * n)) / size);
  }
  const double constant = gain(0.0);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) to[i * n + j] = (constant + work[std::abs(i - j)] + work[i + j + 1]) / size;
}

}  // namespace

Matrix transposed(const Matrix& m) {
  if (m.identity()) return {};
  Matrix t(m.cols, m.rows);
  for (std::int64_t i = 0; i < m.rows; ++i)
    for (std::int64_t j = 0; j < m.cols; ++j) t.row(j)[i] = m.row(i)[j];
  return t;
}

Matrix fourier_matrix(std::int64_t n_in, const std::vector<double>& positions, const Transfer& transfer) {
  const double n = static_cast<double>(n_in);
  std::vector<double> gain(static_cast<std::size_t>(n_in)), synthesis(gain.size());
  for (std::int64_t k = 0; k < n_in; ++k)
    gain[k] = (k == 0 ? 1.0 : 2.0) / n * (transfer ? transfer(static_cast<double>(k) / (2.0 * n)) : 1.0);
  Matrix analysis(n_in, n_in);                                    // [k, j]
  std::vector<double> table(static_cast<std::size_t>(4 * n_in));  // cos(pi m / (2 n)) repeats after 4 n
  for (std::int64_t m = 0; m < 4 * n_in; ++m) table[m] = std::cos(kPi * static_cast<double>(m) / (2.0 * n));
  for (std::int64_t k = 0; k < n_in; ++k)
    for (std::int64_t j = 0; j < n_in; ++j) analysis.row(k)[j] = table[k * (2 * j + 1) % (4 * n_in)];
  Matrix result(static_cast<std::int64_t>(positions.size()), n_in);
  for (std::int64_t i = 0; i < result.rows; ++i) {
    cosines(synthesis.data(), n_in, kPi * (positions[i] + 0.5) / n);
    double* row = result.row(i);
    for (std::int64_t k = 0; k < n_in; ++k) {
      const double weight = synthesis[k] * gain[k];
      if (weight == 0) continue;
      const double* from = analysis.row(k);
      for (std::int64_t j = 0; j < n_in; ++j) row[j] += weight * from[j];
    }
  }
  return result;
}

Matrix bspline_matrix(std::int64_t n_in, const std::vector<double>& positions, int order) {
  if (n_in == 1) {
    Matrix ones(static_cast<std::int64_t>(positions.size()), 1);
    std::fill(ones.values.begin(), ones.values.end(), 1.0);
    return ones;
  }
  std::vector<double> samples(static_cast<std::size_t>(n_in));
  for (std::int64_t i = 0; i < n_in; ++i) samples[i] = static_cast<double>(i);
  Matrix a = transposed(spline_rows(n_in, samples, order)), b = transposed(spline_rows(n_in, positions, order));
  solve(a, b);
  return transposed(b);
}

Matrix start_matrix(std::int64_t n_in, double v_in, std::int64_t n_out, double v_out, const AxisPsf& psf,
                    int spline_order) {
  const double ratio = v_out / v_in;
  if (n_in == n_out && std::fabs(ratio - 1.0) < 1e-9) return {};
  const std::vector<double> positions = axis_positions(n_in, n_out, ratio);
  if (psf.slice() && ratio <= 1.0) return bspline_matrix(n_in, positions, spline_order);
  Transfer cut;  // going to a coarser grid, what that grid cannot hold is removed rather than aliased
  if (ratio > 1.0) cut = [ratio](double f) { return f < 0.5 / ratio ? 1.0 : 0.0; };
  return fourier_matrix(n_in, positions, cut);
}

Matrix acquisition_matrix(std::int64_t n_fine, double v_fine, std::int64_t n_coarse, double v_coarse,
                          const AxisPsf& psf) {
  const std::vector<double> positions = axis_positions(n_fine, n_coarse, v_coarse / v_fine);
  bool same = !psf.slice() && psf.window == MRISR_WINDOW_BOX && psf.width <= v_fine * (1 + 1e-6) && n_fine == n_coarse;
  for (std::size_t i = 0; same && i < positions.size(); ++i) {
    const double at = static_cast<double>(i);
    same = std::fabs(positions[i] - at) <= 1e-9 + 1e-5 * at;  // numpy.allclose
  }
  if (same) return {};
  return fourier_matrix(n_fine, positions, [&](double f) { return psf.transfer(f / v_fine); });
}

void band_matrix(double* to, double* work, std::int64_t n, double voxel, const AxisPsf& psf) {
  const double limit = 0.5 * std::min(1.0, voxel / psf.width);
  filter_matrix(to, work, n, [&](double f) { return f < limit ? 1.0 : 0.0; });
}

void mean_matrix(double* to, double* work, std::int64_t n, double voxel, double width) {
  const AxisPsf profile{MRISR_PSF_GAUSSIAN, width, MRISR_WINDOW_BOX};
  filter_matrix(to, work, n, [&](double f) { return profile.transfer(f / voxel); });
}

Matrix plain_matrix(std::int64_t n_in, double v_in, std::int64_t n_out, double v_out, int order) {
  const double ratio = v_out / v_in;
  if (n_in == n_out && std::fabs(ratio - 1.0) < 1e-9) return {};
  std::vector<double> positions = axis_positions(n_in, n_out, ratio);
  if (order > 1 && ratio > 1.0 + 1e-9)
    return fourier_matrix(n_in, positions, [ratio](double f) { return f < 0.5 / ratio ? 1.0 : 0.0; });
  for (double& p : positions) p = std::clamp(p, 0.0, static_cast<double>(n_in - 1));
  return bspline_matrix(n_in, positions, order);
}

void eigen_of_square(const Matrix& m, Matrix& vectors, std::vector<double>& values) {
  vectors = Matrix(m.rows, m.rows);
  for (std::int64_t i = 0; i < m.rows; ++i)
    for (std::int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (std::int64_t k = 0; k < m.cols; ++k) sum += m.row(i)[k] * m.row(j)[k];
      vectors.row(i)[j] = vectors.row(j)[i] = sum;
    }
  values.assign(static_cast<std::size_t>(m.rows), 0.0);
  symmetric_eigen(vectors.values.data(), values.data(), m.rows);
  for (double& v : values) v = std::max(v, 0.0);
}

}  // namespace mrisr::runtime
