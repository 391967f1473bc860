// Tokens of attention windows: how they lie in memory, and how they are packed for the arithmetic of
// attention3d.cpp and attention3d_backward.cpp. Both compile their own copy.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention3d.h"
#include "isa.h"
#include "narrow.h"
#include "tile_product.h"

namespace mrisr {
namespace cpu {
namespace {

constexpr Index kKeys = 256;  // keys packed at a time: with their values they stay in the L2 cache
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// --- windows ----------------------------------------------------------------------------------------------------

// One window of one sample, cut to the volume.
struct Window {
  Index sample, first[3], extent[3];

  Window(Index unit, const AttentionShape& s) {
    for (int d = 2; d >= 0; --d) {
      const Index index = unit % s.windows(d);
      unit /= s.windows(d);
      first[d] = std::max<Index>(0, index * s.window[d] - s.offset[d]);
      extent[d] = std::min(s.size[d], (index + 1) * s.window[d] - s.offset[d]) - first[d];
    }
    sample = unit;
  }

  Index tokens() const { return extent[0] * extent[1] * extent[2]; }
};

// Where a token of a window is: its row in dense [n, D, H, W, ...] memory, and its offset in qkv.
struct Place {
  Index row, offset;

  Place(const Window& w, Index token, const AttentionShape& s) {
    const Index z = w.first[2] + token % w.extent[2], rest = token / w.extent[2];
    const Index y = w.first[1] + rest % w.extent[1], x = w.first[0] + rest / w.extent[1];
    row = ((w.sample * s.size[0] + x) * s.size[1] + y) * s.size[2] + z;
    offset = w.sample * s.stride[0] + x * s.stride[1] + y * s.stride[2] + z * s.stride[3];
  }
};

inline Index window_count(const AttentionShape& s) { return s.n * s.windows(0) * s.windows(1) * s.windows(2); }

inline Index largest_window(const AttentionShape& s) {
  return std::min(s.window[0], s.size[0]) * std::min(s.window[1], s.size[1]) * std::min(s.window[2], s.size[2]);
}

inline Index round_up(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }

// Reciprocal root mean square, the factor of the normalisation.
inline float rms_factor(const float* x, Index n, double eps) {
  double sum = 0;
  for (Index i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(n) + eps));
}

template <class T>
inline void read(float* to, const T* from, Index n) {
  for (Index i = 0; i < n; ++i) to[i] = widen(from[i]);
}

// to = x, normalised where eps is given.
inline void normalise(float* to, const float* x, Index n, double eps, const float* gain) {
  const float factor = eps > 0 ? rms_factor(x, n, eps) : 1.0f;
  for (Index i = 0; i < n; ++i) to[i] = eps > 0 ? x[i] * factor * (gain ? gain[i] : 1.0f) : x[i];
}

// --- arithmetic ------------------------------------------------------------------------------------------------

// c [rows, cols] (+)= a b with a(r, k) = a[r * a_row + k * a_step], b [depth, cols]; rows padded to 4 and cols to 32 in
// memory.
MRISR_INLINE void product_body(float* c, Index ldc, const float* a, Index a_row, Index a_step, const float* b,
                               Index ldb, Index rows, Index cols, Index depth, bool add) {
  for (Index r = 0; r < rows; r += kTileRows)
    for (Index j = 0; j < cols; j += kTileCols)
      tile_product(c + r * ldc + j, ldc, a + r * a_row, a_row, a_step, b + j, ldb, depth, add);
}
MRISR_VARIANTS(product, product_body,
               (float* c, Index ldc, const float* a, Index a_row, Index a_step, const float* b, Index ldb, Index rows,
                Index cols, Index depth, bool add),
               (c, ldc, a, a_row, a_step, b, ldb, rows, cols, depth, add))

// --- packing ----------------------------------------------------------------------------------------------------

// Some of a window's tokens with one head's vectors of one kind, [count, width], width padded with 0 to whole tiles.
struct Rows {
  Rows(Index capacity, Index head_dim)
      : width(round_up(head_dim, kTileCols)), data(static_cast<std::size_t>(round_up(capacity, kTileRows) * width)) {}
  Index width;
  std::vector<float> data;
  float* row(Index i) { return data.data() + i * width; }
  const float* row(Index i) const { return data.data() + i * width; }
};

enum Kind { kQuery = 0, kKey = 1, kValue = 2 };

// Reads tokens of one window and head out of qkv.
template <class T>
struct Reader {
  const AttentionInputs& in;
  const AttentionShape& s;
  const Window& window;
  Index head;

  const T* vector(const Place& at, Kind kind) const {
    return static_cast<const T*>(in.qkv) + at.offset + (kind * s.heads + head) * s.head_dim;
  }

  // Queries [first, first + count), normalised and scaled.
  void queries(Rows* to, Index first, Index count) const {
    std::vector<float> raw(static_cast<std::size_t>(s.head_dim));
    for (Index i = 0; i < count; ++i) {
      read(raw.data(), vector(Place(window, first + i, s), kQuery), s.head_dim);
      normalise(to->row(i), raw.data(), s.head_dim, in.eps, in.q_gain);
    }
  }

  bool is_key(const Place& at) const { return in.mask == nullptr || in.mask[at.row] != 0; }

  // Packs the next keys (and values), from token *next on, at most kKeys; returns how many. What is no key is left out.
  Index keys(Rows* k, Rows* v, std::vector<Place>* places, Index* next) const {
    std::vector<float> raw(static_cast<std::size_t>(s.head_dim));
    places->clear();
    const Index tokens = window.tokens();
    while (*next < tokens && static_cast<Index>(places->size()) < kKeys) {
      const Place at(window, (*next)++, s);
      if (!is_key(at)) continue;
      const Index i = static_cast<Index>(places->size());
      read(raw.data(), vector(at, kKey), s.head_dim);
      normalise(k->row(i), raw.data(), s.head_dim, in.eps, in.k_gain);
      read(v->row(i), vector(at, kValue), s.head_dim);
      places->push_back(at);
    }
    return static_cast<Index>(places->size());
  }
};

// [rows, width] -> [width, kKeys], columns beyond `rows` 0 up to a whole tile.
inline void transpose(float* to, const Rows& from, Index rows, Index head_dim) {
  for (Index c = 0; c < head_dim; ++c)
    std::fill(to + c * kKeys + rows, to + c * kKeys + round_up(rows, kTileCols), 0.0f);
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < head_dim; ++c) to[c * kKeys + r] = from.row(r)[c];
}

}  // namespace
}  // namespace cpu
}  // namespace mrisr
