#include "tiles.h"

#include "golden.h"

namespace mrisr::test {
namespace {

Found run(const Case& c, const Setting& s) {
  const Item &volume = c.at("volume"), tile = c.at("tile").in_rows();
  Buffer<float> out(volume.bytes.data(), volume.count(), s.placement);  // in place, hence not frozen
  const auto piece = s.given<float>(tile);
  const Buffer<float> w[3] = {s.given<float>(c.at("weights.0")), s.given<float>(c.at("weights.1")),
                              s.given<float>(c.at("weights.2"))};
  const float* const weights[3] = {w[0].data(), w[1].data(), w[2].data()};
  const Item& o = c.at("origin");
  const Index origin[3] = {o.integer(0), o.integer(1), o.integer(2)};
  cpu::blend_add(view3(out.data(), volume), view3(piece.data(), tile), origin, weights, s.threads);
  return {{"expected", logical(out)}};
}

const Register registered("blend", run);

}  // namespace
}  // namespace mrisr::test
