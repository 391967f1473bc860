#include "geometry.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "shared.h"

namespace mrisr::runtime {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr std::int64_t kMostVoxels = std::int64_t{1} << 40;  // of a grid
constexpr std::int64_t kLongestAxis = 16384;                 // matrices have its square

std::array<double, 3> voxel_of(const std::array<double, 16>& a) {
  std::array<double, 3> size{};
  for (int c = 0; c < 3; ++c) size[c] = std::sqrt(a[c] * a[c] + a[4 + c] * a[4 + c] + a[8 + c] * a[8 + c]);
  return size;
}

void check_shape(const Triple& shape, const char* which) {
  for (int d = 0; d < 3; ++d)
    if (shape[d] > kLongestAxis)
      MRISR_FAIL(MRISR_ERROR_ARGUMENT, which << ": expected at most " << kLongestAxis << " voxels along axis " << d
                                             << ", found " << shape[d]);
  if (product(shape) > kMostVoxels) MRISR_FAIL(MRISR_ERROR_ARGUMENT, which << ": more than 2^40 voxels");
}

double supergaussian_transfer(double f) {
  // Fourier transform of exp(-ln 2 (2x)^4) over half its support; f in cycles per full width at half maximum.
  double sum = 0, total = 0;
  for (int i = 0; i <= 800; ++i) {
    const double x = 1.6 * i / 800, two = 2 * x,
                 p = std::exp(-std::log(2.0) * two * two * two * two) * (i == 0 ? 0.5 : 1.0);
    sum += p * std::cos(2 * kPi * x * f);
    total += p;
  }
  return sum / total;
}

}  // namespace

Grid source_grid(const std::int64_t shape[3], const double affine[16]) {
  Grid grid{};
  for (int d = 0; d < 3; ++d) {
    grid.shape[d] = shape[d];
    if (shape[d] < shared::kFewestVoxels)
      MRISR_FAIL(MRISR_ERROR_ARGUMENT, "shape: expected at least " << shared::kFewestVoxels
                                                                   << " voxels along every axis, found " << shape[0]
                                                                   << " x " << shape[1] << " x " << shape[2]);
  }
  check_shape(grid.shape, "shape");
  std::copy_n(affine, 16, grid.affine.begin());
  if (!std::all_of(affine, affine + 16, [](double v) { return std::isfinite(v); }))
    MRISR_FAIL(MRISR_ERROR_GEOMETRY, "affine: it has NaN or infinite entries");
  if (affine[12] != 0 || affine[13] != 0 || affine[14] != 0 || affine[15] != 1)
    MRISR_FAIL(MRISR_ERROR_GEOMETRY, "affine: the last row must be 0 0 0 1, found "
                                         << affine[12] << ' ' << affine[13] << ' ' << affine[14] << ' ' << affine[15]);
  grid.voxel = voxel_of(grid.affine);
  if (*std::min_element(grid.voxel.begin(), grid.voxel.end()) < shared::kSmallestVoxel)
    MRISR_FAIL(MRISR_ERROR_GEOMETRY, "affine: voxel size " << grid.voxel[0] << " x " << grid.voxel[1] << " x "
                                                           << grid.voxel[2]
                                                           << " mm has a zero; set the true voxel size");
  for (int d = 0; d < 3; ++d)
    if (grid.voxel[d] > shared::kLargestVoxel ||
        grid.voxel[d] * static_cast<double>(grid.shape[d]) > shared::kLargestView)
      MRISR_FAIL(MRISR_ERROR_GEOMETRY,
                 "affine: " << grid.shape[d] << " voxels of " << grid.voxel[d] << " mm along axis " << d
                            << ", which no scan of a head has; set the true voxel size (or its unit)");
  double u[9];
  for (int r = 0; r < 3; ++r)
    for (int c = 0; c < 3; ++c) u[3 * r + c] = affine[4 * r + c] / grid.voxel[c];
  const double determinant =
      u[0] * (u[4] * u[8] - u[5] * u[7]) - u[1] * (u[3] * u[8] - u[5] * u[6]) + u[2] * (u[3] * u[7] - u[4] * u[6]);
  if (std::fabs(determinant) < shared::kSmallestDeterminant)
    MRISR_FAIL(MRISR_ERROR_GEOMETRY, "affine: it is not invertible (its axes lie in one plane)");
  return grid;
}

Grid target_grid(const Grid& source, const double voxel_size[3], const double factor[3], const Config& config) {
  const bool by_factor = factor[0] != 0 || factor[1] != 0 || factor[2] != 0;
  double size[3];
  for (int d = 0; d < 3; ++d) {
    const double own = source.voxel[d], most = config.grid.voxel_size;
    size[d] = by_factor                                      ? factor[d]
              : voxel_size[d] != 0                           ? voxel_size[d]
              : own <= most * (1 + config.grid.same_spacing) ? own
                                                             : most;
  }
  Grid target{};
  double ratio[3], offset[3];
  for (int d = 0; d < 3; ++d) {
    if (!(std::isfinite(size[d]) && size[d] > 0))
      MRISR_FAIL(MRISR_ERROR_ARGUMENT, (by_factor ? "factor" : "voxel_size")
                                           << ": expected three positive numbers, found " << size[0] << ", " << size[1]
                                           << ", " << size[2]);
    ratio[d] = by_factor ? 1.0 / size[d] : size[d] / source.voxel[d];
    const double n_in = static_cast<double>(source.shape[d]);
    const double n_out = std::max(1.0, std::floor(n_in / ratio[d] + 0.5 + shared::kHeaderRounding));
    if (n_out > kLongestAxis)
      MRISR_FAIL(MRISR_ERROR_ARGUMENT, "voxel_size: the output would have " << n_out << " voxels along axis " << d
                                                                            << "; expected at most " << kLongestAxis);
    target.shape[d] = static_cast<std::int64_t>(n_out);
    offset[d] = 0.5 * ((n_in - 1) - (n_out - 1) * ratio[d]);
  }
  check_shape(target.shape, "voxel_size: the output");
  for (int r = 0; r < 3; ++r) {
    const double* a = source.affine.data() + 4 * r;
    for (int c = 0; c < 3; ++c) target.affine[4 * r + c] = a[c] * ratio[c];
    target.affine[4 * r + 3] = a[0] * offset[0] + a[1] * offset[1] + a[2] * offset[2] + a[3];
  }
  target.affine[15] = 1;
  target.voxel = voxel_of(target.affine);
  return target;
}

std::vector<double> axis_positions(std::int64_t n_in, std::int64_t n_out, double ratio) {
  std::vector<double> at(static_cast<std::size_t>(n_out));
  const double first = 0.5 * (static_cast<double>(n_in - 1) - static_cast<double>(n_out - 1) * ratio);
  for (std::int64_t i = 0; i < n_out; ++i) at[i] = first + ratio * static_cast<double>(i);
  return at;
}

double AxisPsf::transfer(double f) const {
  if (kind == MRISR_PSF_GAUSSIAN) {
    const double sigma = width / (2.0 * std::sqrt(2.0 * std::log(2.0))), v = kPi * sigma * f;
    return std::exp(-2.0 * v * v);
  }
  if (kind == MRISR_PSF_SUPERGAUSSIAN) return supergaussian_transfer(f * width);
  const double cut = 0.5 / width;
  // The relative margin keeps a frequency that equals the cut in exact arithmetic on one side of it.
  if (!(f < cut * (1 - 1e-9))) return 0.0;
  if (window == MRISR_WINDOW_HANN) return 0.5 + 0.5 * std::cos(kPi * std::min(f / cut, 1.0));
  if (window == MRISR_WINDOW_TUKEY) return 0.5 + 0.5 * std::cos(kPi * std::clamp((f / cut - 0.75) / 0.25, 0.0, 1.0));
  return 1.0;
}

const char* kind_name(mrisr_psf_kind kind) {
  static const char* const names[] = {"unknown", "kspace", "gaussian", "supergaussian"};
  return names[kind];
}

Psf stated_psf(const mrisr_axis_psf psf[3], const std::array<double, 3>& voxel) {
  Psf result{};
  for (int d = 0; d < 3; ++d) {
    if (psf[d].kind < MRISR_PSF_UNKNOWN || psf[d].kind > MRISR_PSF_SUPERGAUSSIAN)
      MRISR_FAIL(MRISR_ERROR_ARGUMENT,
                 "psf[" << d << "].kind: expected a mrisr_psf_kind (0 to 3), found " << psf[d].kind);
    if (psf[d].window < MRISR_WINDOW_BOX || psf[d].window > MRISR_WINDOW_TUKEY)
      MRISR_FAIL(MRISR_ERROR_ARGUMENT,
                 "psf[" << d << "].window: expected a mrisr_psf_window (0 to 2), found " << psf[d].window);
    if (!(std::isfinite(psf[d].width) && psf[d].width >= 0))
      MRISR_FAIL(MRISR_ERROR_ARGUMENT,
                 "psf[" << d << "].width: expected mm above 0, or 0 for the stored voxel size, found " << psf[d].width);
    result[d] = {static_cast<mrisr_psf_kind>(psf[d].kind), psf[d].width > 0 ? psf[d].width : voxel[d],
                 static_cast<mrisr_psf_window>(psf[d].window)};
  }
  return result;
}

Psf assumed_psf(const std::array<double, 3>& voxel, double thick_slice_ratio) {
  const double shortest = *std::min_element(voxel.begin(), voxel.end());
  Psf result{};
  for (int d = 0; d < 3; ++d)
    result[d] = {voxel[d] >= thick_slice_ratio * shortest ? MRISR_PSF_GAUSSIAN : MRISR_PSF_KSPACE, voxel[d],
                 MRISR_WINDOW_BOX};
  return result;
}

double log_width(const AxisPsf& psf, double voxel) { return std::max(0.0, std::log2(psf.width / voxel)); }

std::array<int, 3> canonical_order(const Psf& psf, const std::array<double, 3>& voxel, int decimals) {
  double key[3];
  for (int d = 0; d < 3; ++d) {
    const double unit = std::pow(10.0, decimals);
    key[d] = std::nearbyint(log_width(psf[d], voxel[d]) * unit) / unit;
  }
  std::array<int, 3> order{0, 1, 2};
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return key[a] < key[b]; });
  return order;
}

}  // namespace mrisr::runtime
