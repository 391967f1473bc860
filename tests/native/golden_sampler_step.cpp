#include "sampling.h"

#include <algorithm>
#include <cmath>

#include "golden.h"

namespace mrisr::test {
namespace {

float bound(const Case& c, const char* name) {
  double value;
  std::memcpy(&value, c.at(name).bytes.data(), sizeof value);
  return static_cast<float>(value);
}

Found run(const Case& c, const Setting& s) {
  const Item& size = c.at("x");
  const auto x = s.given<float>(size), f = s.given<float>(c.at("f")), table = s.given<float>(c.at("table"));
  const auto clock = s.given<std::int64_t>(c.at("clock"));
  const Item nothing{Kind::f32, {0}, {1}, {}};
  const auto before = s.given<float>(c.find("before") ? c.at("before") : nothing);
  SamplerStep step{};
  step.x = x.data();
  step.f = f.data();
  step.before = c.find("before") ? before.data() : nullptr;
  step.table = table.data();
  step.rows = c.at("table").size[0];
  step.clock = clock.data();
  step.noise = c.at("noise").integer() != 0;
  step.low = bound(c, "low");
  step.high = bound(c, "high");
  step.count = size.count();
  const bool stored = std::isfinite(step.low) || std::isfinite(step.high);
  auto next = s.fresh(size.count()), x0 = s.fresh(size.count());
  step.next = next.data();
  step.x0 = stored ? x0.data() : nullptr;
  cpu::sampler_step(step, s.threads);
  std::vector<double> both = logical(next);
  const auto second = stored ? logical(x0) : logical(f);
  both.insert(both.end(), second.begin(), second.end());
  return {{"expected", both}};
}

const Register registered("sampler_step", run);

}  // namespace
}  // namespace mrisr::test
