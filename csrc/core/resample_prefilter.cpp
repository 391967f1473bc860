#include "resample_prefilter.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "fetch.h"
#include "isa.h"
#include "pages.h"
#include "parallel.h"
#include "resample_poles.h"
#include "transpose.h"

namespace mrisr {

void check_spline(int order, Boundary boundary, const char* op) {
  MRISR_CHECK(order == 1 || order == 3 || order == 5, op << ": order must be 1, 3 or 5; it is " << order);
  MRISR_CHECK(boundary == Boundary::linear || boundary == Boundary::mirror,
              op << ": boundary must be 0 (linear) or 1 (mirror); it is " << static_cast<int>(boundary));
}

namespace cpu {
namespace {

MRISR_VARIANTS(filter_f32, filter_body,
               (Rows<float> to, Rows<const float> from, float* block, Index n, const Poles<float>& poles, Index units,
                bool ramp, LineByLine& soon),
               (to, from, block, n, poles, units, ramp, soon))
MRISR_VARIANTS(filter_f64, filter_body,
               (Rows<double> to, Rows<const double> from, double* block, Index n, const Poles<double>& poles,
                Index units, bool ramp, LineByLine& soon),
               (to, from, block, n, poles, units, ramp, soon))

template <class T>
void filter(Rows<T> to, Rows<const T> from, T* block, Index n, const Poles<T>& poles, Index units, bool ramp,
            LineByLine& soon) {
  if constexpr (sizeof(T) == sizeof(float))
    filter_f32(to, from, block, n, poles, units, ramp, soon);
  else
    filter_f64(to, from, block, n, poles, units, ramp, soon);
}

MRISR_VARIANTS(turn_f32, transpose_body,
               (float* to, Index ld_to, const float* from, Index ld_from, Index rows, Index cols),
               (to, ld_to, from, ld_from, rows, cols))
void turn(float* to, Index ld_to, const float* from, Index ld_from, Index rows, Index cols) {
  turn_f32(to, ld_to, from, ld_from, rows, cols);
}
void turn(double* to, Index ld_to, const double* from, Index ld_from, Index rows, Index cols) {
  transpose_body(to, ld_to, from, ld_from, rows, cols);
}

// Lines that are filtered together: `width` of them, in `units` units. What no line fills is filtered too, and must hold
// numbers.
template <class T>
struct Group {
  Index first, width, units;

  // Group i of those that `lines` lines are cut into, evenly.
  static Index count(Index lines) { return (units_of(lines) + kUnits - 1) / kUnits; }
  static Group of(Index i, Index lines) {
    const Index all = units_of(lines), groups = count(lines), u0 = all * i / groups, u1 = all * (i + 1) / groups;
    return {u0 * kUnit<T>, std::min(lines, u1 * kUnit<T>) - u0 * kUnit<T>, u1 - u0};
  }
  Index ld() const { return units * kUnit<T>; }
  bool whole() const { return width == ld(); }

 private:
  static Index units_of(Index lines) { return (lines + kUnit<T> - 1) / kUnit<T>; }
};

// What happens along one axis: n samples become coefficients and their halos, or the adjoint.
template <class T>
class Axis {
 public:
  Axis(int order, Index n, Boundary boundary, bool adjoint)
      : n_(n),
        halo_(spline_halo(order)),
        odd_(boundary == Boundary::linear),
        adjoint_(adjoint),
        poles_(poles_of<T>(order, n, boundary)) {}

  Index rows() const { return n_ + 2 * halo_; }
  Index n_in() const { return adjoint_ ? rows() : n_; }
  Index n_out() const { return adjoint_ ? n_ : rows(); }

  // Lines that lie beside each other, their samples `pitch` apart. May be in place. block: rows() rows.
  void across(T* to, const T* from, Index pitch, const Group<T>& g, T* block, LineByLine& soon) const {
    if (!adjoint_ && g.whole() && !poles_.list.empty()) {
      const Rows<T> inside{to + halo_ * pitch, pitch};
      filter<T>(inside, {from, pitch}, block, n_, poles_, g.units, true, soon);
      return extend(inside, n_, halo_, odd_, g.width);
    }
    T* const in = adjoint_ ? block : block + halo_ * g.ld();
    for (Index k = 0; k < n_in(); ++k) {
      std::memcpy(in + k * g.ld(), from + k * pitch, sizeof(T) * static_cast<std::size_t>(g.width));
      std::fill(in + k * g.ld() + g.width, in + (k + 1) * g.ld(), T(0));
    }
    run(block, g, soon);
    const T* const out = adjoint_ ? block + halo_ * g.ld() : block;
    for (Index k = 0; k < n_out(); ++k)
      std::memcpy(to + k * pitch, out + k * g.ld(), sizeof(T) * static_cast<std::size_t>(g.width));
  }

  // Lines that lie behind each other.
  void along(T* to, const T* from, const Group<T>& g, T* block, LineByLine& soon) const {
    T* const in = adjoint_ ? block : block + halo_ * g.ld();
    turn(in, g.ld(), from, n_in(), g.width, n_in());
    if (!g.whole())
      for (Index k = 0; k < n_in(); ++k) std::fill(in + k * g.ld() + g.width, in + (k + 1) * g.ld(), T(0));
    run(block, g, soon);
    turn(to, n_out(), adjoint_ ? block + halo_ * g.ld() : block, g.ld(), n_out(), g.width);
  }

 private:
  // A block, in place.
  void run(T* block, const Group<T>& g, LineByLine& soon) const {
    const Rows<T> inside{block + halo_ * g.ld(), g.ld()};
    if (adjoint_) {
      extend_adjoint(inside, n_, halo_, odd_, g.ld());
      if (!poles_.list.empty()) filter_adjoint(inside, g, soon);
    } else {
      if (!poles_.list.empty()) filter<T>(inside, {inside.at, inside.ld}, inside.at, n_, poles_, g.units, true, soon);
      extend(inside, n_, halo_, odd_, g.ld());
    }
  }

  // Odd: both the filter between zero ends and the matrix it inverts are symmetric, so only the set-aside line is
  // transposed. Even: the matrix is symmetric but for a factor 1/2 at both ends.
  void filter_adjoint(Rows<T> rows, const Group<T>& g, LineByLine& soon) const {
    const Index ld = rows.ld;
    T *const lines = rows.at, *const end = lines + (n_ - 1) * ld;
    if (!odd_) {
      for (Index c = 0; c < ld; ++c) lines[c] *= 2, end[c] *= 2;
      filter<T>(rows, {lines, ld}, lines, n_, poles_, g.units, false, soon);
      for (Index c = 0; c < ld; ++c) lines[c] *= T(0.5), end[c] *= T(0.5);
      return;
    }
    double first[kUnits * kUnit<T>] = {}, last[kUnits * kUnit<T>] = {};
    const auto add = [&](double sign) {
      for (Index k = 0; k < n_; ++k) {
        const double u = static_cast<double>(k) / static_cast<double>(n_ - 1);
        for (Index c = 0; c < ld; ++c) {
          first[c] += sign * (1 - u) * lines[k * ld + c];
          last[c] += sign * u * lines[k * ld + c];
        }
      }
    };
    add(1);
    std::fill(lines, lines + ld, T(0));
    std::fill(end, end + ld, T(0));
    filter<T>(rows, {lines, ld}, lines, n_, poles_, g.units, false, soon);
    add(-1);
    for (Index c = 0; c < ld; ++c) {
      lines[c] += static_cast<T>(first[c]);
      end[c] += static_cast<T>(last[c]);
    }
  }

  Index n_, halo_;
  bool odd_, adjoint_;
  Poles<T> poles_;
};

// Memory of one thread: a block of `rows` rows, 64-byte aligned, and `more` elements.
template <class T>
struct Scratch {
  Scratch(Index rows, Index more) : all(new T[static_cast<std::size_t>((rows * kUnits + 1) * kUnit<T> + more)]) {
    const auto over = static_cast<Index>(reinterpret_cast<std::uintptr_t>(all.get()) % 64 / sizeof(T));
    block = all.get() + (kUnit<T> - over) % kUnit<T>;
    rest = block + rows * kUnits * kUnit<T>;
  }

  std::unique_ptr<T[]> all;
  T *block, *rest;
};

// The lines of a group, where they lie behind each other.
template <class T>
LineByLine lines_of(const T* at, const Group<T>& g, Index n) {
  return {at + g.first * n, 1, 0, g.width * n * static_cast<Index>(sizeof(T))};
}

// Both axes of planes, while they are in the cache. Plane i lies at from_of(i) and goes to to_of(i).
template <class T, class To, class From>
void planes(Index count, const To& to_of, const From& from_of, const Axis<T>& y, const Axis<T>& z, int threads) {
  const Index wide = z.n_in(), high = y.n_out(), bytes = static_cast<Index>(sizeof(T));
  const Index beside = Group<T>::count(wide), behind = Group<T>::count(high);
  parallel_for(count, 1, threads, [&](Index begin, Index end) {
    const Scratch<T> s(std::max(y.rows(), z.rows()), high * wide);
    for (Index i = begin; i < end; ++i) {
      for (Index j = 0; j < beside; ++j) {
        const auto group = Group<T>::of(j, wide);
        LineByLine soon = j + 1 == beside ? lines_of(to_of(i), Group<T>::of(0, high), z.n_out()) : LineByLine();
        y.across(s.rest + group.first, from_of(i) + group.first, wide, group, s.block, soon);
      }
      for (Index j = 0; j < behind; ++j) {
        const auto group = Group<T>::of(j, high);
        LineByLine soon = j + 1 < behind ? lines_of(to_of(i), Group<T>::of(j + 1, high), z.n_out())
                          : i + 1 < end  ? LineByLine(from_of(i + 1), 1, 0, y.n_in() * wide * bytes)
                                         : LineByLine();
        z.along(to_of(i) + group.first * z.n_out(), s.rest + group.first * wide, group, s.block, soon);
      }
    }
  });
}

// One axis of volumes [outer, n, inner], which may be in place where the samples of a line are.
template <class T, class To, class From>
void columns(Index outer, Index inner, const To& to_of, const From& from_of, const Axis<T>& x, int threads) {
  const Index groups = Group<T>::count(inner), bytes = static_cast<Index>(sizeof(T));
  parallel_for(outer * groups, 2, threads, [&](Index begin, Index end) {
    const Scratch<T> s(x.rows(), 0);
    for (Index i = begin; i < end; ++i) {
      const auto group = Group<T>::of(i % groups, inner), next = Group<T>::of((i + 1) % groups, inner);
      LineByLine soon;
      if (i + 1 < end) soon = {from_of((i + 1) / groups) + next.first, x.n_in(), inner * bytes, next.width * bytes};
      x.across(to_of(i / groups) + group.first, from_of(i / groups) + group.first, inner, group, s.block, soon);
    }
  });
}

template <class T>
struct Volume {
  Axis<T> x, y, z;
  Volume(const Index (&n)[3], int order, Boundary boundary, bool adjoint)
      : x(order, n[0], boundary, adjoint), y(order, n[1], boundary, adjoint), z(order, n[2], boundary, adjoint) {}
};

template <class T>
bool check(const T* out, const T* x, Index outer, const Index (&n)[3], int order, Boundary boundary) {
  check_spline(order, boundary, "prefilter");
  const Index more = 2 * spline_halo(order);
  for (const Index samples : n)
    MRISR_CHECK(samples > 0, "prefilter: an axis needs at least one sample; it has " << samples);
  const T one{};
  check_view(contiguous3(&one, n[0] + more, n[1] + more, n[2] + more), "prefilter", "a volume");
  const Index plane = (n[1] + more) * (n[2] + more);
  check_view(contiguous3(x, outer, n[0] + more, plane), "prefilter", "x");
  check_view(contiguous3(out, outer, n[0] + more, plane), "prefilter", "out");
  return outer > 0;
}

}  // namespace

template <class T>
void prefilter(T* out, const T* x, Index outer, const Index (&n)[3], int order, Boundary boundary, int threads) {
  if (!check(out, x, outer, n, order, boundary)) return;
  const Volume<T> v(n, order, boundary, false);
  const Index plane = v.y.rows() * v.z.rows(), volume = v.x.rows() * plane, halo = spline_halo(order);
  ask_for_large_pages(out, outer * volume * static_cast<Index>(sizeof(T)));
  const auto inside = [&](Index o) { return out + o * volume + halo * plane; };
  planes<T>(
      outer * n[0], [&](Index i) { return inside(i / n[0]) + i % n[0] * plane; },
      [&](Index i) { return x + i * n[1] * n[2]; }, v.y, v.z, threads);
  columns<T>(outer, plane, [&](Index o) { return out + o * volume; }, inside, v.x, threads);
}

template <class T>
void prefilter_adjoint(T* out, const T* grad, Index outer, const Index (&n)[3], int order, Boundary boundary,
                       int threads) {
  if (!check(out, grad, outer, n, order, boundary)) return;
  const Volume<T> v(n, order, boundary, true);
  const Index wide = v.x.rows(), plane = n[1] * n[2];
  const std::unique_ptr<T[]> between(new T[static_cast<std::size_t>(outer * wide * plane)]);
  ask_for_large_pages(between.get(), outer * wide * plane * static_cast<Index>(sizeof(T)));
  ask_for_large_pages(out, outer * n[0] * plane * static_cast<Index>(sizeof(T)));
  planes<T>(
      outer * wide, [&](Index i) { return between.get() + i * plane; },
      [&](Index i) { return grad + i * v.y.rows() * v.z.rows(); }, v.y, v.z, threads);
  columns<T>(
      outer, plane, [&](Index o) { return out + o * n[0] * plane; },
      [&](Index o) { return between.get() + o * wide * plane; }, v.x, threads);
}

template void prefilter(float*, const float*, Index, const Index (&)[3], int, Boundary, int);
template void prefilter(double*, const double*, Index, const Index (&)[3], int, Boundary, int);
template void prefilter_adjoint(float*, const float*, Index, const Index (&)[3], int, Boundary, int);
template void prefilter_adjoint(double*, const double*, Index, const Index (&)[3], int, Boundary, int);

}  // namespace cpu
}  // namespace mrisr
