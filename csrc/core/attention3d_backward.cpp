#include "attention3d.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention3d_tiles.h"
#include "exp.h"
#include "isa.h"
#include "parallel.h"

namespace mrisr {

namespace cpu {
namespace {

constexpr Index kBlock = 64;  // queries per step

// Turns logits into p = exp(s - lse), and dp, the gradient of p, into the gradient of s.
MRISR_INLINE void unsoften_body(float* s, float* dp, Index keys, Index padded, float lse, float delta) {
  for (Index j = 0; j < keys; ++j) {
    s[j] = exp_inline(s[j] - lse);
    dp[j] = s[j] * (dp[j] - delta);
  }
  for (Index j = keys; j < padded; ++j) s[j] = dp[j] = 0.0f;
}
MRISR_VARIANTS(unsoften, unsoften_body, (float* s, float* dp, Index keys, Index padded, float lse, float delta),
               (s, dp, keys, padded, lse, delta))

struct Backward {
  Backward(Index tokens, Index head_dim)
      : q(tokens, head_dim),
        dy(tokens, head_dim),
        dq(tokens, head_dim),
        k(kKeys, head_dim),
        v(kKeys, head_dim),
        dk(kKeys, head_dim),
        dv(kKeys, head_dim),
        k_transposed(static_cast<std::size_t>(head_dim * kKeys)),
        v_transposed(k_transposed.size()),
        p(kBlock * kKeys),
        ds(kBlock * kKeys),
        delta(static_cast<std::size_t>(tokens)),
        lse(static_cast<std::size_t>(tokens)),
        raw(static_cast<std::size_t>(head_dim)) {}
  Rows q, dy, dq, k, v, dk, dv;
  std::vector<float> k_transposed, v_transposed, p, ds, delta, lse, raw;
  std::vector<Place> places;
};

template <class T>
struct Gradients {
  T* d_qkv;
  const T *d_y, *y;
  const float* lse;
};

template <class T>
struct Differentiator {
  const Reader<T>& reader;
  const Gradients<T>& g;
  Backward& w;
  double* d_gains;  // [2, head_dim], or null

  Index channels() const { return reader.s.heads * reader.s.head_dim; }

  void run() const {
    const AttentionShape& s = reader.s;
    const Index tokens = reader.window.tokens();
    load(tokens);
    for (Index next = 0; next < tokens;) {
      const Index keys = reader.keys(&w.k, &w.v, &w.places, &next);
      if (keys == 0) break;
      transpose(w.k_transposed.data(), w.k, keys, s.head_dim);
      transpose(w.v_transposed.data(), w.v, keys, s.head_dim);
      std::fill(w.dk.data.begin(), w.dk.data.end(), 0.0f);
      std::fill(w.dv.data.begin(), w.dv.data.end(), 0.0f);
      for (Index i = 0; i < tokens; i += kBlock) step(i, std::min(kBlock, tokens - i), keys);
      for (Index j = 0; j < keys; ++j) {
        store(w.places[static_cast<std::size_t>(j)], kKey, w.dk.row(j), reader.in.k_gain);
        store(w.places[static_cast<std::size_t>(j)], kValue, w.dv.row(j), nullptr);
      }
    }
    for (Index i = 0; i < tokens; ++i) {
      const Place at(reader.window, i, s);
      for (Index c = 0; c < s.head_dim; ++c) w.dq.row(i)[c] *= static_cast<float>(reader.in.scale);
      store(at, kQuery, w.dq.row(i), reader.in.q_gain);
      if (reader.is_key(at)) continue;
      std::fill_n(vector(at, kKey), s.head_dim, T{});
      std::fill_n(vector(at, kValue), s.head_dim, T{});
    }
  }

  // Queries, gradients of the result, and what the rows of p need, of the whole window.
  void load(Index tokens) const {
    const AttentionShape& s = reader.s;
    reader.queries(&w.q, 0, tokens);
    std::fill(w.dq.data.begin(), w.dq.data.end(), 0.0f);
    for (Index i = 0; i < tokens; ++i) {
      const Place at(reader.window, i, s);
      const Index from = at.row * channels() + reader.head * s.head_dim;
      read(w.dy.row(i), g.d_y + from, s.head_dim);
      read(w.raw.data(), g.y + from, s.head_dim);
      double delta = 0;
      for (Index c = 0; c < s.head_dim; ++c) {
        delta += static_cast<double>(w.raw[static_cast<std::size_t>(c)]) * w.dy.row(i)[c];
        w.q.row(i)[c] *= static_cast<float>(reader.in.scale);
      }
      w.delta[static_cast<std::size_t>(i)] = static_cast<float>(delta);
      w.lse[static_cast<std::size_t>(i)] = g.lse[at.row * s.heads + reader.head];
    }
  }

  // What queries [i, i + count) and the packed keys give each other.
  void step(Index i, Index count, Index keys) const {
    const Index head_dim = reader.s.head_dim, width = w.q.width, padded = round_up(keys, kTileCols);
    product(w.p.data(), kKeys, w.q.row(i), width, 1, w.k_transposed.data(), kKeys, count, padded, head_dim, false);
    product(w.ds.data(), kKeys, w.dy.row(i), width, 1, w.v_transposed.data(), kKeys, count, padded, head_dim, false);
    for (Index r = 0; r < count; ++r)
      unsoften(w.p.data() + r * kKeys, w.ds.data() + r * kKeys, keys, padded, w.lse[static_cast<std::size_t>(i + r)],
               w.delta[static_cast<std::size_t>(i + r)]);
    product(w.dq.row(i), width, w.ds.data(), kKeys, 1, w.k.row(0), width, count, width, keys, true);
    product(w.dk.row(0), width, w.ds.data(), 1, kKeys, w.q.row(i), width, keys, width, count, true);
    product(w.dv.row(0), width, w.p.data(), 1, kKeys, w.dy.row(i), width, keys, width, count, true);
  }

  T* vector(const Place& at, Kind kind) const {
    return g.d_qkv + (at.row * 3 + kind) * channels() + reader.head * reader.s.head_dim;
  }

  // Writes the gradient `d` of a query, key or value; through the normalisation where it had one.
  void store(const Place& at, Kind kind, float* d, const float* gain) const {
    const Index n = reader.s.head_dim;
    if (reader.in.eps > 0 && kind != kValue) {
      float* x = w.raw.data();
      read(x, reader.vector(at, kind), n);
      const float factor = rms_factor(x, n, reader.in.eps);
      double along = 0;
      for (Index c = 0; c < n; ++c) {
        x[c] *= factor;
        if (d_gains != nullptr) d_gains[kind * n + c] += static_cast<double>(d[c]) * x[c];
        if (gain != nullptr) d[c] *= gain[c];
        along += static_cast<double>(d[c]) * x[c];
      }
      const auto mean = static_cast<float>(along / static_cast<double>(n));
      for (Index c = 0; c < n; ++c) d[c] = factor * (d[c] - x[c] * mean);
    }
    T* to = vector(at, kind);
    for (Index c = 0; c < n; ++c) narrow(to + c, d[c]);
  }
};

template <class T>
void backward(const Gradients<T>& g, float* d_gains, const AttentionInputs& in, const AttentionShape& s, int threads) {
  const Index units = window_count(s) * s.heads, per_unit = in.eps > 0 ? 2 * s.head_dim : 0;
  std::vector<double> partials(static_cast<std::size_t>(units * per_unit), 0.0);
  parallel_for(units, 1, threads, [&](Index begin, Index end) {
    Backward scratch(largest_window(s), s.head_dim);
    for (Index unit = begin; unit < end; ++unit) {
      const Window window(unit / s.heads, s);
      const Reader<T> reader{in, s, window, unit % s.heads};
      double* gains = per_unit ? partials.data() + unit * per_unit : nullptr;
      Differentiator<T>{reader, g, scratch, gains}.run();
    }
  });
  for (Index c = 0; c < 2 * s.head_dim; ++c) {
    double sum = 0;
    for (Index unit = 0; per_unit != 0 && unit < units; ++unit)
      sum += partials[static_cast<std::size_t>(unit * per_unit + c)];
    d_gains[c] = static_cast<float>(sum);
  }
}

template <class T>
void backward(void* d_qkv, float* d_gains, const void* d_y, const void* y, const float* lse, const AttentionInputs& in,
              const AttentionShape& s, int threads) {
  backward(Gradients<T>{static_cast<T*>(d_qkv), static_cast<const T*>(d_y), static_cast<const T*>(y), lse}, d_gains, in,
           s, threads);
}

}  // namespace

void attention3d_backward(void* d_qkv, float* d_gains, const void* d_y, const void* y, const float* lse,
                          const AttentionInputs& in, const AttentionShape& shape, int threads) {
  check_attention(shape, in);
  MRISR_CHECK(d_gains != nullptr, "attention3d_backward: d_gains is a null pointer");
  std::fill_n(d_gains, 2 * shape.head_dim, 0.0f);
  if (shape.n * shape.voxels() == 0) return;
  MRISR_CHECK(d_qkv && d_y && y && lse, "attention3d_backward: null pointer");
  switch (shape.dtype) {
    case Dtype::f32:
      return backward<float>(d_qkv, d_gains, d_y, y, lse, in, shape, threads);
    case Dtype::f16:
      return backward<Half>(d_qkv, d_gains, d_y, y, lse, in, shape, threads);
    case Dtype::bf16:
      return backward<Bfloat>(d_qkv, d_gains, d_y, y, lse, in, shape, threads);
  }
}

}  // namespace cpu
}  // namespace mrisr
