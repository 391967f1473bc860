#include "resample_prefilter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "transpose.h"

namespace mrisr {

void check_spline(int order, Boundary boundary, const char* op) {
  MRISR_CHECK(order == 1 || order == 3 || order == 5, op << ": order must be 1, 3 or 5; it is " << order);
  MRISR_CHECK(boundary == Boundary::linear || boundary == Boundary::mirror,
              op << ": boundary must be 0 (linear) or 1 (mirror); it is " << static_cast<int>(boundary));
}

namespace cpu {
namespace {

constexpr Index kCols = 32;  // lines filtered together; a row of the scratch is one sample of each

// One root inside the unit circle of the sampled B-spline. start[k]: what sample k adds to the first value of the causal
// recursion, the whole periodic extension summed up; beyond the last entry it is below 2^-60.
struct Pole {
  double root;
  std::vector<double> start;
};

struct Poles {
  double gain = 1.0;  // makes a constant come back
  int sign = +1;      // +1: lines are even about both end samples; -1: odd, with zeros there
  std::vector<Pole> list;
};

Pole pole_of(double root, Index n, int sign) {
  const Index reach = static_cast<Index>(60.0 / -std::log2(std::fabs(root))) + 1, period = 2 * (n - 1);
  const auto power = [&](Index k) { return std::pow(root, static_cast<double>(k)); };
  Pole pole{root, std::vector<double>(static_cast<std::size_t>(std::min(n, reach)))};
  for (Index k = 0; k < static_cast<Index>(pole.start.size()); ++k) {
    const bool end = k == 0 || k == n - 1;
    pole.start[k] = (end ? power(k) : sign * power(k) + power(period - k)) / (1.0 - power(period));
  }
  return pole;
}

Poles poles_of(int order, Index n, Boundary boundary) {
  Poles poles;
  if (order == 1 || n == 1) return poles;
  poles.sign = boundary == Boundary::linear ? -1 : +1;
  poles.gain = order == 3 ? 6.0 : 120.0;
  if (order == 3) {
    poles.list = {pole_of(std::sqrt(3.0) - 2.0, n, poles.sign)};
  } else {
    const double a = std::sqrt(67.5 - std::sqrt(4436.25)), b = std::sqrt(67.5 + std::sqrt(4436.25));
    const double c = std::sqrt(26.25);
    poles.list = {pole_of(a + c - 6.5, n, poles.sign), pole_of(b - c - 6.5, n, poles.sign)};
  }
  return poles;
}

// A row of the scratch that is carried from one to the next in registers: through memory, each would wait for the last
// to be stored.
template <class T>
struct Row {
#if defined(__GNUC__) || defined(__clang__)
  typedef T Lane __attribute__((vector_size(64)));
#else
  typedef T Lane;
#endif
  static constexpr int kLanes = static_cast<int>(kCols * sizeof(T) / sizeof(Lane));
  Lane v[kLanes];

  __attribute__((always_inline)) void load(const T* from) { std::memcpy(v, from, sizeof v); }
  __attribute__((always_inline)) void store(T* to) const { std::memcpy(to, v, sizeof v); }
};

// One pole, in place, lines [n, kCols], n >= 2.
template <class T>
MRISR_INLINE void one_pole(T* lines, Index n, const Pole& pole, int sign) {
  double start[kCols] = {};
  for (std::size_t k = 0; k < pole.start.size(); ++k)
    for (Index c = 0; c < kCols; ++c) start[c] += pole.start[k] * lines[static_cast<Index>(k) * kCols + c];
  for (Index c = 0; c < kCols; ++c) lines[c] = static_cast<T>(start[c]);
  const T z = static_cast<T>(pole.root);
  Row<T> carried, here;
  carried.load(lines);
  for (Index k = 1; k < n; ++k) {
    here.load(lines + k * kCols);
    for (int l = 0; l < Row<T>::kLanes; ++l) carried.v[l] = here.v[l] + z * carried.v[l];
    carried.store(lines + k * kCols);
  }
  T* end = lines + (n - 1) * kCols;
  if (sign > 0) {
    const T scale = static_cast<T>(pole.root / (pole.root * pole.root - 1.0));
    for (Index c = 0; c < kCols; ++c) end[c] = scale * (end[c] + z * end[c - kCols]);
  } else {
    std::fill(end, end + kCols, T(0));
  }
  carried.load(end);
  for (Index k = n - 2; k >= 0; --k) {
    here.load(lines + k * kCols);
    for (int l = 0; l < Row<T>::kLanes; ++l) carried.v[l] = z * (carried.v[l] - here.v[l]);
    carried.store(lines + k * kCols);
  }
  if (sign < 0) std::fill(lines, lines + kCols, T(0));
}

template <class T>
MRISR_INLINE void all_poles(T* lines, Index n, const Poles& poles) {
  const T gain = static_cast<T>(poles.gain);
  for (Index i = 0; i < n * kCols; ++i) lines[i] *= gain;
  for (const Pole& pole : poles.list) one_pole(lines, n, pole, poles.sign);
}

// Odd about the ends: a spline of a straight line is that line, so the line through the two ends is set aside and what
// is left is odd with zero ends. ends: the values at both ends.
template <class T>
MRISR_INLINE void filter_body(T* lines, Index n, const Poles& poles) {
  if (poles.list.empty()) return;
  if (poles.sign > 0) return all_poles(lines, n, poles);
  T first[kCols], last[kCols];
  std::memcpy(first, lines, sizeof first);
  std::memcpy(last, lines + (n - 1) * kCols, sizeof last);
  for (Index k = 0; k < n; ++k) {
    const T u = static_cast<T>(static_cast<double>(k) / static_cast<double>(n - 1));
    for (Index c = 0; c < kCols; ++c) lines[k * kCols + c] -= first[c] * (1 - u) + last[c] * u;
  }
  std::memset(static_cast<void*>(lines), 0, sizeof first);
  std::memset(static_cast<void*>(lines + (n - 1) * kCols), 0, sizeof last);
  all_poles(lines, n, poles);
  for (Index k = 0; k < n; ++k) {
    const T u = static_cast<T>(static_cast<double>(k) / static_cast<double>(n - 1));
    for (Index c = 0; c < kCols; ++c) lines[k * kCols + c] += first[c] * (1 - u) + last[c] * u;
  }
}

// Odd: both the filter between zero ends and the matrix it inverts are symmetric, so only the set-aside line is
// transposed. Even: the matrix is symmetric but for a factor 1/2 at both ends.
template <class T>
MRISR_INLINE void filter_adjoint_body(T* lines, Index n, const Poles& poles, T* copy) {
  if (poles.list.empty()) return;
  T* end = lines + (n - 1) * kCols;
  if (poles.sign > 0) {
    for (Index c = 0; c < kCols; ++c) lines[c] *= 2, end[c] *= 2;
    all_poles(lines, n, poles);
    for (Index c = 0; c < kCols; ++c) lines[c] *= T(0.5), end[c] *= T(0.5);
    return;
  }
  std::memcpy(copy, lines, sizeof(T) * n * kCols);
  std::memset(static_cast<void*>(lines), 0, sizeof(T) * kCols);
  std::memset(static_cast<void*>(end), 0, sizeof(T) * kCols);
  all_poles(lines, n, poles);
  double first[kCols] = {}, last[kCols] = {};
  for (Index k = 0; k < n; ++k) {
    const double u = static_cast<double>(k) / static_cast<double>(n - 1);
    for (Index c = 0; c < kCols; ++c) {
      const double rest = static_cast<double>(copy[k * kCols + c]) - lines[k * kCols + c];
      first[c] += (1 - u) * rest;
      last[c] += u * rest;
    }
  }
  for (Index c = 0; c < kCols; ++c) {
    lines[c] += static_cast<T>(first[c]);
    end[c] += static_cast<T>(last[c]);
  }
}

MRISR_VARIANTS(filter_f32, filter_body, (float* lines, Index n, const Poles& poles), (lines, n, poles))
MRISR_VARIANTS(filter_f64, filter_body, (double* lines, Index n, const Poles& poles), (lines, n, poles))
MRISR_VARIANTS(filter_adjoint_f32, filter_adjoint_body, (float* lines, Index n, const Poles& poles, float* copy),
               (lines, n, poles, copy))
MRISR_VARIANTS(filter_adjoint_f64, filter_adjoint_body, (double* lines, Index n, const Poles& poles, double* copy),
               (lines, n, poles, copy))

void filter(float* lines, Index n, const Poles& p) { filter_f32(lines, n, p); }
void filter(double* lines, Index n, const Poles& p) { filter_f64(lines, n, p); }
void filter_adjoint(float* lines, Index n, const Poles& p, float* copy) { filter_adjoint_f32(lines, n, p, copy); }
void filter_adjoint(double* lines, Index n, const Poles& p, double* copy) { filter_adjoint_f64(lines, n, p, copy); }

// Coefficients past both ends of `inside` [n, kCols]. Taken outwards by turns, each reads one that is already there.
template <class T>
void extend(T* inside, Index n, Index halo, bool odd) {
  T *first = inside, *last = inside + (n - 1) * kCols;
  const Index inwards = n == 1 ? 0 : 1;
  odd = odd && n > 1;
  for (Index k = 1; k <= halo; ++k)
    for (Index c = 0; c < kCols; ++c) {
      const T low = first[inwards * k * kCols + c];
      first[-k * kCols + c] = odd ? 2 * first[c] - low : low;
      const T high = last[-inwards * k * kCols + c];
      last[k * kCols + c] = odd ? 2 * last[c] - high : high;
    }
}

template <class T>
void extend_adjoint(T* inside, Index n, Index halo, bool odd) {
  T *first = inside, *last = inside + (n - 1) * kCols;
  const Index inwards = n == 1 ? 0 : 1;
  odd = odd && n > 1;
  for (Index k = halo; k >= 1; --k)
    for (Index c = 0; c < kCols; ++c) {
      const T high = last[k * kCols + c];
      if (odd) last[c] += 2 * high;
      last[-inwards * k * kCols + c] += odd ? -high : high;
      const T low = first[-k * kCols + c];
      if (odd) first[c] += 2 * low;
      first[inwards * k * kCols + c] += odd ? -low : low;
    }
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

// [count, width] lines of the volume into rows of kCols and back. `step` leads to the next sample of a line, `next` to
// the next line. The missing lines are zero.
template <class T>
void load(T* lines, const T* from, Index count, Index width, Index step, Index next) {
  if (next == 1)
    for (Index k = 0; k < count; ++k) std::memcpy(lines + k * kCols, from + k * step, sizeof(T) * width);
  else
    turn(lines, kCols, from, next, width, count);
  if (width < kCols)
    for (Index k = 0; k < count; ++k) std::fill(lines + k * kCols + width, lines + (k + 1) * kCols, T(0));
}

template <class T>
void store(T* to, const T* lines, Index count, Index width, Index step, Index next) {
  if (next == 1)
    for (Index k = 0; k < count; ++k) std::memcpy(to + k * step, lines + k * kCols, sizeof(T) * width);
  else
    turn(to, next, lines, kCols, count, width);
}

// work(lines, scratch) turns `n_in` rows at lines[in_row] into `n_out` rows at lines[out_row].
template <class T, class Work>
void over_lines(T* out, const T* x, Index outer, Index n_in, Index in_row, Index n_out, Index out_row, Index inner,
                Index rows, int threads, const Work& work) {
  const bool last_axis = inner == 1;
  const Index across = last_axis ? outer : inner, planes = last_axis ? 1 : outer;
  const Index blocks = (across + kCols - 1) / kCols;
  parallel_for(planes * blocks, 2, threads, [&](Index begin, Index end) {
    std::vector<T> storage(static_cast<std::size_t>(2 * rows * kCols));
    T *lines = storage.data(), *scratch = lines + rows * kCols;
    for (Index piece = begin; piece < end; ++piece) {
      const Index plane = piece / blocks, c0 = piece % blocks * kCols, width = std::min(kCols, across - c0);
      const Index next_in = last_axis ? n_in : 1, next_out = last_axis ? n_out : 1;
      load(lines + in_row * kCols, x + plane * n_in * inner + c0 * next_in, n_in, width, inner, next_in);
      work(lines, scratch);
      store(out + plane * n_out * inner + c0 * next_out, lines + out_row * kCols, n_out, width, inner, next_out);
    }
  });
}

template <class T>
bool check(const T* out, const T* x, Index outer, Index n, Index inner, int order, Boundary boundary) {
  check_spline(order, boundary, "prefilter");
  MRISR_CHECK(n > 0, "prefilter: an axis needs at least one sample; it has " << n);
  check_view(contiguous3(x, outer, n + 2 * spline_halo(order), inner), "prefilter", "x");
  check_view(contiguous3(out, outer, n + 2 * spline_halo(order), inner), "prefilter", "out");
  return outer > 0 && inner > 0;
}

}  // namespace

template <class T>
void prefilter(T* out, const T* x, Index outer, Index n, Index inner, int order, Boundary boundary, int threads) {
  if (!check(out, x, outer, n, inner, order, boundary)) return;
  const Index halo = spline_halo(order), rows = n + 2 * halo;
  const Poles poles = poles_of(order, n, boundary);
  const bool odd = boundary == Boundary::linear;
  over_lines(out, x, outer, n, halo, rows, 0, inner, rows, threads, [&](T* lines, T*) {
    filter(lines + halo * kCols, n, poles);
    extend(lines + halo * kCols, n, halo, odd);
  });
}

template <class T>
void prefilter_adjoint(T* out, const T* grad, Index outer, Index n, Index inner, int order, Boundary boundary,
                       int threads) {
  if (!check(out, grad, outer, n, inner, order, boundary)) return;
  const Index halo = spline_halo(order), rows = n + 2 * halo;
  const Poles poles = poles_of(order, n, boundary);
  const bool odd = boundary == Boundary::linear;
  over_lines(out, grad, outer, rows, 0, n, halo, inner, rows, threads, [&](T* lines, T* scratch) {
    extend_adjoint(lines + halo * kCols, n, halo, odd);
    filter_adjoint(lines + halo * kCols, n, poles, scratch);
  });
}

template void prefilter(float*, const float*, Index, Index, Index, int, Boundary, int);
template void prefilter(double*, const double*, Index, Index, Index, int, Boundary, int);
template void prefilter_adjoint(float*, const float*, Index, Index, Index, int, Boundary, int);
template void prefilter_adjoint(double*, const double*, Index, Index, Index, int, Boundary, int);

}  // namespace cpu
}  // namespace mrisr
