#include "resample_axes.h"

#include "golden.h"

namespace mrisr::test {
namespace {

constexpr double kDrop = 1e-9;  // as mrisr/ops/resample/axes.py asks for

// The axis is one of the last three; what lies before it counts as outer, what lies after it as inner.
struct Sizes {
  Index outer = 1, inner = 1;
  Sizes(const std::vector<Index>& size, Index axis) {
    for (Index d = 0; d < static_cast<Index>(size.size()); ++d) {
      if (d < axis) outer *= size[static_cast<std::size_t>(d)];
      if (d > axis) inner *= size[static_cast<std::size_t>(d)];
    }
  }
};

Found run(const Case& c, const Setting& s) {
  const Item x = c.at("x").in_rows(), &matrix = c.at("matrix"), &expected = c.at("expected");
  const Sizes sizes(x.size, x.rank() - 3 + c.at("axis").integer());
  const Index n_out = matrix.size[0], n_in = matrix.size[1];
  const auto from = s.given<float>(x);
  const auto coefficients = s.given<double>(matrix);
  auto out = s.fresh(expected.count());
  cpu::axis_apply(out.data(), from.data(), coefficients.data(), sizes.outer, n_in, n_out, sizes.inner, kDrop,
                  s.threads);
  Found found{{"expected", logical(out)}};

  // The gradient is the adjoint: the transposed matrix.
  Buffer<double> transposed(matrix.count(), s.placement);
  for (Index i = 0; i < n_out; ++i)
    for (Index k = 0; k < n_in; ++k) transposed.data()[k * n_out + i] = coefficients[i * n_in + k];
  const auto upstream = s.given<float>(c.at("upstream"));
  auto back = s.fresh(x.count());
  cpu::axis_apply(back.data(), upstream.data(), transposed.data(), sizes.outer, n_out, n_in, sizes.inner, kDrop,
                  s.threads);
  found["d.x"] = logical(back);
  return found;
}

const Register registered("axis_apply", run);

}  // namespace
}  // namespace mrisr::test
