// Grids and point spreads: mrisr/grid.py, mrisr/physics/psf.py, mrisr/nn/condition.py.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "bundle.h"
#include "mrisr.h"

namespace mrisr::runtime {

using Triple = std::array<std::int64_t, 3>;

inline std::int64_t product(const Triple& t) { return t[0] * t[1] * t[2]; }

struct Grid {
  Triple shape;
  std::array<double, 16> affine;  // row-major, voxel index -> mm
  std::array<double, 3> voxel;    // mm along each axis
};

// Checked. Raises Error (MRISR_ERROR_ARGUMENT, MRISR_ERROR_GEOMETRY).
Grid source_grid(const std::int64_t shape[3], const double affine[16]);
// The grid of `voxel_size` mm (0: the smaller of the bundle's default and the source's own), or `factor` times finer where
// that is not 0, over the same field of view.
Grid target_grid(const Grid& source, const double voxel_size[3], const double factor[3], const Config& config);
// Where n_out samples lie in index units of n_in; ratio: new / old spacing.
std::vector<double> axis_positions(std::int64_t n_in, std::int64_t n_out, double ratio);

struct AxisPsf {
  mrisr_psf_kind kind;
  double width;  // mm
  mrisr_psf_window window;

  bool slice() const { return kind == MRISR_PSF_GAUSSIAN || kind == MRISR_PSF_SUPERGAUSSIAN; }
  double transfer(double frequency) const;  // gain at cycles per mm
};

using Psf = std::array<AxisPsf, 3>;

const char* kind_name(mrisr_psf_kind kind);
Psf stated_psf(const mrisr_axis_psf psf[3], const std::array<double, 3>& voxel);
// From the shape of a voxel: a slice profile along axes much longer than the shortest, else a k-space cut.
Psf assumed_psf(const std::array<double, 3>& voxel, double thick_slice_ratio);

// log2(acquired width / target voxel), never negative.
double log_width(const AxisPsf& psf, double voxel);
// The order of axes in which the network sees a scan: coarsest acquired width last.
std::array<int, 3> canonical_order(const Psf& psf, const std::array<double, 3>& voxel, int decimals);

}  // namespace mrisr::runtime
