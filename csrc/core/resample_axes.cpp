#include "resample_axes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "fetch.h"
#include "isa.h"
#include "pages.h"
#include "parallel.h"

namespace mrisr {
namespace cpu {
namespace {

constexpr Index kFloat = sizeof(float);
constexpr Index kRows =
    kAxisRows;               // output samples across lines computed together: each loaded input is used four times
constexpr Index kUnit = 16;  // floats of a cache line: lines that lie beside each other, or output samples along one
constexpr Index kUnits = 4;  // of those computed together at most: with four rows, the sums fill half the registers
constexpr Index kCols = kUnit * kUnits;
constexpr Index kSoon = 4 * kRows;  // output samples between what is computed and what is fetched to be written
constexpr Index kLines = 42;        // lines along the last axis in a piece: whole tiles of every instruction set

#if defined(__GNUC__) || defined(__clang__)
template <int Bytes>
struct Lanes {
  typedef float Vec __attribute__((vector_size(Bytes), aligned(Bytes)));
};

// to[r * ld + c] = sum_k coefficients[k][r] * lines[k * ld_lines + c] in N vectors of columns, which are aligned.
template <int Bytes, int N>
MRISR_INLINE void tile(float* to, Index ld, const float* coefficients, const float* lines, Index ld_lines,
                       Index count) {
  using Vec = typename Lanes<Bytes>::Vec;
  constexpr Index lanes = Bytes / sizeof(float);
  Vec sum[kRows][N] = {};
  for (Index k = 0; k < count; ++k, lines += ld_lines, coefficients += kRows) {
    Vec x[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) x[v] = *reinterpret_cast<const Vec*>(lines + v * lanes);
#pragma GCC unroll 4
    for (Index r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sum[r][v] += coefficients[r] * x[v];
  }
#pragma GCC unroll 4
  for (Index r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) std::memcpy(to + r * ld + v * lanes, &sum[r][v], sizeof(Vec));
}

// `units` units of columns, by as many at once as the registers of an instruction set hold.
template <int Bytes>
MRISR_INLINE void product_body(float* to, Index ld, const float* coefficients, const float* lines, Index units,
                               Index count) {
  const Index ld_lines = units * kUnit;
  if constexpr (Bytes == 64) {
    if (units == 4) return tile<64, 4>(to, ld, coefficients, lines, ld_lines, count);
    if (units == 3) return tile<64, 3>(to, ld, coefficients, lines, ld_lines, count);
    if (units == 2) return tile<64, 2>(to, ld, coefficients, lines, ld_lines, count);
    return tile<64, 1>(to, ld, coefficients, lines, ld_lines, count);
  }
  constexpr Index step = 2 * Bytes / sizeof(float);
  for (Index c = 0; c < units * kUnit; c += step) tile<Bytes, 2>(to + c, ld, coefficients, lines + c, ld_lines, count);
}

// to[r * ld + i] = sum_k coefficients[k][i] * x[r * ld_x + k] for the kUnit output samples i of R lines.
template <int Bytes, int R>
MRISR_INLINE void along_tile(float* to, Index ld, const float* coefficients, const float* x, Index ld_x, Index count) {
  using Vec = typename Lanes<Bytes>::Vec;
  constexpr int N = kUnit * sizeof(float) / Bytes;
  Vec sum[R][N] = {};
  // By threes, which an address of the processor's reaches from one pointer: fourteen pointers would not fit.
  const float* row[(R + 2) / 3];
  for (int g = 0; g < (R + 2) / 3; ++g) row[g] = x + 3 * g * ld_x;
  for (Index k = 0; k < count; ++k, coefficients += kUnit) {
    Vec m[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) std::memcpy(&m[v], coefficients + v * (kUnit / N), sizeof(Vec));
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sum[r][v] += row[r / 3][k + r % 3 * ld_x] * m[v];
  }
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r) std::memcpy(to + r * ld, &sum[r], sizeof sum[r]);
}

template <int Bytes>
MRISR_INLINE void along_body(float* to, Index ld, const float* coefficients, const float* x, Index ld_x, Index lines,
                             Index count) {
  constexpr int R = Bytes == 64 ? 14 : Bytes == 32 ? 6 : 3;
  Index r = 0;
  for (; r + R <= lines; r += R) along_tile<Bytes, R>(to + r * ld, ld, coefficients, x + r * ld_x, ld_x, count);
  for (; r < lines; ++r) along_tile<Bytes, 1>(to + r * ld, ld, coefficients, x + r * ld_x, ld_x, count);
}

#define MRISR_PRODUCTS(suffix, target, bytes)                                                                         \
  target void product_##suffix(float* to, Index ld, const float* coefficients, const float* lines, Index units,       \
                               Index count) {                                                                         \
    product_body<bytes>(to, ld, coefficients, lines, units, count);                                                   \
  }                                                                                                                   \
  target void along_##suffix(float* to, Index ld, const float* coefficients, const float* x, Index ld_x, Index lines, \
                             Index count) {                                                                           \
    along_body<bytes>(to, ld, coefficients, x, ld_x, lines, count);                                                   \
  }
MRISR_PRODUCTS(base, , 16)
#ifdef MRISR_TARGET_V4
MRISR_PRODUCTS(v3, MRISR_TARGET_V3, 32)
MRISR_PRODUCTS(v4, MRISR_TARGET_V4, 64)
#endif
#undef MRISR_PRODUCTS

void product(float* to, Index ld, const float* coefficients, const float* lines, Index units, Index count) {
#ifdef MRISR_TARGET_V4
  if (isa() == Isa::v4) return product_v4(to, ld, coefficients, lines, units, count);
  if (isa() == Isa::v3) return product_v3(to, ld, coefficients, lines, units, count);
#endif
  product_base(to, ld, coefficients, lines, units, count);
}

void along(float* to, Index ld, const float* coefficients, const float* x, Index ld_x, Index lines, Index count) {
#ifdef MRISR_TARGET_V4
  if (isa() == Isa::v4) return along_v4(to, ld, coefficients, x, ld_x, lines, count);
  if (isa() == Isa::v3) return along_v3(to, ld, coefficients, x, ld_x, lines, count);
#endif
  along_base(to, ld, coefficients, x, ld_x, lines, count);
}
#else
void product(float* to, Index ld, const float* coefficients, const float* lines, Index units, Index count) {
  const Index cols = units * kUnit;
  for (Index r = 0; r < kRows; ++r)
    for (Index c = 0; c < cols; ++c) to[r * ld + c] = 0.0f;
  for (Index k = 0; k < count; ++k)
    for (Index r = 0; r < kRows; ++r)
      for (Index c = 0; c < cols; ++c) to[r * ld + c] += coefficients[k * kRows + r] * lines[k * cols + c];
}

void along(float* to, Index ld, const float* coefficients, const float* x, Index ld_x, Index lines, Index count) {
  for (Index r = 0; r < lines; ++r)
    for (Index i = 0; i < kUnit; ++i) {
      to[r * ld + i] = 0.0f;
      for (Index k = 0; k < count; ++k) to[r * ld + i] += coefficients[k * kUnit + i] * x[r * ld_x + k];
    }
}
#endif

// Where one thread's lines and block lie in its part of the scratch memory, 64-byte aligned.
constexpr Index kAlign = 64 / sizeof(float);

Index scratch_of_one(Index n_in) { return std::max((n_in + kRows) * kCols, kLines * kUnit); }

float* aligned(float* p) {
  const auto over = static_cast<Index>(reinterpret_cast<std::uintptr_t>(p) / sizeof(float)) % kAlign;
  return p + (kAlign - over) % kAlign;
}

Index rows_of(Lines lines) { return lines == Lines::along ? kUnit : kRows; }

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

// Lines beside each other: `width` of them in `units` units, sample k of line c at k * inner + c.
struct Piece {
  const float* from;
  float* to;
  Index width, units;
};

// A row of the columns is a sample of each line. What no line fills is multiplied too: it must hold numbers.
void gather(float* columns, const Piece& p, Index n_in, Index inner) {
  const Index cols = p.units * kUnit;
  const auto bytes = sizeof(float) * static_cast<std::size_t>(p.width);
  for (Index k = 0; k < n_in; ++k) {
    std::memcpy(columns + k * cols, p.from + k * inner, bytes);
    if (p.width < cols) std::fill(columns + k * cols + p.width, columns + (k + 1) * cols, 0.0f);
  }
}

// block: room for one band.
void across_lines(const Piece& p, const float* columns, float* block, const AxisMatrix& matrix, Index inner,
                  const Ahead& ahead) {
  const Index cols = p.units * kUnit;
  for (Index i = 0; i < matrix.n_out; i += kRows) {
    ahead.part(i / kRows);
    const AxisBand& band = matrix.bands[i / kRows];
    const Index rows = std::min(kRows, matrix.n_out - i);
    const bool whole = rows == kRows && p.width == cols;
    float *const to = p.to + i * inner, *const rows_out = whole ? to : block;
    fetch_to_write(to + kSoon * inner, std::min(kRows, matrix.n_out - i - kSoon), inner * kFloat, p.width * kFloat);
    product(rows_out, whole ? inner : cols, matrix.coefficients + band.at, columns + band.first * cols, p.units,
            band.count);
    for (Index r = 0; !whole && r < rows; ++r)
      std::memcpy(to + r * inner, block + r * cols, sizeof(float) * static_cast<std::size_t>(p.width));
  }
}

void apply_across(float* out, const float* x, const AxisMatrix& matrix, Index outer, Index inner, float* scratch,
                  int threads) {
  const Index n_in = matrix.n_in, n_out = matrix.n_out;
  const Index units = (inner + kUnit - 1) / kUnit, pieces = (units + kUnits - 1) / kUnits;
  const auto piece_of = [&](Index at) {
    const Index plane = at / pieces, i = at % pieces, first = units * i / pieces, end = units * (i + 1) / pieces;
    const Index c0 = first * kUnit;
    return Piece{x + plane * n_in * inner + c0, out + plane * n_out * inner + c0, std::min(inner, end * kUnit) - c0,
                 end - first};
  };
  parallel_for(outer * pieces, 2, threads, [&](Index begin, Index end, int worker) {
    float* const columns = scratch + worker * scratch_of_one(n_in);
    for (Index at = begin; at < end; ++at) {
      const Piece piece = piece_of(at), next = piece_of(std::min(at + 1, end - 1));
      gather(columns, piece, n_in, inner);
      across_lines(piece, columns, columns + n_in * kCols, matrix, inner,
                   {next.from, n_in, inner * kFloat, next.width * kFloat, axis_bands(n_out)});
    }
  });
}

void apply_along(float* out, const float* x, const AxisMatrix& matrix, Index lines, float* scratch, int threads) {
  const Index n_in = matrix.n_in, n_out = matrix.n_out;
  const Index pieces = (lines + kLines - 1) / kLines, bands = (n_out + kUnit - 1) / kUnit;
  parallel_for(pieces, 2, threads, [&](Index begin, Index end, int worker) {
    float* const block = scratch + worker * scratch_of_one(n_in);
    for (Index at = begin; at < end; ++at) {
      const Index line = at * kLines, count = std::min(kLines, lines - line);
      const float* const from = x + line * n_in;
      float* const to = out + line * n_out;
      const Index next = at + 1 < end ? std::min(kLines, lines - line - count) : 0;
      const Ahead ahead{from + count * n_in, next, n_in * kFloat, n_in * kFloat, bands};
      for (Index b = 0; b < bands; ++b) {
        ahead.part(b);
        const AxisBand& band = matrix.bands[b];
        const Index rows = std::min(kUnit, n_out - b * kUnit);
        float* const band_out = rows == kUnit ? to + b * kUnit : block;
        along(band_out, rows == kUnit ? n_out : kUnit, matrix.coefficients + band.at, from + band.first, n_in, count,
              band.count);
        for (Index r = 0; rows < kUnit && r < count; ++r)
          std::memcpy(to + r * n_out + b * kUnit, block + r * kUnit, sizeof(float) * static_cast<std::size_t>(rows));
      }
    }
  });
}

}  // namespace

Index axis_bands(Index n_out) { return (n_out + kRows - 1) / kRows; }

Index axis_coefficients(Index n_out, Index n_in) { return (n_out + kUnit - 1) / kUnit * kUnit * n_in; }

Index axis_scratch(Index n_in, int threads) { return threads * scratch_of_one(n_in) + kAlign; }

AxisMatrix axis_pack(AxisBand* bands, float* coefficients, const double* matrix, Index n_out, Index n_in, double drop,
                     Lines lines) {
  MRISR_CHECK(n_in > 0 && n_out > 0, "axis_apply: matrix must not be empty; it is " << n_out << " x " << n_in);
  MRISR_CHECK(matrix != nullptr, "axis_apply: matrix is a null pointer");
  MRISR_CHECK(drop >= 0 && drop < 1, "axis_apply: drop must lie in [0, 1); it is " << drop);
  const Index together = rows_of(lines);
  Index at = 0;
  for (Index i0 = 0; i0 < n_out; i0 += together) {
    const Index rows = std::min(together, n_out - i0);
    Index first = n_in, last = -1;
    for (Index r = 0; r < rows; ++r) widen(first, last, matrix + (i0 + r) * n_in, n_in, drop);
    const Index count = std::max<Index>(0, last - first + 1);
    bands[i0 / together] = {count ? first : 0, count, at};
    for (Index k = first; k < first + count; ++k)
      for (Index r = 0; r < together; ++r)
        coefficients[at++] = r < rows ? static_cast<float>(matrix[(i0 + r) * n_in + k]) : 0.0f;
  }
  return {n_in, n_out, lines, at, bands, coefficients};
}

void axis_apply(float* out, const float* x, const AxisMatrix& matrix, Index outer, Index inner, float* scratch,
                int threads) {
  check_view(contiguous3(out, outer, matrix.n_out, inner), "axis_apply", "out");
  check_view(contiguous3(x, outer, matrix.n_in, inner), "axis_apply", "x");
  MRISR_CHECK(matrix.lines == Lines::across || inner <= 1,
              "axis_apply: the matrix is packed for the last axis; " << inner << " samples lie behind this one");
  if (outer == 0 || inner == 0) return;
  ask_for_large_pages(out, outer * matrix.n_out * inner * kFloat);
  if (matrix.lines == Lines::along) return apply_along(out, x, matrix, outer, aligned(scratch), threads);
  apply_across(out, x, matrix, outer, inner, aligned(scratch), threads);
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
  const AxisMatrix packed = axis_pack(bands.data(), coefficients.data(), matrix, n_out, n_in, drop,
                                      inner == 1 ? Lines::along : Lines::across);
  axis_apply(out, x, packed, outer, inner, scratch.data(), threads);
}

}  // namespace cpu
}  // namespace mrisr
