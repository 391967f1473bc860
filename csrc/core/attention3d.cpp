#include "attention3d.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention3d_tiles.h"
#include "exp.h"
#include "isa.h"
#include "parallel.h"

namespace mrisr {

void check_attention(const AttentionShape& s, const AttentionInputs& in) {
  MRISR_CHECK(s.n >= 0 && s.heads > 0,
              "attention3d: n must not be negative and heads must be positive; n=" << s.n << ", heads=" << s.heads);
  MRISR_CHECK(s.head_dim > 0 && s.head_dim <= kMaxHeadDim,
              "attention3d: head_dim must lie in [1, " << kMaxHeadDim << "]; it is " << s.head_dim);
  for (int d = 0; d < 3; ++d) {
    MRISR_CHECK(s.size[d] >= 0, "attention3d: size[" << d << "] must not be negative; it is " << s.size[d]);
    MRISR_CHECK(s.window[d] > 0 || s.size[d] == 0,
                "attention3d: window[" << d << "] must be positive; it is " << s.window[d]);
    MRISR_CHECK(s.offset[d] >= 0 && (s.offset[d] < s.window[d] || s.size[d] == 0),
                "attention3d: offset[" << d << "] must lie in [0, " << s.window[d] << "); it is " << s.offset[d]);
  }
  for (int d = 0; d < 4; ++d)
    MRISR_CHECK(s.stride[d] >= 0, "attention3d: stride[" << d << "] must not be negative; it is " << s.stride[d]);
  MRISR_CHECK(in.eps >= 0 && std::isfinite(in.eps), "attention3d: eps must not be negative; it is " << in.eps);
  MRISR_CHECK(std::isfinite(in.scale), "attention3d: scale must be finite; it is " << in.scale);
  MRISR_CHECK(s.n * s.voxels() == 0 || in.qkv != nullptr, "attention3d: qkv is a null pointer");
}

namespace cpu {
namespace {

constexpr Index kQueries = 256;  // queries of one piece of work

MRISR_INLINE float max_body(const float* x, Index n) {
  constexpr Index kLanes = 32;
  float lanes[kLanes];
  for (Index l = 0; l < kLanes; ++l) lanes[l] = -kInfinity;
  Index i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (Index l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  for (Index l = 0; i + l < n; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  float top = lanes[0];
  for (Index l = 1; l < kLanes; ++l) top = lanes[l] > top ? lanes[l] : top;
  return top;
}

// x = exp(x - top) for the first n, 0 up to `padded`; returns the sum. NaN in x comes through.
MRISR_INLINE float exp_sum_body(float* x, Index n, Index padded, float top) {
  constexpr Index kLanes = 32;
  float lanes[kLanes] = {};
  Index i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (Index l = 0; l < kLanes; ++l) {
      x[i + l] = exp_inline(x[i + l] - top);
      lanes[l] += x[i + l];
    }
  for (Index l = 0; i + l < n; ++l) {
    x[i + l] = exp_inline(x[i + l] - top);
    lanes[l] += x[i + l];
  }
  for (i = n; i < padded; ++i) x[i] = 0.0f;
  float sum = 0;
  for (Index l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
}

// One step of the online softmax of a row of logits: s becomes exp(s - top); the sums so far are rescaled to the new top.
MRISR_INLINE void soften_body(float* s, Index keys, Index padded, float* top, float* total, float* y, Index head_dim) {
  const float block = max_body(s, keys), raised = block > *top ? block : *top;
  const float rescale = raised == *top ? 1.0f : *top == -kInfinity ? 0.0f : exp_inline(*top - raised);
  const float sum = exp_sum_body(s, keys, padded, raised);
  *total = *total * rescale + sum;
  if (rescale != 1.0f)
    for (Index c = 0; c < head_dim; ++c) y[c] *= rescale;
  *top = raised;
}
MRISR_VARIANTS(soften, soften_body,
               (float* s, Index keys, Index padded, float* top, float* total, float* y, Index head_dim),
               (s, keys, padded, top, total, y, head_dim))

struct Forward {
  explicit Forward(Index head_dim)
      : k(kKeys, head_dim),
        v(kKeys, head_dim),
        q(kQueries, head_dim),
        y(kQueries, head_dim),
        transposed(static_cast<std::size_t>(head_dim * kKeys)),
        logits(kTileRows * kKeys),
        top(kQueries),
        total(kQueries) {}
  Rows k, v, q, y;
  std::vector<float> transposed, logits, top, total;
  std::vector<Place> places;
};

// Queries [first, first + count) of one window and head.
template <class T>
void attend(T* y, float* lse, const Reader<T>& reader, Index first, Index count, Forward& w) {
  const AttentionShape& s = reader.s;
  reader.queries(&w.q, first, count);
  std::fill(w.y.data.begin(), w.y.data.end(), 0.0f);
  std::fill(w.top.begin(), w.top.end(), -kInfinity);
  std::fill(w.total.begin(), w.total.end(), 0.0f);
  for (Index i = 0; i < count; ++i)
    for (Index c = 0; c < s.head_dim; ++c) w.q.row(i)[c] *= static_cast<float>(reader.in.scale);
  bool any = false;
  for (Index next = 0; next < reader.window.tokens();) {
    const Index keys = reader.keys(&w.k, &w.v, &w.places, &next), padded = round_up(keys, kTileCols);
    if (keys == 0) break;
    any = true;
    transpose(w.transposed.data(), w.k, keys, s.head_dim);
    for (Index i = 0; i < count; i += kTileRows) {
      product(w.logits.data(), kKeys, w.q.row(i), w.q.width, 1, w.transposed.data(), kKeys, kTileRows, padded,
              s.head_dim, false);
      const Index rows = std::min(kTileRows, count - i);
      for (Index r = 0; r < rows; ++r)
        soften(w.logits.data() + r * kKeys, keys, padded, &w.top[i + r], &w.total[i + r], w.y.row(i + r), s.head_dim);
      product(w.y.row(i), w.y.width, w.logits.data(), kKeys, 1, w.v.row(0), w.v.width, kTileRows, w.y.width, keys,
              true);
    }
  }
  for (Index i = 0; i < count; ++i) {
    const Place at(reader.window, first + i, s);
    T* to = y + (at.row * s.heads + reader.head) * s.head_dim;
    for (Index c = 0; c < s.head_dim; ++c) narrow(to + c, any ? w.y.row(i)[c] / w.total[i] : 0.0f);
    if (lse != nullptr) lse[at.row * s.heads + reader.head] = any ? w.top[i] + std::log(w.total[i]) : kInfinity;
  }
}

template <class T>
void forward(void* y, float* lse, const AttentionInputs& in, const AttentionShape& s, int threads) {
  const Index pieces = (largest_window(s) + kQueries - 1) / kQueries;
  parallel_for(window_count(s) * s.heads * pieces, 1, threads, [&](Index begin, Index end) {
    Forward scratch(s.head_dim);
    for (Index unit = begin; unit < end; ++unit) {
      const Window window(unit / pieces / s.heads, s);
      const Reader<T> reader{in, s, window, unit / pieces % s.heads};
      const Index first = unit % pieces * kQueries, count = std::min(kQueries, window.tokens() - first);
      if (count > 0) attend(static_cast<T*>(y), lse, reader, first, count, scratch);
    }
  });
}

}  // namespace

void attention3d(void* y, float* lse, const AttentionInputs& in, const AttentionShape& shape, int threads) {
  check_attention(shape, in);
  if (shape.n * shape.voxels() == 0) return;
  MRISR_CHECK(y != nullptr, "attention3d: y is a null pointer");
  switch (shape.dtype) {
    case Dtype::f32:
      return forward<float>(y, lse, in, shape, threads);
    case Dtype::f16:
      return forward<Half>(y, lse, in, shape, threads);
    case Dtype::bf16:
      return forward<Bfloat>(y, lse, in, shape, threads);
  }
}

}  // namespace cpu
}  // namespace mrisr
