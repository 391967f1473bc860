// The inner loop of small dense products: a tile of 4 rows x 32 columns in registers.
#pragma once

#include "isa.h"
#include "tensor.h"

namespace mrisr {

constexpr Index kTileRows = 4, kTileCols = 32;

#if defined(__GNUC__) || defined(__clang__)
typedef float TileVec __attribute__((vector_size(64), aligned(4)));

// c[r][j] (+)= sum_k a[r * a_row + k * a_step] * b[k * ldb + j] for r < 4, j < 32. Four rows of a must be readable.
MRISR_INLINE void tile_product(float* c, Index ldc, const float* a, Index a_row, Index a_step, const float* b,
                               Index ldb, Index count, bool add) {
  TileVec s00{}, s01{}, s10{}, s11{}, s20{}, s21{}, s30{}, s31{};
  for (Index k = 0; k < count; ++k) {
    const TileVec x0 = *reinterpret_cast<const TileVec*>(b + k * ldb);
    const TileVec x1 = *reinterpret_cast<const TileVec*>(b + k * ldb + 16);
    const float* m = a + k * a_step;
    s00 += m[0] * x0;
    s01 += m[0] * x1;
    s10 += m[a_row] * x0;
    s11 += m[a_row] * x1;
    s20 += m[2 * a_row] * x0;
    s21 += m[2 * a_row] * x1;
    s30 += m[3 * a_row] * x0;
    s31 += m[3 * a_row] * x1;
  }
  const TileVec sums[8] = {s00, s01, s10, s11, s20, s21, s30, s31};
  for (int i = 0; i < 8; ++i) {
    TileVec* to = reinterpret_cast<TileVec*>(c + i / 2 * ldc + i % 2 * 16);
    *to = add ? *to + sums[i] : sums[i];
  }
}
#else
MRISR_INLINE void tile_product(float* c, Index ldc, const float* a, Index a_row, Index a_step, const float* b,
                               Index ldb, Index count, bool add) {
  float sums[kTileRows * kTileCols] = {};
  for (Index k = 0; k < count; ++k)
    for (Index r = 0; r < kTileRows; ++r)
      for (Index j = 0; j < kTileCols; ++j) sums[r * kTileCols + j] += a[r * a_row + k * a_step] * b[k * ldb + j];
  for (Index r = 0; r < kTileRows; ++r)
    for (Index j = 0; j < kTileCols; ++j) c[r * ldc + j] = (add ? c[r * ldc + j] : 0.0f) + sums[r * kTileCols + j];
}
#endif

}  // namespace mrisr
