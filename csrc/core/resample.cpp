#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "resample_taps.h"

namespace mrisr {

void check_sampling(const Sampling& s, const char* op) {
  check_spline(s.order, s.boundary, op);
  MRISR_CHECK(s.batch >= 0 && s.channels >= 0,
              op << ": batch and channels must not be negative; they are " << s.batch << " and " << s.channels);
  for (int d = 0; d < 3; ++d) {
    MRISR_CHECK(s.source[d] > 0 && s.source[d] < (Index{1} << 30),
                op << ": source[" << d << "] must lie in [1, 2^30); it is " << s.source[d]);
    MRISR_CHECK(s.target[d] >= 0, op << ": target[" << d << "] must not be negative; it is " << s.target[d]);
  }
  for (double m : s.matrix) MRISR_CHECK(std::isfinite(m), op << ": matrix must be finite; it has " << m);
}

namespace cpu {
namespace {

#if defined(__GNUC__) || defined(__clang__)
template <class T, int Lanes>
struct Wide {
  typedef T Vec __attribute__((vector_size(sizeof(T) * Lanes)));
  Vec v;
  __attribute__((always_inline)) void add(T weight, const Wide& x) { v += weight * x.v; }
};
#else
template <class T, int Lanes>
struct Wide {
  T v[Lanes];
  void add(T weight, const Wide& x) {
    for (int i = 0; i < Lanes; ++i) v[i] += weight * x.v[i];
  }
};
#endif

constexpr int lanes_of(int order) { return order == 5 ? 8 : order + 1; }

// Order + 1 coefficients along the last axis; `whole`: reading on to the full width stays inside the volume. What the
// lanes beyond the taps hold never reaches a result.
template <class T, int Order, int Lanes>
MRISR_INLINE Wide<T, Lanes> taps(const T* from, bool whole) {
  Wide<T, Lanes> x{};
  if (whole)
    std::memcpy(&x, from, sizeof(T) * Lanes);
  else
    std::memcpy(&x, from, sizeof(T) * (Order + 1));
  return x;
}

// What a row of target voxels reads: strides and length of one coefficient volume.
struct Volume {
  Index sx, sy, count;
};

template <class T, int Order>
MRISR_INLINE void value_body(T* out, const Chunk<T, Order>& chunk, const T* c, const Volume& vol, Index count) {
  constexpr int kLanes = lanes_of(Order);
  for (Index v = 0; v < count; ++v) {
    const Index first = chunk.at[0].tap[v] * vol.sx + chunk.at[1].tap[v] * vol.sy + chunk.at[2].tap[v];
    const bool whole = first + Order * (vol.sx + vol.sy) + kLanes <= vol.count;
    Wide<T, kLanes> sum{};
    for (int a = 0; a <= Order; ++a) {
      Wide<T, kLanes> plane{};
      for (int b = 0; b <= Order; ++b)
        plane.add(chunk.w[1][b][v], taps<T, Order, kLanes>(c + first + a * vol.sx + b * vol.sy, whole));
      sum.add(chunk.w[0][a][v], plane);
    }
    T total = T(0);
    for (int l = 0; l <= Order; ++l) total += chunk.w[2][l][v] * sum.v[l];
    out[v] = total;
  }
}

// out[3][voxel] += g * the derivatives along the three axes.
template <class T, int Order>
MRISR_INLINE void slope_body(T* const out[3], const Chunk<T, Order>& chunk, const T* c, const T* g, const Volume& vol,
                             Index count) {
  constexpr int kLanes = lanes_of(Order);
  for (Index v = 0; v < count; ++v) {
    const Index first = chunk.at[0].tap[v] * vol.sx + chunk.at[1].tap[v] * vol.sy + chunk.at[2].tap[v];
    const bool whole = first + Order * (vol.sx + vol.sy) + kLanes <= vol.count;
    Wide<T, kLanes> along_x{}, along_y{}, along_z{};
    for (int a = 0; a <= Order; ++a) {
      Wide<T, kLanes> plane{}, slope{};
      for (int b = 0; b <= Order; ++b) {
        const auto x = taps<T, Order, kLanes>(c + first + a * vol.sx + b * vol.sy, whole);
        plane.add(chunk.w[1][b][v], x);
        slope.add(chunk.dw[1][b][v], x);
      }
      along_x.add(chunk.dw[0][a][v], plane);
      along_y.add(chunk.w[0][a][v], slope);
      along_z.add(chunk.w[0][a][v], plane);
    }
    T x = T(0), y = T(0), z = T(0);
    for (int l = 0; l <= Order; ++l) {
      x += chunk.w[2][l][v] * along_x.v[l];
      y += chunk.w[2][l][v] * along_y.v[l];
      z += chunk.dw[2][l][v] * along_z.v[l];
    }
    out[0][v] += g[v] * x;
    out[1][v] += g[v] * y;
    out[2][v] += g[v] * z;
  }
}

// Adds into planes [begin, end) of the coefficients and into no other.
template <class T, int Order>
MRISR_INLINE void scatter_body(T* c, const Chunk<T, Order>& chunk, const T* g, const Volume& vol, Index count,
                               Index begin, Index end) {
  for (Index v = 0; v < count; ++v) {
    const Index plane = chunk.at[0].tap[v], line = chunk.at[1].tap[v] * vol.sy + chunk.at[2].tap[v];
    T along[Order + 1];
    for (int l = 0; l <= Order; ++l) along[l] = g[v] * chunk.w[2][l][v];
    for (int a = 0; a <= Order; ++a) {
      if (plane + a < begin || plane + a >= end) continue;
      for (int b = 0; b <= Order; ++b) {
        const T weight = chunk.w[0][a][v] * chunk.w[1][b][v];
        T* to = c + (plane + a) * vol.sx + line + b * vol.sy;
        for (int l = 0; l <= Order; ++l) to[l] += weight * along[l];
      }
    }
  }
}

// What one call works on. A row is a line of target voxels along the last axis; rows are counted over batch, i and j.
template <class T>
struct Job {
  const Sampling& s;
  const T* displacement;
  Volume vol;
  Index halo, rows, voxels, coefficients;  // rows and voxels of one target volume

  Job(const Sampling& sampling, const T* d)
      : s(sampling),
        displacement(d),
        halo(spline_halo(s.order)),
        rows(s.target[0] * s.target[1]),
        voxels(rows * s.target[2]) {
    vol.sy = s.source[2] + 2 * halo;
    vol.sx = vol.sy * (s.source[1] + 2 * halo);
    vol.count = coefficients = vol.sx * (s.source[0] + 2 * halo);
  }

  Line line(int axis, Index i, Index j, Index k) const {
    const double* m = s.matrix + 4 * axis;
    const double start = m[0] * static_cast<double>(i) + m[1] * static_cast<double>(j) + m[3];
    return {start + m[2] * static_cast<double>(k), m[2], s.source[axis], s.boundary};
  }

  const T* shift(Index batch, int axis, Index row, Index k) const {
    if (displacement == nullptr) return nullptr;
    return displacement + ((s.one_displacement ? 0 : batch) * 3 + axis) * voxels + row * s.target[2] + k;
  }
};

template <class T, int Order>
MRISR_INLINE void prepare_row(Chunk<T, Order>& chunk, const Job<T>& job, Index batch, Index row, Index k, Index count,
                              bool derivatives) {
  const Index i = row / job.s.target[1], j = row % job.s.target[1];
  const T* const shift[3] = {job.shift(batch, 0, row, k), job.shift(batch, 1, row, k), job.shift(batch, 2, row, k)};
  const Line lines[3] = {job.line(0, i, j, k), job.line(1, i, j, k), job.line(2, i, j, k)};
  prepare(chunk, shift, count, lines, derivatives);
}

template <class T, int Order>
MRISR_INLINE void value_row(T* out, const T* c, const Job<T>& job, Index batch, Index row) {
  Chunk<T, Order> chunk;
  for (Index k = 0; k < job.s.target[2]; k += kChunk) {
    const Index count = std::min(kChunk, job.s.target[2] - k);
    prepare_row(chunk, job, batch, row, k, count, false);
    for (Index ch = 0; ch < job.s.channels; ++ch) {
      const Index volume = batch * job.s.channels + ch;
      value_body(out + volume * job.voxels + row * job.s.target[2] + k, chunk, c + volume * job.coefficients, job.vol,
                 count);
    }
  }
}

template <class T, int Order>
MRISR_INLINE void slope_row(T* out, const T* c, const T* g, const Job<T>& job, Index batch, Index row) {
  Chunk<T, Order> chunk;
  for (Index k = 0; k < job.s.target[2]; k += kChunk) {
    const Index count = std::min(kChunk, job.s.target[2] - k), at = row * job.s.target[2] + k;
    prepare_row(chunk, job, batch, row, k, count, true);
    T* const to[3] = {out + (batch * 3 + 0) * job.voxels + at, out + (batch * 3 + 1) * job.voxels + at,
                      out + (batch * 3 + 2) * job.voxels + at};
    for (T* axis : to) std::fill(axis, axis + count, T(0));
    for (Index ch = 0; ch < job.s.channels; ++ch) {
      const Index volume = batch * job.s.channels + ch;
      slope_body(to, chunk, c + volume * job.coefficients, g + volume * job.voxels + at, job.vol, count);
    }
  }
}

template <class T, int Order>
MRISR_INLINE void scatter_row(T* out, const T* g, const Job<T>& job, Index batch, Index row, Index begin, Index end) {
  Chunk<T, Order> chunk;
  for (Index k = 0; k < job.s.target[2]; k += kChunk) {
    const Index count = std::min(kChunk, job.s.target[2] - k), at = row * job.s.target[2] + k;
    prepare_row(chunk, job, batch, row, k, count, false);
    for (Index ch = 0; ch < job.s.channels; ++ch) {
      const Index volume = batch * job.s.channels + ch;
      scatter_body(out + volume * job.coefficients, chunk, g + volume * job.voxels + at, job.vol, count, begin, end);
    }
  }
}

// One function per kind, dtype and order; the last is a constant so that loops over taps unroll.
#define BY_ORDER(row, ...)           \
  switch (job.s.order) {             \
    case 1:                          \
      return row<T, 1>(__VA_ARGS__); \
    case 3:                          \
      return row<T, 3>(__VA_ARGS__); \
    default:                         \
      return row<T, 5>(__VA_ARGS__); \
  }
template <class T>
MRISR_INLINE void value_any(T* out, const T* c, const Job<T>& job, Index batch, Index row) {
  BY_ORDER(value_row, out, c, job, batch, row)
}
template <class T>
MRISR_INLINE void slope_any(T* out, const T* c, const T* g, const Job<T>& job, Index batch, Index row) {
  BY_ORDER(slope_row, out, c, g, job, batch, row)
}
template <class T>
MRISR_INLINE void scatter_any(T* out, const T* g, const Job<T>& job, Index batch, Index row, Index begin, Index end) {
  BY_ORDER(scatter_row, out, g, job, batch, row, begin, end)
}
#undef BY_ORDER

// Smallest and largest first plane that a row's voxels read.
template <class T>
MRISR_INLINE void reach_any(std::int32_t* low, std::int32_t* high, const Job<T>& job, Index batch, Index row) {
  Located<T> at;
  *low = std::numeric_limits<std::int32_t>::max();
  *high = 0;
  for (Index k = 0; k < job.s.target[2]; k += kChunk) {
    const Index count = std::min(kChunk, job.s.target[2] - k);
    locate_body(at, job.shift(batch, 0, row, k), count, job.line(0, row / job.s.target[1], row % job.s.target[1], k));
    for (Index v = 0; v < count; ++v) {
      *low = std::min(*low, at.tap[v]);
      *high = std::max(*high, at.tap[v]);
    }
  }
}

#define BOTH_TYPES(name, body, params, args) \
  namespace f32 {                            \
  using T = float;                           \
  MRISR_VARIANTS(name, body, params, args)   \
  }                                          \
  namespace f64 {                            \
  using T = double;                          \
  MRISR_VARIANTS(name, body, params, args)   \
  }                                          \
  using f32::name;                           \
  using f64::name;
BOTH_TYPES(value_of, value_any, (T * out, const T* c, const Job<T>& job, Index batch, Index row),
           (out, c, job, batch, row))
BOTH_TYPES(slope_of, slope_any, (T * out, const T* c, const T* g, const Job<T>& job, Index batch, Index row),
           (out, c, g, job, batch, row))
BOTH_TYPES(scatter_of, scatter_any,
           (T * out, const T* g, const Job<T>& job, Index batch, Index row, Index begin, Index end),
           (out, g, job, batch, row, begin, end))
BOTH_TYPES(reach_of, reach_any, (std::int32_t* low, std::int32_t* high, const Job<T>& job, Index batch, Index row),
           (low, high, job, batch, row))
#undef BOTH_TYPES

Index grain(const Sampling& s) { return 1 + 2048 / (1 + s.target[2] * s.channels); }

template <class T>
void check_call(const Sampling& s, const T* coefficients, const T* displacement, const T* out, const char* op) {
  check_sampling(s, op);
  const Index halo = 2 * spline_halo(s.order), volumes = s.batch * s.channels;
  const View<const T, 4> c{coefficients, {volumes, s.source[0] + halo, s.source[1] + halo, s.source[2] + halo}, {}};
  check_view(c, op, "coefficients");
  check_view(View<const T, 4>{out, {volumes, s.target[0], s.target[1], s.target[2]}, {}}, op, "target");
  // Null is allowed here: it stands for no displacement.
  if (displacement != nullptr)
    check_view(View<const T, 4>{displacement, {s.batch * 3, s.target[0], s.target[1], s.target[2]}, {}}, op,
               "displacement");
}

}  // namespace

template <class T>
void resample3d(T* out, const T* coefficients, const T* displacement, const Sampling& s, int threads) {
  check_call<T>(s, coefficients, displacement, out, "resample3d");
  const Job<T> job(s, displacement);
  if (job.voxels * s.channels == 0) return;
  parallel_for(s.batch * job.rows, grain(s), threads, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) value_of(out, coefficients, job, r / job.rows, r % job.rows);
  });
}

template <class T>
void resample3d_slope(T* out, const T* coefficients, const T* displacement, const T* grad, const Sampling& s,
                      int threads) {
  check_call<T>(s, coefficients, displacement, grad, "resample3d_slope");
  const Job<T> job(s, displacement);
  if (s.batch * job.voxels == 0) return;
  MRISR_CHECK(out != nullptr, "resample3d_slope: out is a null pointer");
  parallel_for(s.batch * job.rows, grain(s), threads, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) slope_of(out, coefficients, grad, job, r / job.rows, r % job.rows);
  });
}

template <class T>
void resample3d_adjoint(T* out, const T* displacement, const T* grad, const Sampling& s, int threads) {
  check_call<T>(s, out, displacement, grad, "resample3d_adjoint");
  const Job<T> job(s, displacement);
  if (s.batch * s.channels == 0) return;
  // Every task owns a slab of coefficient planes and goes through the rows that reach it.
  const Index rows = job.voxels == 0 ? 0 : job.rows;
  std::vector<std::int32_t> low(static_cast<std::size_t>(s.batch * rows)), high(low.size());
  parallel_for(s.batch * rows, grain(s), threads, [&](Index begin, Index end) {
    for (Index r = begin; r < end; ++r) reach_of(&low[r], &high[r], job, r / rows, r % rows);
  });
  const Index planes = s.source[0] + 2 * job.halo;
  const Index slabs = threads == 1 ? 1 : std::min<Index>(planes, 3 * static_cast<Index>(threads));
  parallel_for(s.batch * slabs, 1, threads, [&](Index from, Index to) {
    for (Index task = from; task < to; ++task) {
      const Index batch = task / slabs, slab = task % slabs;
      const Index begin = planes * slab / slabs, end = planes * (slab + 1) / slabs;
      for (Index ch = 0; ch < s.channels; ++ch) {
        T* c = out + (batch * s.channels + ch) * job.coefficients;
        std::fill(c + begin * job.vol.sx, c + end * job.vol.sx, T(0));
      }
      for (Index row = 0; row < rows; ++row) {
        const std::size_t r = static_cast<std::size_t>(batch * rows + row);
        if (low[r] < end && high[r] + s.order >= begin) scatter_of(out, grad, job, batch, row, begin, end);
      }
    }
  });
}

template void resample3d(float*, const float*, const float*, const Sampling&, int);
template void resample3d(double*, const double*, const double*, const Sampling&, int);
template void resample3d_slope(float*, const float*, const float*, const float*, const Sampling&, int);
template void resample3d_slope(double*, const double*, const double*, const double*, const Sampling&, int);
template void resample3d_adjoint(float*, const float*, const float*, const Sampling&, int);
template void resample3d_adjoint(double*, const double*, const double*, const Sampling&, int);

}  // namespace cpu
}  // namespace mrisr
