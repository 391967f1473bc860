#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention3d.h"
#include "golden.h"

namespace mrisr::test {
namespace {

Buffer<float> optional(const Case& c, const Setting& s, const char* name) {
  const Item* item = c.find(name);
  return item ? s.given<float>(*item) : s.fresh(0);
}

double number(const Case& c, const char* name, double otherwise) {
  const Item* item = c.find(name);
  double value = otherwise;
  if (item != nullptr) std::memcpy(&value, item->bytes.data(), sizeof value);
  return value;
}

// window=None has no item, and neither has the default of 8: the global cases are known by their name.
AttentionShape shape_of(const Case& c, const Item& qkv) {
  AttentionShape shape{};
  shape.n = qkv.size[0];
  shape.heads = c.at("heads").integer();
  shape.head_dim = qkv.size[4] / (3 * shape.heads);
  const bool global = c.name.find("global") != std::string::npos;
  const Index window = c.find("window") ? c.at("window").integer() : 8;
  for (int d = 0; d < 3; ++d) {
    const Item* shift = c.find("shift");
    const Index moved = shift ? shift->integer(shift->count() == 3 ? d : 0) : 0;
    shape.size[d] = qkv.size[static_cast<std::size_t>(d) + 1];
    shape.window[d] = global ? shape.size[d] : window;
    shape.offset[d] = global ? 0 : (moved % window + window) % window;
  }
  std::copy_n(qkv.stride.begin(), 4, shape.stride);
  return shape;
}

std::vector<double> half(const Buffer<float>& gains, Index at, Index count) {
  return {gains.data() + at, gains.data() + at + count};
}

Found run(const Case& c, const Setting& s) {
  const Item& given = c.at("qkv");
  const Item item = given.stride[4] == 1 ? given : given.in_rows();
  const AttentionShape shape = shape_of(c, item);
  const auto qkv = s.given<float>(item);
  const auto mask = c.find("mask") ? s.given<std::uint8_t>(c.at("mask")) : s.fresh<std::uint8_t>(0);
  const auto q_gain = optional(c, s, "q_gain"), k_gain = optional(c, s, "k_gain");
  const double scale = number(c, "scale", 1.0 / std::sqrt(static_cast<double>(shape.head_dim)));
  const AttentionInputs in{qkv.data(), mask.data(), q_gain.data(), k_gain.data(), number(c, "norm_eps", 0.0), scale};

  const Index tokens = shape.n * shape.voxels(), channels = shape.heads * shape.head_dim;
  auto y = s.fresh(tokens * channels), lse = s.fresh(tokens * shape.heads);
  cpu::attention3d(y.data(), lse.data(), in, shape, s.threads);
  auto d_qkv = s.fresh(tokens * channels * 3), d_gains = s.fresh(2 * shape.head_dim);
  const auto upstream = s.given<float>(c.at("upstream"));
  cpu::attention3d_backward(d_qkv.data(), d_gains.data(), upstream.data(), y.freeze().data(), lse.freeze().data(), in,
                            shape, s.threads);
  Found found{{"expected", logical(y)}, {"d.qkv", logical(d_qkv)}};
  if (c.find("q_gain")) found["d.q_gain"] = half(d_gains, 0, shape.head_dim);
  if (c.find("k_gain")) found["d.k_gain"] = half(d_gains, shape.head_dim, shape.head_dim);
  return found;
}

const Register registered("attention3d", run);

}  // namespace
}  // namespace mrisr::test
