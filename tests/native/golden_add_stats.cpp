#include "golden_maps.h"
#include "group_norm.h"

namespace mrisr::test {
namespace {

// The sum, and its group norm (SiLU, no weights) by the partials that came with it.
Found run(const Case& c, const Setting& s) {
  const Map map(c.at("x"));
  const NormShape shape{map.n, map.channels, map.voxels, c.at("groups").integer(), map.last};
  const auto x = s.given<float>(map.item), y = map.like(c.at("y"), s);
  const auto mask = c.find("mask") ? s.given<std::uint8_t>(c.at("mask")) : s.fresh<std::uint8_t>(0);
  auto partials = s.fresh<double>(partials_size(shape));
  auto sum = s.fresh(map.item.count()), normed = s.fresh(map.item.count());
  cpu::add_stats(partials.data(), sum.data(), x.data(), y.data(), mask.data(), shape, Dtype::f32, s.threads);

  const Index lines = map.n * map.channels;
  auto mean = s.fresh<double>(map.n * shape.groups), rstd = s.fresh<double>(map.n * shape.groups);
  auto a = s.fresh(lines), b = s.fresh(lines), m = s.fresh(lines);
  const Folded folded{a.data(), b.data(), m.data()};
  cpu::group_norm_merge(mean.data(), rstd.data(), partials.data(), map.n, shape.slabs(), shape.groups, 1e-5);
  cpu::group_norm_fold(folded, mean.data(), rstd.data(), {nullptr, nullptr, nullptr, nullptr}, shape);
  cpu::group_norm_apply(normed.data(), sum.data(), folded, Act::silu, shape, Dtype::f32, s.threads);
  auto both = map.values(sum);
  const auto second = map.values(normed);
  both.insert(both.end(), second.begin(), second.end());
  return {{"expected", both}};
}

const Register registered("add_stats", run);

}  // namespace
}  // namespace mrisr::test
