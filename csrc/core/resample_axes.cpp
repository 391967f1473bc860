#include "resample_axes.h"

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

// Where one thread's lines and block lie in its part of the scratch memory, 64-byte aligned.
constexpr Index kAlign = 64 / sizeof(float);

Index scratch_of_one(Index n_in) { return (n_in + kRows) * kCols; }

float* aligned(float* p) {
  const auto over = static_cast<Index>(reinterpret_cast<std::uintptr_t>(p) / sizeof(float)) % kAlign;
  return p + (kAlign - over) % kAlign;
}

// [first, last] of the entries of a row above `drop` times its largest. Not `>`: a NaN entry belongs to the band, so
// that it reaches the output.
void widen(Index& first, Index& last, const double* row, Index n_in, double drop) {
  double largest = 0;
  for (Index k = 0; k < n_in; ++k) largest = std::max(largest, std::fabs(row[k]));
  const auto counts = [&](Index k) { return !(std::fabs(row[k]) <= drop * largest); };
  for (Index k = 0; k < first; ++k)
    if (counts(k)) first = k;
  for (Index k = n_in - 1; k > last; --k)
    if (counts(k)) last = k;
}

}  // namespace

Index axis_bands(Index n_out) { return (n_out + kRows - 1) / kRows; }

Index axis_coefficients(Index n_out, Index n_in) { return axis_bands(n_out) * kRows * n_in; }

Index axis_scratch(Index n_in, int threads) { return threads * scratch_of_one(n_in) + kAlign; }

AxisMatrix axis_pack(AxisBand* bands, float* coefficients, const double* matrix, Index n_out, Index n_in, double drop) {
  MRISR_CHECK(n_in > 0 && n_out > 0, "axis_apply: matrix must not be empty; it is " << n_out << " x " << n_in);
  MRISR_CHECK(matrix != nullptr, "axis_apply: matrix is a null pointer");
  MRISR_CHECK(drop >= 0 && drop < 1, "axis_apply: drop must lie in [0, 1); it is " << drop);
  Index at = 0;
  for (Index b = 0; b < axis_bands(n_out); ++b) {
    const Index i0 = b * kRows, rows = std::min(kRows, n_out - i0);
    Index first = n_in, last = -1;
    for (Index r = 0; r < rows; ++r) widen(first, last, matrix + (i0 + r) * n_in, n_in, drop);
    const Index count = std::max<Index>(0, last - first + 1);
    bands[b] = {count ? first : 0, count, at};
    for (Index k = first; k < first + count; ++k)
      for (Index r = 0; r < kRows; ++r)
        coefficients[at++] = r < rows ? static_cast<float>(matrix[(i0 + r) * n_in + k]) : 0.0f;
  }
  return {n_in, n_out, bands, coefficients};
}

void axis_apply(float* out, const float* x, const AxisMatrix& matrix, Index outer, Index inner, float* scratch,
                int threads) {
  const Index n_in = matrix.n_in, n_out = matrix.n_out;
  check_view(contiguous3(out, outer, n_out, inner), "axis_apply", "out");
  check_view(contiguous3(x, outer, n_in, inner), "axis_apply", "x");
  if (outer == 0 || inner == 0) return;
  const bool last_axis = inner == 1;
  const Index lines = last_axis ? outer : inner;
  const Index blocks = (lines + kCols - 1) / kCols, planes = last_axis ? 1 : outer;
  float* const base = aligned(scratch);

  parallel_for(planes * blocks, 2, threads, [&](Index begin, Index end, int worker) {
    float* const columns = base + worker * scratch_of_one(n_in);
    float* const block = columns + n_in * kCols;
    for (Index piece = begin; piece < end; ++piece) {
      const Index plane = piece / blocks, c0 = piece % blocks * kCols, width = std::min(kCols, lines - c0);
      if (last_axis) {
        transpose_in(columns, x + c0 * n_in, width, n_in, n_in);
      } else {
        const float* from = x + plane * n_in * inner + c0;
        for (Index k = 0; k < n_in; ++k) std::memcpy(columns + k * kCols, from + k * inner, sizeof(float) * width);
      }
      if (width < kCols)  // what no line fills is multiplied too: it must hold numbers
        for (Index k = 0; k < n_in; ++k) std::fill(columns + k * kCols + width, columns + (k + 1) * kCols, 0.0f);
      for (Index b = 0; b < axis_bands(n_out); ++b) {
        const AxisBand& band = matrix.bands[b];
        const Index i0 = b * kRows, rows = std::min(kRows, n_out - i0);
        dot_block(block, matrix.coefficients + band.at, columns + band.first * kCols, band.count);
        if (last_axis) {
          for (Index c = 0; c < width; ++c)
            for (Index r = 0; r < rows; ++r) out[(c0 + c) * n_out + i0 + r] = block[r * kCols + c];
        } else {
          float* to = out + (plane * n_out + i0) * inner + c0;
          for (Index r = 0; r < rows; ++r) std::memcpy(to + r * inner, block + r * kCols, sizeof(float) * width);
        }
      }
    }
  });
}

void axis_apply(float* out, const float* x, const double* matrix, Index outer, Index n_in, Index n_out, Index inner,
                double drop, int threads) {
  check_view(contiguous3(out, outer, n_out, inner), "axis_apply", "out");
  check_view(contiguous3(x, outer, n_in, inner), "axis_apply", "x");
  if (outer == 0 || inner == 0) return;
  MRISR_CHECK(n_in > 0 && n_out > 0, "axis_apply: matrix must not be empty; it is " << n_out << " x " << n_in);
  std::vector<AxisBand> bands(static_cast<std::size_t>(axis_bands(n_out)));
  std::vector<float> coefficients(static_cast<std::size_t>(axis_coefficients(n_out, n_in)));
  std::vector<float> scratch(static_cast<std::size_t>(axis_scratch(n_in, std::max(threads, 1))));
  const AxisMatrix packed = axis_pack(bands.data(), coefficients.data(), matrix, n_out, n_in, drop);
  axis_apply(out, x, packed, outer, inner, scratch.data(), threads);
}

}  // namespace cpu
}  // namespace mrisr
