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

// x: [lead, n0, n1, n2]; the result's sizes are grown or shrunk by two halos.
inline Buffer<float> all_axes(const Buffer<float>& x, Index lead, std::array<Index, 3> n, const Spline& spline,
                              bool adjoint, const Setting& s) {
  const Index width = 2 * spline_halo(spline.order);
  Index samples[3], count = lead;
  for (int d = 0; d < 3; ++d) {
    samples[d] = adjoint ? n[d] - width : n[d];
    count *= adjoint ? samples[d] : n[d] + width;
  }
  auto out = s.fresh<float>(count);
  const auto run = adjoint ? cpu::prefilter_adjoint<float> : cpu::prefilter<float>;
  run(out.data(), x.data(), lead, samples, spline.order, spline.boundary, s.threads);
  return out;
}

// The last three sizes of an item, and the product of those before them.
inline std::pair<Index, std::array<Index, 3>> volumes(const Item& item) {
  Index lead = 1;
  const int r = item.rank();
  for (int d = 0; d < r - 3; ++d) lead *= item.size[static_cast<std::size_t>(d)];
  return {lead, {item.size[r - 3], item.size[r - 2], item.size[r - 1]}};
}

}  // namespace mrisr::test
