// The recursions of the B-spline prefilter on many lines at once, whose samples lie in rows: one of each line.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "fetch.h"
#include "isa.h"
#include "resample_prefilter.h"

namespace mrisr {
namespace cpu {

// Lines are taken by units of 64 bytes, kUnits at most: a step of a recursion waits four cycles for the last one, in
// which four vectors are computed, and a block of such rows stays in the L1 cache.
constexpr int kUnits = 4;

template <class T>
constexpr Index kUnit = 64 / static_cast<Index>(sizeof(T));

// One root inside the unit circle of the sampled B-spline. start[k]: what sample k adds to the first value of the causal
// recursion, the whole periodic extension summed up; what lies beyond the last entry is below the roundings.
template <class T>
struct Pole {
  T root, ends;  // ends: 1 / (1 - root^2)
  std::vector<T> start;
};

template <class T>
struct Poles {
  T gain = 1;    // makes a constant come back, and takes the factor -root out of every anticausal recursion
  int sign = 1;  // +1: lines are even about both end samples; -1: odd, with zeros there
  std::vector<Pole<T>> list;
};

template <class T>
Pole<T> pole_of(double root, Index n, int sign) {
  constexpr double bits = sizeof(T) == sizeof(float) ? 32 : 60;
  const Index reach = static_cast<Index>(bits / -std::log2(std::fabs(root))) + 1, period = 2 * (n - 1);
  const auto power = [&](Index k) { return std::pow(root, static_cast<double>(k)); };
  Pole<T> pole{static_cast<T>(root), static_cast<T>(1.0 / (1.0 - root * root)), {}};
  for (Index k = 0; k < std::min(n, reach); ++k) {
    const bool end = k == 0 || k == n - 1;
    pole.start.push_back(
        static_cast<T>((end ? power(k) : sign * power(k) + power(period - k)) / (1.0 - power(period))));
  }
  return pole;
}

template <class T>
Poles<T> poles_of(int order, Index n, Boundary boundary) {
  Poles<T> poles;
  if (order == 1 || n == 1) return poles;
  poles.sign = boundary == Boundary::linear ? -1 : +1;
  double gain = order == 3 ? 6.0 : 120.0;
  const double a = std::sqrt(67.5 - std::sqrt(4436.25)), b = std::sqrt(67.5 + std::sqrt(4436.25));
  const double c = std::sqrt(26.25);
  const std::vector<double> roots =
      order == 3 ? std::vector<double>{std::sqrt(3.0) - 2.0} : std::vector<double>{a + c - 6.5, b - c - 6.5};
  for (const double root : roots) {
    gain *= -root;
    poles.list.push_back(pole_of<T>(root, n, poles.sign));
  }
  poles.gain = static_cast<T>(gain);
  return poles;
}

// A row of N units, in registers.
template <class T, int N>
struct Row {
#if defined(__GNUC__) || defined(__clang__)
  typedef T Lane __attribute__((vector_size(64)));
#else
  typedef T Lane;
#endif
  static constexpr int kLanes = N * 64 / static_cast<int>(sizeof(Lane));
  Lane v[kLanes];

  __attribute__((always_inline)) void load(const T* from) {
#pragma GCC unroll 4
    for (int l = 0; l < kLanes; ++l) std::memcpy(&v[l], from + l * (sizeof(Lane) / sizeof(T)), sizeof(Lane));
  }
  __attribute__((always_inline)) void store(T* to) const {
#pragma GCC unroll 4
    for (int l = 0; l < kLanes; ++l) std::memcpy(to + l * (sizeof(Lane) / sizeof(T)), &v[l], sizeof(Lane));
  }
};

// Rows of lines: sample k of N units of them at at + k * ld.
template <class T>
struct Rows {
  T* at;
  Index ld;
};

// Odd about the ends: a spline of a straight line is that line, so the line through the two ends is set aside and what
// is left is odd with zero ends.
template <class T, int N>
struct Ramp {
  Row<T, N> first, last;
  Index n;

  __attribute__((always_inline)) void add(Row<T, N>& row, Index k, T sign) const {
    const T u = sign * static_cast<T>(static_cast<double>(k) / static_cast<double>(n - 1));
#pragma GCC unroll 4
    for (int l = 0; l < Row<T, N>::kLanes; ++l) row.v[l] = (row.v[l] + first.v[l] * (sign - u)) + last.v[l] * u;
  }
};

// One pole of n >= 2 samples: read(k) gives rows, write(k, row) takes them back, and what lies between is in the block.
// Everything is multiplied by `gain` on the way. soon: fetched meanwhile.
template <class T, int N, class Read, class Write>
MRISR_INLINE void one_pole(const Read& read, const Write& write, T* block, Index n, const Pole<T>& pole, int sign,
                           T gain, LineByLine& soon) {
  constexpr int kLanes = Row<T, N>::kLanes;
  constexpr Index ld = N * kUnit<T>;
  const T z = pole.root;
  Row<T, N> carried{}, here;
  for (Index k = static_cast<Index>(pole.start.size()) - 1; k >= 0; --k) {
    here = read(k);
#pragma GCC unroll 4
    for (int l = 0; l < kLanes; ++l) carried.v[l] += pole.start[static_cast<std::size_t>(k)] * here.v[l];
  }
#pragma GCC unroll 4
  for (int l = 0; l < kLanes; ++l) carried.v[l] *= gain;
  carried.store(block);
  // The carried row in the first product: it is the one that is fused, and the only one that is waited for.
  for (Index k = 1; k < n; ++k) {
    soon.one();
    here = read(k);
#pragma GCC unroll 4
    for (int l = 0; l < kLanes; ++l) carried.v[l] = z * carried.v[l] + gain * here.v[l];
    carried.store(block + k * ld);
  }
  here.load(block + (n - 2) * ld);
#pragma GCC unroll 4
  for (int l = 0; l < kLanes; ++l)
    carried.v[l] = sign > 0 ? pole.ends * (carried.v[l] + z * here.v[l]) : T(0) * carried.v[l];
  write(n - 1, carried);
  for (Index k = n - 2; k > 0; --k) {
    soon.one();
    here.load(block + k * ld);
#pragma GCC unroll 4
    for (int l = 0; l < kLanes; ++l) carried.v[l] = z * carried.v[l] + here.v[l];
    write(k, carried);
  }
  here.load(block);
#pragma GCC unroll 4
  for (int l = 0; l < kLanes; ++l) carried.v[l] = sign > 0 ? z * carried.v[l] + here.v[l] : T(0) * carried.v[l];
  write(0, carried);
}

// to = coefficients of from; both may be the same rows, and those of the block [n, N units] too.
template <class T, int N, bool kOdd>
MRISR_INLINE void filter_rows(Rows<T> to, Rows<const T> from, T* block, Index n, const Poles<T>& poles,
                              LineByLine& soon) {
  constexpr Index ld = N * kUnit<T>;
  Ramp<T, N> ramp;
  ramp.n = n;
  if constexpr (kOdd) ramp.first.load(from.at), ramp.last.load(from.at + (n - 1) * from.ld);
  const auto given = [&](Index k) __attribute__((always_inline)) {
    Row<T, N> row;
    row.load(from.at + k * from.ld);
    if constexpr (kOdd) ramp.add(row, k, T(-1));
    return row;
  };
  const auto result = [&](Index k, Row<T, N> row) __attribute__((always_inline)) {
    if constexpr (kOdd) ramp.add(row, k, T(1));
    row.store(to.at + k * to.ld);
  };
  const auto inside = [&](Index k) __attribute__((always_inline)) {
    Row<T, N> row;
    row.load(block + k * ld);
    return row;
  };
  const auto back = [&](Index k, const Row<T, N>& row) __attribute__((always_inline)) { row.store(block + k * ld); };
  const Pole<T>* const pole = poles.list.data();
  if (poles.list.size() == 1) return one_pole<T, N>(given, result, block, n, pole[0], poles.sign, poles.gain, soon);
  one_pole<T, N>(given, back, block, n, pole[0], poles.sign, poles.gain, soon);
  one_pole<T, N>(inside, result, block, n, pole[1], poles.sign, T(1), soon);
}

// ramp: whether the line through the ends is set aside where lines are odd; without it they must end in zeros.
template <class T>
MRISR_INLINE void filter_body(Rows<T> to, Rows<const T> from, T* block, Index n, const Poles<T>& poles, Index units,
                              bool ramp, LineByLine& soon) {
  ramp = ramp && poles.sign < 0;
  if (units == 4)
    return ramp ? filter_rows<T, 4, true>(to, from, block, n, poles, soon)
                : filter_rows<T, 4, false>(to, from, block, n, poles, soon);
  if (units == 3)
    return ramp ? filter_rows<T, 3, true>(to, from, block, n, poles, soon)
                : filter_rows<T, 3, false>(to, from, block, n, poles, soon);
  if (units == 2)
    return ramp ? filter_rows<T, 2, true>(to, from, block, n, poles, soon)
                : filter_rows<T, 2, false>(to, from, block, n, poles, soon);
  return ramp ? filter_rows<T, 1, true>(to, from, block, n, poles, soon)
              : filter_rows<T, 1, false>(to, from, block, n, poles, soon);
}

// Coefficients past both ends of n rows. Taken outwards by turns, each reads one that is already there.
template <class T>
void extend(Rows<T> inside, Index n, Index halo, bool odd, Index width) {
  const Index inwards = n == 1 ? 0 : inside.ld;
  T *first = inside.at, *last = first + (n - 1) * inside.ld;
  odd = odd && n > 1;
  for (Index k = 1; k <= halo; ++k)
    for (Index c = 0; c < width; ++c) {
      const T low = first[inwards * k + c];
      first[-k * inside.ld + c] = odd ? 2 * first[c] - low : low;
      const T high = last[-inwards * k + c];
      last[k * inside.ld + c] = odd ? 2 * last[c] - high : high;
    }
}

template <class T>
void extend_adjoint(Rows<T> inside, Index n, Index halo, bool odd, Index width) {
  const Index inwards = n == 1 ? 0 : inside.ld;
  T *first = inside.at, *last = first + (n - 1) * inside.ld;
  odd = odd && n > 1;
  for (Index k = halo; k >= 1; --k)
    for (Index c = 0; c < width; ++c) {
      const T high = last[k * inside.ld + c];
      if (odd) last[c] += 2 * high;
      last[-inwards * k + c] += odd ? -high : high;
      const T low = first[-k * inside.ld + c];
      if (odd) first[c] += 2 * low;
      first[inwards * k + c] += odd ? -low : low;
    }
}

}  // namespace cpu
}  // namespace mrisr
