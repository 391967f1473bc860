// All three axes of a volume through cpu::prefilter, or through its adjoint; the C++ side of mrisr/ops/resample/prefilter.py.
#pragma once

#include <utility>

#include "golden.h"
#include "resample_prefilter.h"

namespace mrisr::test {

struct Spline {
  int order;
  Boundary boundary;
  explicit Spline(const Case& c)
      : order(static_cast<int>(c.at("order").integer())),
        boundary(c.is("boundary", "mirror") ? Boundary::mirror : Boundary::linear) {}
};

// x: [lead, n0, n1, n2]; returns the last buffer, its sizes grown or shrunk by two halos.
inline Buffer<float> all_axes(Buffer<float> x, Index lead, std::array<Index, 3> n, const Spline& spline, bool adjoint,
                              const Setting& s) {
  const Index width = 2 * spline_halo(spline.order);
  for (int axis = 0; axis < 3; ++axis) {
    Index outer = lead, inner = 1;
    for (int d = 0; d < 3; ++d) (d < axis ? outer : inner) *= d == axis ? 1 : n[d];
    const Index samples = adjoint ? n[axis] - width : n[axis];
    n[axis] += adjoint ? -width : width;
    auto out = s.fresh<float>(outer * n[axis] * inner);
    const auto run = adjoint ? cpu::prefilter_adjoint<float> : cpu::prefilter<float>;
    run(out.data(), x.data(), outer, samples, inner, spline.order, spline.boundary, s.threads);
    x = std::move(out);
  }
  return x;
}

// The last three sizes of an item, and the product of those before them.
inline std::pair<Index, std::array<Index, 3>> volumes(const Item& item) {
  Index lead = 1;
  const int r = item.rank();
  for (int d = 0; d < r - 3; ++d) lead *= item.size[static_cast<std::size_t>(d)];
  return {lead, {item.size[r - 3], item.size[r - 2], item.size[r - 1]}};
}

}  // namespace mrisr::test
