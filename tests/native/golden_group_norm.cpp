#include "golden.h"
#include "group_norm.h"

namespace mrisr::test {
namespace {

Buffer<float> optional(const Case& c, const Setting& s, const char* name) {
  const Item* item = c.find(name);
  return item ? s.given<float>(*item) : s.fresh(0);
}

Found run(const Case& c, const Setting& s) {
  const Item& given = c.at("x");
  const Item item = given.contiguous() || given.channels_last() ? given : given.in_rows();
  const Index n = item.size[0], channels = item.size[1], voxels = item.size[2] * item.size[3] * item.size[4];
  const NormShape shape{n, channels, voxels, c.at("groups").integer(), !item.contiguous()};
  const auto x = s.given<float>(item);
  const auto mask = c.find("mask") ? s.given<std::uint8_t>(c.at("mask")) : s.fresh<std::uint8_t>(0);
  const auto weight = optional(c, s, "weight"), bias = optional(c, s, "bias"), scale = optional(c, s, "scale"),
             shift = optional(c, s, "shift");

  auto partials = s.fresh<double>(partials_size(shape));
  cpu::group_norm_stats(partials.data(), x.data(), mask.data(), shape, s.threads);
  auto mean = s.fresh<double>(n * shape.groups), rstd = s.fresh<double>(n * shape.groups);
  cpu::group_norm_merge(mean.data(), rstd.data(), partials.freeze().data(), n, shape.slabs(), shape.groups, 1e-5);
  auto a = s.fresh(n * channels), b = s.fresh(n * channels), m = s.fresh(n * channels);
  const Folded folded{a.data(), b.data(), m.data()};
  cpu::group_norm_fold(folded, mean.data(), rstd.data(), {weight.data(), bias.data(), scale.data(), shift.data()}, shape);
  auto y = s.fresh(item.count());
  const Act act = c.is("act", "silu") ? Act::silu : Act::none;
  cpu::group_norm_apply(y.data(), x.data(), folded, act, shape, s.threads);
  return {{"expected", logical(y.data(), item.size, item.stride)}};
}

const Register registered("group_norm", run);

}  // namespace
}  // namespace mrisr::test
