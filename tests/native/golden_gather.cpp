#include "tiles.h"
#include "golden.h"

namespace mrisr::test {
namespace {

Found run(const Case& c, const Setting& s) {
  const auto volume = s.given<float>(c.at("volume"));
  const Item &o = c.at("origin"), &expected = c.at("expected");
  const Index origin[3] = {o.integer(0), o.integer(1), o.integer(2)};
  auto tile = s.fresh(expected.count());
  cpu::gather(view3(tile.data(), expected), view3(volume.data(), c.at("volume")), origin, s.threads);
  return {{"expected", logical(tile)}};
}

const Register registered("gather", run);

}  // namespace
}  // namespace mrisr::test
