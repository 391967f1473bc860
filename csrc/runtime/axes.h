// One matrix per axis, packed once, applied without allocating.
#pragma once

#include <vector>

#include "resample_axes.h"
#include "geometry.h"
#include "matrices.h"

namespace mrisr::runtime {

class Axes {
 public:
  Axes() = default;
  explicit Axes(const Matrix (&matrices)[3]);

  Triple result(const Triple& shape) const;
  // Floats of each of the two buffers between the products, and of the scratch memory.
  std::int64_t between(const Triple& shape) const;
  std::int64_t scratch(int threads) const;
  // Of an axis; null where nothing changes along it.
  const cpu::AxisMatrix* matrix(int axis) const;
  // out, a, b and x are four different arrays; x [shape], out [result(shape)], a and b [between(shape)].
  void apply(float* out, const float* x, const Triple& shape, float* a, float* b, float* scratch, int threads) const;

 private:
  struct Packed {
    int axis;
    cpu::AxisMatrix matrix{};
    std::vector<cpu::AxisBand> bands;
    std::vector<float> coefficients;
  };
  std::vector<Packed> steps_;  // shrinking axes first: every later product is then on a smaller array
};

// out = matrix x along one axis of x [shape].
void apply_axis(float* out, const float* x, const cpu::AxisMatrix& matrix, const Triple& shape, int axis,
                float* scratch, int threads);

}  // namespace mrisr::runtime
