#include "golden.h"
#include "noise.h"

namespace mrisr::test {
namespace {

Found run(const Case& c, const Setting& s) {
  NoiseBox box{};
  for (int d = 0; d < 3; ++d) {
    box.shape[d] = c.at("shape").integer(d);
    box.origin[d] = c.at("origin").integer(d);
    box.grid[d] = c.at("grid_shape").integer(d);
  }
  box.seed = static_cast<std::uint64_t>(c.at("seed").integer());
  box.sample = static_cast<std::uint32_t>(c.at("sample").integer());
  box.step = static_cast<std::uint32_t>(c.at("step").integer());
  auto out = s.fresh(c.at("expected").count());
  cpu::normal_noise(out.data(), box, s.threads);
  return {{"expected", logical(out)}};
}

const Register registered("noise", run);

}  // namespace
}  // namespace mrisr::test
