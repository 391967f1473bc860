#include "resample_axes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "isa.h"
#include "parallel.h"
#include "transpose.h"

namespace mrisr {
namespace cpu {
namespace {

constexpr Index kRows = kAxisRows;  // output samples computed together: each loaded input vector is used four times
constexpr Index kCols = 32;         // lines of the volume computed together
constexpr Index kTurned = 16;       // output samples along the last axis turned back together: a cache line of each

#if defined(__GNUC__) || defined(__clang__)
typedef float Vec __attribute__((vector_size(64), aligned(64)));

// to[r * ld + c] = sum_k coefficients[k][r] * lines[k][c], lines [count, kCols] 64-byte aligned.
MRISR_INLINE void dot_block_body(float* to, Index ld, const float* coefficients, const float* lines, Index count) {
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
  const Vec out[2 * kRows] = {a0, a1, b0, b1, c0, c1, d0, d1};
#pragma GCC unroll 4
  for (Index r = 0; r < kRows; ++r) std::memcpy(to + r * ld, &out[2 * r], 2 * sizeof(Vec));
}
#else
MRISR_INLINE void dot_block_body(float* to, Index ld, const float* coefficients, const float* lines, Index count) {
  for (Index r = 0; r < kRows; ++r)
    for (Index c = 0; c < kCols; ++c) to[r * ld + c] = 0.0f;
  for (Index k = 0; k < count; ++k)
    for (Index r = 0; r < kRows; ++r)
      for (Index c = 0; c < kCols; ++c) to[r * ld + c] += coefficients[k * kRows + r] * lines[k * kCols + c];
}
#endif
MRISR_VARIANTS(dot_block, dot_block_body,
               (float* to, Index ld, const float* coefficients, const float* lines, Index count),
               (to, ld, coefficients, lines, count))

MRISR_VARIANTS(turn, transpose_body, (float* to, Index ld_to, const float* from, Index ld_from, Index rows, Index cols),
               (to, ld_to, from, ld_from, rows, cols))

// Where one thread's lines and block lie in its part of the scratch memory, 64-byte aligned.
constexpr Index kAlign = 64 / sizeof(float);

Index scratch_of_one(Index n_in) { return (n_in + kTurned) * kCols; }

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

// [count, width] of a volume whose lines lie beside each other, the rows of a piece.
void gather(float* columns, const float* from, Index count, Index inner, Index width) {
  if (width < kCols) {
    for (Index k = 0; k < count; ++k) std::memcpy(columns + k * kCols, from + k * inner, sizeof(float) * width);
    return;
  }
  for (Index k = 0; k < count; ++k) {
    std::memcpy(columns + k * kCols, from + k * inner, sizeof(float) * kCols);
#if defined(__GNUC__) || defined(__clang__)
    // Every row is in another page, where no prefetcher of the processor's follows: of the piece that comes next.
    __builtin_prefetch(from + k * inner + kCols, 0, 2);
    __builtin_prefetch(from + k * inner + kCols + 16, 0, 2);
#endif
  }
}

// One piece of lines that lie beside each other: out[i * inner + c]. block: room for one band.
void across_lines(float* out, const float* columns, float* block, const AxisMatrix& matrix, Index inner, Index width) {
  for (Index i = 0; i < matrix.n_out; i += kRows) {
    const AxisBand& band = matrix.bands[i / kRows];
    const Index rows = std::min(kRows, matrix.n_out - i);
    const bool whole = rows == kRows && width == kCols;
    float *const to = out + i * inner, *const rows_out = whole ? to : block;
    dot_block(rows_out, whole ? inner : kCols, matrix.coefficients + band.at, columns + band.first * kCols, band.count);
    for (Index r = 0; !whole && r < rows; ++r) std::memcpy(to + r * inner, block + r * kCols, sizeof(float) * width);
  }
}

// One piece of lines that lie behind each other: out[c * n_out + i]. block: room for kTurned rows.
void along_lines(float* out, const float* columns, float* block, const AxisMatrix& matrix, Index width) {
  const Index n_out = matrix.n_out;
  for (Index i0 = 0; i0 < n_out; i0 += kTurned) {
    const Index rows = std::min(kTurned, n_out - i0);
    for (Index r = 0; r < rows; r += kRows) {
      const AxisBand& band = matrix.bands[(i0 + r) / kRows];
      dot_block(block + r * kCols, kCols, matrix.coefficients + band.at, columns + band.first * kCols, band.count);
    }
    turn(out + i0, n_out, block, kCols, rows, width);
  }
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
        turn(columns, kCols, x + c0 * n_in, n_in, width, n_in);
      } else {
        gather(columns, x + plane * n_in * inner + c0, n_in, inner, width);
      }
      if (width < kCols)  // what no line fills is multiplied too: it must hold numbers
        for (Index k = 0; k < n_in; ++k) std::fill(columns + k * kCols + width, columns + (k + 1) * kCols, 0.0f);
      if (last_axis)
        along_lines(out + c0 * n_out, columns, block, matrix, width);
      else
        across_lines(out + plane * n_out * inner + c0, columns, block, matrix, inner, width);
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
