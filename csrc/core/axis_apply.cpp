#include "axis_apply.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace mrisr {
namespace cpu {
namespace {

constexpr Index kRows = 4;   // output samples computed together: each loaded input vector is used four times
constexpr Index kCols = 32;  // lines of the volume computed together

// Four rows of the matrix and the range of columns where any of them is not (nearly) zero, packed [k][row].
struct Band {
  Index first, count;
  std::size_t at;
};

struct Banded {
  std::vector<Band> bands;
  std::vector<float> coefficients;
};

Banded pack(const double* matrix, Index n_out, Index n_in, double drop) {
  Banded packed;
  for (Index i0 = 0; i0 < n_out; i0 += kRows) {
    const Index rows = std::min(kRows, n_out - i0);
    Index first = n_in, last = -1;
    for (Index r = 0; r < rows; ++r) {
      const double* row = matrix + (i0 + r) * n_in;
      double largest = 0;
      for (Index k = 0; k < n_in; ++k) largest = std::max(largest, std::fabs(row[k]));
      // Not `>`: a NaN entry belongs to the band, so that it reaches the output.
      const auto counts = [&](Index k) { return !(std::fabs(row[k]) <= drop * largest); };
      for (Index k = 0; k < first; ++k)
        if (counts(k)) first = k;
      for (Index k = n_in - 1; k > last; --k)
        if (counts(k)) last = k;
    }
    const Index count = std::max<Index>(0, last - first + 1);
    packed.bands.push_back({count ? first : 0, count, packed.coefficients.size()});
    for (Index k = first; k < first + count; ++k)
      for (Index r = 0; r < kRows; ++r)
        packed.coefficients.push_back(r < rows ? static_cast<float>(matrix[(i0 + r) * n_in + k]) : 0.0f);
  }
  return packed;
}

#if defined(__GNUC__) || defined(__clang__)
typedef float Vec __attribute__((vector_size(64), aligned(64)));

// to[r][c] = sum_k coefficients[k][r] * lines[k][c], lines [count, kCols] 64-byte aligned.
MRISR_INLINE void dot_block_body(float* to, const float* coefficients, const float* lines, Index count) {
  Vec a0{}, a1{}, b0{}, b1{}, c0{}, c1{}, d0{}, d1{};
  for (Index k = 0; k < count; ++k) {
    const Vec x0 = *reinterpret_cast<const Vec*>(lines + k * kCols);
    const Vec x1 = *reinterpret_cast<const Vec*>(lines + k * kCols + 16);
    const float* m = coefficients + k * kRows;
    a0 += m[0] * x0;
    a1 += m[0] * x1;
    b0 += m[1] * x0;
    b1 += m[1] * x1;
    c0 += m[2] * x0;
    c1 += m[2] * x1;
    d0 += m[3] * x0;
    d1 += m[3] * x1;
  }
  Vec* out = reinterpret_cast<Vec*>(to);
  out[0] = a0, out[1] = a1, out[2] = b0, out[3] = b1, out[4] = c0, out[5] = c1, out[6] = d0, out[7] = d1;
}
#else
MRISR_INLINE void dot_block_body(float* to, const float* coefficients, const float* lines, Index count) {
  for (Index i = 0; i < kRows * kCols; ++i) to[i] = 0.0f;
  for (Index k = 0; k < count; ++k)
    for (Index r = 0; r < kRows; ++r)
      for (Index c = 0; c < kCols; ++c) to[r * kCols + c] += coefficients[k * kRows + r] * lines[k * kCols + c];
}
#endif
MRISR_VARIANTS(dot_block, dot_block_body, (float* to, const float* coefficients, const float* lines, Index count),
               (to, coefficients, lines, count))

// [rows, cols] with row stride ld -> [cols, kCols], the missing lines zero.
void transpose_in(float* to, const float* from, Index rows, Index cols, Index ld) {
  constexpr Index kStrip = 16;  // columns written while the source lines stay in cache
  for (Index k0 = 0; k0 < cols; k0 += kStrip)
    for (Index r = 0; r < rows; ++r)
      for (Index k = k0; k < std::min(cols, k0 + kStrip); ++k) to[k * kCols + r] = from[r * ld + k];
}

struct Scratch {
  explicit Scratch(Index n_in) : storage(static_cast<std::size_t>((n_in + kRows) * kCols + 16), 0.0f) {
    const auto address = reinterpret_cast<std::uintptr_t>(storage.data());
    lines = storage.data() + (64 - address % 64) % 64 / sizeof(float);
    block = lines + n_in * kCols;
  }
  std::vector<float> storage;
  float *lines, *block;
};

}  // namespace

void axis_apply(float* out, const float* x, const double* matrix, Index outer, Index n_in, Index n_out, Index inner,
                double drop, int threads) {
  check_view(contiguous3(out, outer, n_out, inner), "axis_apply", "out");
  check_view(contiguous3(x, outer, n_in, inner), "axis_apply", "x");
  MRISR_CHECK(n_in > 0 && n_out > 0, "axis_apply: matrix must not be empty; it is " << n_out << " x " << n_in);
  MRISR_CHECK(matrix != nullptr, "axis_apply: matrix is a null pointer");
  MRISR_CHECK(drop >= 0 && drop < 1, "axis_apply: drop must lie in [0, 1); it is " << drop);
  if (outer == 0 || inner == 0) return;
  const Banded packed = pack(matrix, n_out, n_in, drop);
  const bool last_axis = inner == 1;
  const Index lines = last_axis ? outer : inner;
  const Index blocks = (lines + kCols - 1) / kCols, planes = last_axis ? 1 : outer;

  parallel_for(planes * blocks, 2, threads, [&](Index begin, Index end) {
    Scratch scratch(n_in);
    for (Index piece = begin; piece < end; ++piece) {
      const Index plane = piece / blocks, c0 = piece % blocks * kCols, width = std::min(kCols, lines - c0);
      if (last_axis) {
        transpose_in(scratch.lines, x + c0 * n_in, width, n_in, n_in);
      } else {
        const float* from = x + plane * n_in * inner + c0;
        for (Index k = 0; k < n_in; ++k) std::memcpy(scratch.lines + k * kCols, from + k * inner, sizeof(float) * width);
      }
      for (std::size_t b = 0; b < packed.bands.size(); ++b) {
        const Band& band = packed.bands[b];
        const Index i0 = static_cast<Index>(b) * kRows, rows = std::min(kRows, n_out - i0);
        dot_block(scratch.block, packed.coefficients.data() + band.at, scratch.lines + band.first * kCols, band.count);
        if (last_axis) {
          for (Index c = 0; c < width; ++c)
            for (Index r = 0; r < rows; ++r) out[(c0 + c) * n_out + i0 + r] = scratch.block[r * kCols + c];
        } else {
          float* to = out + (plane * n_out + i0) * inner + c0;
          for (Index r = 0; r < rows; ++r)
            std::memcpy(to + r * inner, scratch.block + r * kCols, sizeof(float) * width);
        }
      }
    }
  });
}

}  // namespace cpu
}  // namespace mrisr
