#include "axes.h"

#include <algorithm>
#include <cstring>

#include "shared.h"

namespace mrisr::runtime {

Axes::Axes(const Matrix (&matrices)[3]) {
  for (int axis = 0; axis < 3; ++axis) {
    const Matrix& m = matrices[axis];
    if (m.identity()) continue;
    Packed packed;
    packed.axis = axis;
    packed.bands.resize(static_cast<std::size_t>(cpu::axis_bands(m.rows)));
    packed.coefficients.resize(static_cast<std::size_t>(cpu::axis_coefficients(m.rows, m.cols)));
    packed.matrix = cpu::axis_pack(packed.bands.data(), packed.coefficients.data(), m.values.data(), m.rows, m.cols,
                                   shared::kDrop, axis == 2 ? cpu::Lines::along : cpu::Lines::across);
    packed.coefficients.resize(static_cast<std::size_t>(packed.matrix.size));
    packed.coefficients.shrink_to_fit();
    packed.matrix.coefficients = packed.coefficients.data();
    steps_.push_back(std::move(packed));
  }
  const auto growth = [](const Packed& p) {
    return static_cast<double>(p.matrix.n_out) / static_cast<double>(p.matrix.n_in);
  };
  std::stable_sort(steps_.begin(), steps_.end(),
                   [&](const Packed& a, const Packed& b) { return growth(a) < growth(b); });
  for (Packed& p : steps_) p.matrix.bands = p.bands.data(), p.matrix.coefficients = p.coefficients.data();
}

Triple Axes::result(const Triple& shape) const {
  Triple result = shape;
  for (const Packed& p : steps_) result[p.axis] = p.matrix.n_out;
  return result;
}

std::int64_t Axes::between(const Triple& shape) const {
  Triple now = shape;
  std::int64_t most = 0;
  for (std::size_t i = 0; i + 1 < steps_.size(); ++i) {
    now[steps_[i].axis] = steps_[i].matrix.n_out;
    most = std::max(most, product(now));
  }
  return most;
}

std::int64_t Axes::scratch(int threads) const {
  std::int64_t most = 0;
  for (const Packed& p : steps_) most = std::max<std::int64_t>(most, cpu::axis_scratch(p.matrix.n_in, threads));
  return most;
}

const cpu::AxisMatrix* Axes::matrix(int axis) const {
  const auto found = std::find_if(steps_.begin(), steps_.end(), [&](const Packed& p) { return p.axis == axis; });
  return found == steps_.end() ? nullptr : &found->matrix;
}

void Axes::apply(float* out, const float* x, const Triple& shape, float* a, float* b, float* scratch,
                 int threads) const {
  if (steps_.empty()) {
    std::memcpy(out, x, sizeof(float) * static_cast<std::size_t>(product(shape)));
    return;
  }
  Triple now = shape;
  for (std::size_t i = 0; i < steps_.size(); ++i) {
    float* to = i + 1 == steps_.size() ? out : i % 2 == 0 ? a : b;
    apply_axis(to, x, steps_[i].matrix, now, steps_[i].axis, scratch, threads);
    now[steps_[i].axis] = steps_[i].matrix.n_out;
    x = to;
  }
}

void apply_axis(float* out, const float* x, const cpu::AxisMatrix& matrix, const Triple& shape, int axis,
                float* scratch, int threads) {
  std::int64_t outer = 1, inner = 1;
  for (int d = 0; d < axis; ++d) outer *= shape[d];
  for (int d = axis + 1; d < 3; ++d) inner *= shape[d];
  cpu::axis_apply(out, x, matrix, outer, inner, scratch, threads);
}

}  // namespace mrisr::runtime
