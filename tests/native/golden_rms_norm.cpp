#include "rms_norm.h"
#include "golden_maps.h"

namespace mrisr::test {
namespace {

constexpr double kEps = 1e-4;

Found run(const Case& c, const Setting& s) {
  const Map map(c.at("x"));
  const ChannelShape shape{map.n, map.channels, map.voxels, map.last};
  const auto x = s.given<float>(map.item);
  const auto scale = optional(c, s, "scale"), shift = optional(c, s, "shift");
  auto y = s.fresh(map.item.count());
  cpu::rms_norm(y.data(), x.data(), scale.data(), shift.data(), kEps, act_of(c), shape, Dtype::f32, s.threads);
  Found found{{"expected", map.values(y)}};

  const auto grad = map.like(c.at("upstream"), s);
  auto dx = s.fresh(map.item.count());
  auto sums = s.fresh<double>(map.n * shape.slabs() * map.channels * 2);
  cpu::rms_norm_backward(dx.data(), sums.data(), grad.data(), x.data(), scale.data(), shift.data(), kEps, act_of(c),
                         shape, Dtype::f32, s.threads);
  found["d.x"] = map.values(dx);
  const char* const names[2] = {"d.shift", "d.scale"};
  for (int k = 0; k < 2; ++k) {
    if (!c.find(names[k] + 2)) continue;
    auto& line = found[names[k]];
    line.assign(static_cast<std::size_t>(map.n * map.channels), 0.0);
    for (Index i = 0; i < map.n * shape.slabs() * map.channels; ++i) {
      const Index n = i / (shape.slabs() * map.channels);
      line[static_cast<std::size_t>(n * map.channels + i % map.channels)] += sums[2 * i + k];
    }
  }
  return found;
}

const Register registered("rms_norm", run);

}  // namespace
}  // namespace mrisr::test
