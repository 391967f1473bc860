// Where positions lie among the samples of an axis, and the B-spline weights there, a chunk of positions at a time.
#pragma once

#include <cmath>
#include <cstdint>

#include "isa.h"
#include "resample_prefilter.h"
#include "tensor.h"

namespace mrisr {
namespace cpu {

constexpr Index kChunk = 64;  // target voxels whose taps and weights are found together

// Where a chunk's voxels lie along one axis. tap: first coefficient (the halo counted in); fraction in [0, 1);
// slope: d(held or reflected position) / d(position), 1, -1 or 0.
template <class T>
struct Located {
  std::int32_t tap[kChunk];
  T fraction[kChunk], slope[kChunk];
};

// One axis of the way from target to source voxels.
struct Line {
  double start, step;  // position of voxel v of the chunk: start + step * v (+ displacement)
  Index n;
  Boundary boundary;
};

// The double arithmetic is the same in every function that asks, so that forward and adjoint see one operator.
template <class T>
MRISR_INLINE void locate_body(Located<T>& to, const T* displacement, Index count, const Line& line) {
  const double end = static_cast<double>(line.n - 1);
  if (line.boundary == Boundary::linear) {
    for (Index v = 0; v < count; ++v) {
      const double p = line.start + line.step * static_cast<double>(v) + (displacement ? displacement[v] : T(0));
      double q = p < -0.5 ? -0.5 : p;
      q = q > end + 0.5 ? end + 0.5 : q;
      const double below = std::floor(q);
      to.slope[v] = q == p ? T(1) : p != p ? static_cast<T>(p) : T(0);
      to.fraction[v] = static_cast<T>(q - below);
      to.tap[v] = static_cast<std::int32_t>(below == below ? below : 0.0) + 1;
    }
  } else {
    const double period = line.n > 1 ? 2.0 * end : 1.0;
    for (Index v = 0; v < count; ++v) {
      const double p = line.start + line.step * static_cast<double>(v) + (displacement ? displacement[v] : T(0));
      double q = p - period * std::floor(p / period);
      const bool beyond = q > end;
      q = beyond ? period - q : q;
      q = q > end ? end : q < 0.0 ? 0.0 : q;
      const double below = std::floor(q);
      to.slope[v] = p != p ? static_cast<T>(p) : line.n == 1 ? T(0) : beyond ? T(-1) : T(1);
      to.fraction[v] = static_cast<T>(q - below);
      to.tap[v] = static_cast<std::int32_t>(below == below ? below : 0.0) + 1;
    }
  }
}

// w[tap][voxel], and its derivative by the position where it is asked for: de Boor's recurrence on whole-number knots,
// in which nothing cancels. The derivative is the difference of two neighbours one order lower.
template <class T, int Order>
MRISR_INLINE void weigh(T (*w)[kChunk], T (*dw)[kChunk], const Located<T>& at) {
  for (Index v = 0; v < kChunk; ++v) {
    const T t = at.fraction[v];
    T b[Order + 1];
    b[0] = T(1);
#pragma GCC unroll 8
    for (int d = 1; d < Order; ++d) {
      T carried = T(0);
#pragma GCC unroll 8
      for (int r = 0; r < d; ++r) {
        const T part = b[r] * T(1.0 / d);
        b[r] = carried + (T(r + 1) - t) * part;
        carried = (t + T(d - 1 - r)) * part;
      }
      b[d] = carried;
    }
    if (dw != nullptr) {
      const T slope = at.slope[v];
      dw[0][v] = -b[0] * slope;
#pragma GCC unroll 8
      for (int r = 1; r < Order; ++r) dw[r][v] = (b[r - 1] - b[r]) * slope;
      dw[Order][v] = b[Order - 1] * slope;
    }
    T carried = T(0);
#pragma GCC unroll 8
    for (int r = 0; r < Order; ++r) {
      const T part = b[r] * T(1.0 / Order);
      w[r][v] = carried + (T(r + 1) - t) * part;
      carried = (t + T(Order - 1 - r)) * part;
    }
    w[Order][v] = carried;
  }
}

// Up to kChunk consecutive voxels of one target row.
template <class T, int Order>
struct Chunk {
  Located<T> at[3];
  T w[3][Order + 1][kChunk], dw[3][Order + 1][kChunk];
};

template <class T, int Order>
MRISR_INLINE void prepare(Chunk<T, Order>& chunk, const T* const displacement[3], Index count, const Line line[3],
                          bool derivatives) {
  for (int d = 0; d < 3; ++d) {
    locate_body(chunk.at[d], displacement[d], count, line[d]);
    // The unused end of a chunk is weighed too: it must hold numbers.
    for (Index v = count; v < kChunk; ++v) chunk.at[d].fraction[v] = chunk.at[d].slope[v] = T(0);
    weigh<T, Order>(chunk.w[d], derivatives ? chunk.dw[d] : nullptr, chunk.at[d]);
  }
}

}  // namespace cpu
}  // namespace mrisr
