#include <algorithm>

#include "golden_maps.h"
#include "group_norm.h"

namespace mrisr::test {
namespace {

double number(const Buffer<float>& values, Index at, double absent) {
  return values.count() ? static_cast<double>(values[at]) : absent;
}

Found run(const Case& c, const Setting& s) {
  const Map map(c.at("x"));
  const Index n = map.n, channels = map.channels;
  const NormShape shape{n, channels, map.voxels, c.at("groups").integer(), map.last};
  const auto x = s.given<float>(map.item);
  const auto mask = c.find("mask") ? s.given<std::uint8_t>(c.at("mask")) : s.fresh<std::uint8_t>(0);
  const auto weight = optional(c, s, "weight"), bias = optional(c, s, "bias"), scale = optional(c, s, "scale"),
             shift = optional(c, s, "shift");

  auto partials = s.fresh<double>(partials_size(shape));
  cpu::group_norm_stats(partials.data(), x.data(), mask.data(), shape, Dtype::f32, s.threads);
  auto mean = s.fresh<double>(n * shape.groups), rstd = s.fresh<double>(n * shape.groups);
  cpu::group_norm_merge(mean.data(), rstd.data(), partials.freeze().data(), n, shape.slabs(), shape.groups, 1e-5);
  auto a = s.fresh(n * channels), b = s.fresh(n * channels), m = s.fresh(n * channels);
  const Folded folded{a.data(), b.data(), m.data()};
  cpu::group_norm_fold(folded, mean.data(), rstd.data(), {weight.data(), bias.data(), scale.data(), shift.data()},
                       shape);
  auto y = s.fresh(map.item.count());
  cpu::group_norm_apply(y.data(), x.data(), folded, act_of(c), shape, Dtype::f32, s.threads);
  Found found{{"expected", map.values(y)}};

  // Backward: the two kernels, and between them what mrisr.ops.group_norm.through_statistics does.
  const auto grad = map.like(c.at("upstream"), s);
  auto sums = s.fresh<double>(n * shape.slabs() * channels * 2);
  cpu::group_norm_backward_sums(sums.data(), grad.data(), x.data(), folded, act_of(c), shape, Dtype::f32, s.threads);
  std::vector<double> d_offset(static_cast<std::size_t>(n * channels)), d_gain(d_offset.size());
  auto p = s.fresh(n * channels), u = s.fresh(n * channels), v = s.fresh(n * channels);
  for (Index i = 0; i < n; ++i) {
    double count = mask.count() ? 0.0 : static_cast<double>(map.voxels);
    for (Index k = 0; k < map.voxels && mask.count(); ++k) count += mask[i * map.voxels + k] != 0;
    for (Index g = 0; g < shape.groups; ++g) {
      const double r = rstd[i * shape.groups + g], mu = mean[i * shape.groups + g];
      const double rest = mu - static_cast<float>(mu),
                   values = std::max(1.0, count) * static_cast<double>(shape.per_group());
      double over_offset = 0, over_gain = 0;
      for (Index k = g * shape.per_group(); k < (g + 1) * shape.per_group(); ++k) {
        const auto at = static_cast<std::size_t>(i * channels + k);
        double first = 0, second = 0;
        for (Index slab = 0; slab < shape.slabs(); ++slab) {
          first += sums[((i * shape.slabs() + slab) * channels + k) * 2];
          second += sums[((i * shape.slabs() + slab) * channels + k) * 2 + 1];
        }
        d_offset[at] = first;
        d_gain[at] = r * (second - rest * first);
        const double gain = number(weight, k, 1.0) * (1.0 + number(scale, i * channels + k, 0.0));
        over_offset += gain * d_offset[at] / values;
        over_gain += gain * d_gain[at] / values;
      }
      for (Index k = g * shape.per_group(); k < (g + 1) * shape.per_group(); ++k) {
        const Index at = i * channels + k;
        const double gain = number(weight, k, 1.0) * (1.0 + number(scale, at, 0.0)), slope = over_gain * r * r;
        p.data()[at] = static_cast<float>(gain * r);
        u.data()[at] = static_cast<float>(over_offset * r - slope * rest);
        v.data()[at] = static_cast<float>(slope);
      }
    }
  }
  auto dx = s.fresh(map.item.count());
  cpu::group_norm_backward_apply(dx.data(), grad.data(), x.data(), folded, {p.data(), u.data(), v.data()}, mask.data(),
                                 act_of(c), shape, Dtype::f32, s.threads);
  found["d.x"] = map.values(dx);
  for (const char* name : {"weight", "bias", "scale", "shift"}) {
    if (!c.find(name)) continue;
    const bool per_sample = name[0] == 's', of_gain = name[0] == 'w' || name[1] == 'c';
    auto& line = found[std::string("d.") + name];
    line.assign(static_cast<std::size_t>(per_sample ? n * channels : channels), 0.0);
    for (Index at = 0; at < n * channels; ++at) {
      const auto k = static_cast<std::size_t>(at);
      const Index channel = at % channels;
      const double one = 1.0 + number(scale, at, 0.0);
      if (!per_sample)
        line[static_cast<std::size_t>(channel)] += (of_gain ? d_gain[k] : d_offset[k]) * one;
      else
        line[k] =
            of_gain ? d_gain[k] * number(weight, channel, 1.0) + d_offset[k] * number(bias, channel, 0.0) : d_offset[k];
    }
  }
  return found;
}

const Register registered("group_norm", run);

}  // namespace
}  // namespace mrisr::test
