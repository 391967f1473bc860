// Lines along the last axis of a volume, turned so that one row holds a sample of each, and back.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "isa.h"
#include "tensor.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define MRISR_SHUFFLES
#endif
#endif

namespace mrisr {
namespace cpu {

#ifdef MRISR_SHUFFLES

// 8 x 8 floats: rows four apart share a register from the start, so that nothing crosses its halves later.
MRISR_INLINE void transpose8(float* to, Index ld_to, const float* from, Index ld_from) {
  typedef float Four __attribute__((vector_size(16)));
  typedef float Eight __attribute__((vector_size(32)));
  Eight a[8], b[8];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      Four low, high;
      std::memcpy(&low, from + r * ld_from + 4 * h, sizeof(Four));
      std::memcpy(&high, from + (r + 4) * ld_from + 4 * h, sizeof(Four));
      a[4 * h + r] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
    }
#pragma GCC unroll 4
  for (int r = 0; r < 8; r += 2) {
    b[r] = __builtin_shufflevector(a[r], a[r + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[r + 1] = __builtin_shufflevector(a[r], a[r + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int r = 0; r < 8; r += 4)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      a[r + 2 * h] = __builtin_shufflevector(b[r + h], b[r + h + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      a[r + 2 * h + 1] = __builtin_shufflevector(b[r + h], b[r + h + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int r = 0; r < 8; ++r) std::memcpy(to + r * ld_to, &a[r], sizeof(Eight));
}

#endif

// to[c * ld_to + r] = from[r * ld_from + c]. No overlap.
template <class T>
MRISR_INLINE void transpose_body(T* to, Index ld_to, const T* from, Index ld_from, Index rows, Index cols) {
#ifdef MRISR_SHUFFLES
  if constexpr (std::is_same_v<T, float>)
    if (rows >= 8 && cols >= 8) {
      // The last eight of a side overlap those before. Cache lines of the longer side are finished one after another.
      const auto start = [](Index i, Index n) { return std::min(i, n - 8); };
      if (cols > rows) {
        for (Index c0 = 0; c0 < cols; c0 += 16)
          for (Index r0 = 0; r0 < rows; r0 += 8)
            for (Index h = c0; h < std::min(cols, c0 + 16); h += 8) {
              const Index r = start(r0, rows), c = start(h, cols);
              transpose8(to + c * ld_to + r, ld_to, from + r * ld_from + c, ld_from);
            }
      } else {
        for (Index r0 = 0; r0 < rows; r0 += 16)
          for (Index c0 = 0; c0 < cols; c0 += 8)
            for (Index h = r0; h < std::min(rows, r0 + 16); h += 8) {
              const Index r = start(h, rows), c = start(c0, cols);
              transpose8(to + c * ld_to + r, ld_to, from + r * ld_from + c, ld_from);
            }
      }
      return;
    }
#endif
  constexpr Index kStrip = 16;  // columns written while the source lines stay in the cache
  for (Index c0 = 0; c0 < cols; c0 += kStrip)
    for (Index k = 0; k < rows; ++k)
      for (Index c = c0; c < std::min(cols, c0 + kStrip); ++c) to[c * ld_to + k] = from[k * ld_from + c];
}

}  // namespace cpu
}  // namespace mrisr
