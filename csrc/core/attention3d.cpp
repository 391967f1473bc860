#include "attention3d.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "exp.h"
#include "isa.h"
#include "parallel.h"
#include "tile_product.h"

namespace mrisr {

void check_attention(const AttentionShape& s, const AttentionInputs& in) {
  MRISR_CHECK(s.n >= 0 && s.heads > 0, "attention3d: n must not be negative and heads must be positive; n="
                                           << s.n << ", heads=" << s.heads);
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

constexpr Index kKeys = 256;     // keys packed at a time: with their values they stay in the L2 cache
constexpr Index kQueries = 256;  // queries of one piece of work
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// --- tokens in memory -------------------------------------------------------------------------------------------

float widen(float v) { return v; }
struct Half {
  std::uint16_t bits;
};
struct Bfloat {
  std::uint16_t bits;
};

float widen(Bfloat v) {
  const std::uint32_t bits = static_cast<std::uint32_t>(v.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

float widen(Half v) {
  const std::uint32_t sign = static_cast<std::uint32_t>(v.bits & 0x8000) << 16, rest = v.bits & 0x7fff;
  float out;
  if (rest >= 0x7c00) {  // infinity, NaN
    const std::uint32_t bits = sign | 0x7f800000u | (rest & 0x3ff) << 13;
    std::memcpy(&out, &bits, 4);
    return out;
  }
  // The exponent is shifted in place and rescaled by 2^112: subnormals come out right too.
  const std::uint32_t bits = rest << 13;
  std::memcpy(&out, &bits, 4);
  out *= 5.192296858534828e33f;
  return sign ? -out : out;
}

void narrow(float* to, float v) { *to = v; }

void narrow(Bfloat* to, float v) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (v != v)
    bits |= 0x00400000u;  // stays NaN when the lower half is cut off
  else
    bits += 0x7fffu + (bits >> 16 & 1);
  to->bits = static_cast<std::uint16_t>(bits >> 16);
}

void narrow(Half* to, float v) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, 4);
  const std::uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffffu;
  std::uint32_t out;
  if (bits > 0x7f800000u) {
    out = 0x7e00;
  } else if (bits >= 0x477ff000u) {  // rounds to 65536 or more
    out = 0x7c00;
  } else if (bits < 0x38800000u) {  // subnormal: the float unit rounds when 0.5 is added
    float a;
    std::memcpy(&a, &bits, 4);
    a += 0.5f;
    std::memcpy(&out, &a, 4);
    out -= 0x3f000000u;
  } else {
    out = (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1)) >> 13;
  }
  to->bits = static_cast<std::uint16_t>(sign | out);
}

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

Index window_count(const AttentionShape& s) { return s.n * s.windows(0) * s.windows(1) * s.windows(2); }

Index largest_window(const AttentionShape& s) {
  return std::min(s.window[0], s.size[0]) * std::min(s.window[1], s.size[1]) * std::min(s.window[2], s.size[2]);
}

Index round_up(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }

// Reciprocal root mean square, the factor of the normalisation.
float rms_factor(const float* x, Index n, double eps) {
  double sum = 0;
  for (Index i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(n) + eps));
}

template <class T>
void read(float* to, const T* from, Index n) {
  for (Index i = 0; i < n; ++i) to[i] = widen(from[i]);
}

// to = x, normalised where eps is given.
void normalise(float* to, const float* x, Index n, double eps, const float* gain) {
  const float factor = eps > 0 ? rms_factor(x, n, eps) : 1.0f;
  for (Index i = 0; i < n; ++i) to[i] = eps > 0 ? x[i] * factor * (gain ? gain[i] : 1.0f) : x[i];
}

// --- arithmetic -------------------------------------------------------------------------------------------------

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

// c [rows, cols] (+)= a b with a(r, k) = a[r * a_row + k * a_step], b [depth, cols]; rows padded to 4 and cols to 32 in
// memory.
MRISR_INLINE void product_body(float* c, Index ldc, const float* a, Index a_row, Index a_step, const float* b, Index ldb,
                               Index rows, Index cols, Index depth, bool add) {
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
void transpose(float* to, const Rows& from, Index rows, Index head_dim) {
  for (Index c = 0; c < head_dim; ++c) std::fill(to + c * kKeys + rows, to + c * kKeys + round_up(rows, kTileCols), 0.0f);
  for (Index r = 0; r < rows; ++r)
    for (Index c = 0; c < head_dim; ++c) to[c * kKeys + r] = from.row(r)[c];
}

// --- forward ----------------------------------------------------------------------------------------------------

struct Forward {
  explicit Forward(Index head_dim)
      : k(kKeys, head_dim), v(kKeys, head_dim), q(kQueries, head_dim), y(kQueries, head_dim),
        transposed(static_cast<std::size_t>(head_dim * kKeys)), logits(kTileRows * kKeys), top(kQueries), total(kQueries) {}
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
      product(w.logits.data(), kKeys, w.q.row(i), w.q.width, 1, w.transposed.data(), kKeys, kTileRows, padded, s.head_dim,
              false);
      const Index rows = std::min(kTileRows, count - i);
      for (Index r = 0; r < rows; ++r)
        soften(w.logits.data() + r * kKeys, keys, padded, &w.top[i + r], &w.total[i + r], w.y.row(i + r), s.head_dim);
      product(w.y.row(i), w.y.width, w.logits.data(), kKeys, 1, w.v.row(0), w.v.width, kTileRows, w.y.width, keys, true);
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

// --- backward ---------------------------------------------------------------------------------------------------

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
      : q(tokens, head_dim), dy(tokens, head_dim), dq(tokens, head_dim), k(kKeys, head_dim), v(kKeys, head_dim),
        dk(kKeys, head_dim), dv(kKeys, head_dim), k_transposed(static_cast<std::size_t>(head_dim * kKeys)),
        v_transposed(k_transposed.size()), p(kBlock * kKeys), ds(kBlock * kKeys), delta(static_cast<std::size_t>(tokens)),
        lse(static_cast<std::size_t>(tokens)), raw(static_cast<std::size_t>(head_dim)) {}
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
    for (Index unit = 0; per_unit != 0 && unit < units; ++unit) sum += partials[static_cast<std::size_t>(unit * per_unit + c)];
    d_gains[c] = static_cast<float>(sum);
  }
}

template <class T>
void backward(void* d_qkv, float* d_gains, const void* d_y, const void* y, const float* lse, const AttentionInputs& in,
              const AttentionShape& s, int threads) {
  backward(Gradients<T>{static_cast<T*>(d_qkv), static_cast<const T*>(d_y), static_cast<const T*>(y), lse}, d_gains, in, s,
           threads);
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
