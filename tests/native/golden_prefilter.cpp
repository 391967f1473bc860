#include "golden_prefilter.h"

namespace mrisr::test {
namespace {

Found run(const Case& c, const Setting& s) {
  const Spline spline(c);
  const Item x = c.at("x").in_rows();
  const auto [lead, size] = volumes(x);
  Found found{{"expected", logical(all_axes(s.given<float>(x), lead, size, spline, false, s))}};
  const auto padded = volumes(c.at("upstream")).second;
  found["d.x"] = logical(all_axes(s.given<float>(c.at("upstream")), lead, padded, spline, true, s));
  return found;
}

const Register registered("prefilter", run);

}  // namespace
}  // namespace mrisr::test
