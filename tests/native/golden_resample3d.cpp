#include "resample.h"

#include <algorithm>
#include <cstring>

#include "golden_prefilter.h"

namespace mrisr::test {
namespace {

// The whole operator: prefilter, sampling, and both derivatives. Without a displacement Python takes a matrix per axis;
// here the positions go through the same sampler, which must agree.
Found run(const Case& c, const Setting& s) {
  const Spline spline(c);
  const Item x = c.at("x").in_rows();
  const auto [lead, size] = volumes(x);
  const Item* field = c.find("displacement");
  const bool each = field != nullptr && field->rank() == 5;
  Sampling sampling{
      each ? field->size[0] : 1, each ? lead / field->size[0] : lead, {}, {}, {}, !each, spline.order, spline.boundary};
  Index padded = lead;
  std::array<Index, 3> extended{};
  for (int d = 0; d < 3; ++d) {
    sampling.source[d] = size[static_cast<std::size_t>(d)];
    sampling.target[d] = c.at("shape").integer(d);
    extended[d] = size[d] + 2 * spline_halo(spline.order);
    padded *= extended[d];
  }
  std::memcpy(sampling.matrix, c.at("matrix").bytes.data(), sizeof sampling.matrix);

  const auto coefficients = all_axes(s.given<float>(x), lead, size, spline, false, s);
  const auto moved = field ? s.given<float>(*field) : s.fresh<float>(0);
  const float* displacement = field ? moved.data() : nullptr;
  auto out = s.fresh<float>(c.at("expected").count());
  cpu::resample3d(out.data(), coefficients.data(), displacement, sampling, s.threads);
  Found found{{"expected", logical(out)}};

  const auto upstream = s.given<float>(c.at("upstream"));
  auto back = s.fresh<float>(padded);
  cpu::resample3d_adjoint(back.data(), displacement, upstream.data(), sampling, s.threads);
  found["d.x"] = logical(all_axes(back, lead, extended, spline, true, s));
  if (field != nullptr) {
    auto slope = s.fresh<float>(field->count());
    cpu::resample3d_slope(slope.data(), coefficients.data(), displacement, upstream.data(), sampling, s.threads);
    found["d.displacement"] = logical(slope);
  }
  return found;
}

const Register registered("resample3d", run);

}  // namespace
}  // namespace mrisr::test
