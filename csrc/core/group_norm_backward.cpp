#include <algorithm>
#include <vector>

#include "blocks.h"
#include "group_norm.h"
#include "parallel.h"

namespace mrisr {
namespace cpu {
namespace {

constexpr Index kLanes = 64;  // independent float32 sums: a fixed order that vectorises

Index grain(Index floats_per_unit) { return 1 + 32768 / (1 + floats_per_unit); }

// Whether there is an activation, and whether a row counts, are constants of the loops: with a flag inside they do not
// vectorise.
template <bool Active>
MRISR_INLINE float slope(float z) {
  return Active ? silu_slope(z) : 1.0f;
}

// Column sums over rows of `width` floats: first[c] = sum_r dz, second[c] = sum_r dz (x - m).
template <bool Active>
MRISR_INLINE void sum_row(float* __restrict__ first, float* __restrict__ second, const float* __restrict__ grad,
                          const float* __restrict__ x, const float* __restrict__ a, const float* __restrict__ b,
                          const float* __restrict__ m, Index width) {
  for (Index c = 0; c < width; ++c) {
    const float d = x[c] - m[c], dz = grad[c] * slope<Active>(a[c] * d + b[c]);
    first[c] += dz;
    second[c] += dz * d;
  }
}

MRISR_INLINE void sum_rows_body(float* __restrict__ first, float* __restrict__ second, const float* __restrict__ grad,
                                const float* __restrict__ x, const float* __restrict__ a, const float* __restrict__ b,
                                const float* __restrict__ m, Index rows, Index width, bool active) {
  for (Index c = 0; c < width; ++c) first[c] = second[c] = 0.0f;
  for (Index r = 0; r < rows; ++r, x += width, grad += width)
    active ? sum_row<true>(first, second, grad, x, a, b, m, width)
           : sum_row<false>(first, second, grad, x, a, b, m, width);
}
MRISR_VARIANTS(sum_rows, sum_rows_body,
               (float* __restrict__ first, float* __restrict__ second, const float* __restrict__ grad,
                const float* __restrict__ x, const float* __restrict__ a, const float* __restrict__ b,
                const float* __restrict__ m, Index rows, Index width, bool active),
               (first, second, grad, x, a, b, m, rows, width, active))

// dx = p dz - on (u + v (x - m)) over rows; on: one flag per row, null means all. What is NaN in the statistics of active
// voxels stays out of the others. parts: a, b, m, p, u, v.
template <bool Active, bool Counts>
MRISR_INLINE void dx_row(float* dx, const float* grad, const float* x, const float* __restrict__ parts, Index width) {
  const float *a = parts, *b = a + width, *m = b + width, *p = m + width, *u = p + width, *v = u + width;
  for (Index c = 0; c < width; ++c) {
    const float d = x[c] - m[c], direct = p[c] * grad[c] * slope<Active>(a[c] * d + b[c]);
    dx[c] = Counts ? direct - (u[c] + v[c] * d) : direct;
  }
}

MRISR_INLINE void dx_rows_body(float* dx, const float* grad, const float* x, const float* __restrict__ parts,
                               const std::uint8_t* on, Index rows, Index width, bool active) {
  for (Index r = 0; r < rows; ++r, dx += width, grad += width, x += width) {
    const bool counts = on == nullptr || on[r];
    if (active)
      counts ? dx_row<true, true>(dx, grad, x, parts, width) : dx_row<true, false>(dx, grad, x, parts, width);
    else
      counts ? dx_row<false, true>(dx, grad, x, parts, width) : dx_row<false, false>(dx, grad, x, parts, width);
  }
}
MRISR_VARIANTS(dx_rows, dx_rows_body,
               (float* dx, const float* grad, const float* x, const float* __restrict__ parts, const std::uint8_t* on,
                Index rows, Index width, bool active),
               (dx, grad, x, parts, on, rows, width, active))

// The same over a run of one channel, with a flag per element.
template <bool Active>
MRISR_INLINE void dx_of_run(float* dx, const float* grad, const float* x, const float* __restrict__ parts,
                            const std::uint8_t* __restrict__ on, Index count) {
  const float a = parts[0], b = parts[1], m = parts[2], p = parts[3], u = parts[4], v = parts[5];
  if (on == nullptr) {
    for (Index i = 0; i < count; ++i) {
      const float d = x[i] - m;
      dx[i] = p * grad[i] * slope<Active>(a * d + b) - (u + v * d);
    }
    return;
  }
  for (Index i = 0; i < count; ++i) {
    const float d = x[i] - m, direct = p * grad[i] * slope<Active>(a * d + b), back = u + v * d;
    dx[i] = on[i] ? direct - back : direct;
  }
}

MRISR_INLINE void dx_run_body(float* dx, const float* grad, const float* x, const float* __restrict__ parts,
                              const std::uint8_t* __restrict__ on, Index count, bool active) {
  active ? dx_of_run<true>(dx, grad, x, parts, on, count) : dx_of_run<false>(dx, grad, x, parts, on, count);
}
MRISR_VARIANTS(dx_run, dx_run_body,
               (float* dx, const float* grad, const float* x, const float* __restrict__ parts,
                const std::uint8_t* __restrict__ on, Index count, bool active),
               (dx, grad, x, parts, on, count, active))

// How a map is cut: units of one sample (channels last) or one channel (channels first), blocks of at most `step` voxels.
struct Cut {
  Cut(const NormShape& s, Index block, bool rows_alone)
      : last(s.channels_last),
        channels(last ? s.channels : 1),
        repeats(rows_alone ? 1 : std::max<Index>(1, kLanes / channels)),
        width(repeats * channels),
        step(std::max<Index>(1, block / width) * repeats),
        lines(last ? 1 : s.channels) {}
  bool last;
  Index channels, repeats, width, step, lines;
  std::size_t floats() const { return static_cast<std::size_t>(step * channels); }
};

void repeat(float* to, const float* from, const Cut& cut) {
  for (Index q = 0; q < cut.repeats; ++q) std::copy_n(from, cut.channels, to + q * cut.channels);
}

void check(const void* grad, const void* x, const Folded& f, const NormShape& shape, Dtype dtype, const char* op) {
  check_norm(shape);
  check_dtype(dtype, op);
  MRISR_CHECK(shape.n * shape.voxels == 0 || (grad && x && f.a && f.b && f.m), op << ": null pointer");
}

}  // namespace

void group_norm_backward_sums(double* sums, const void* grad, const void* x, const Folded& folded, Act act,
                              const NormShape& s, Dtype dtype, int threads) {
  check(grad, x, folded, s, dtype, "group_norm_backward_sums");
  if (s.n * s.voxels == 0) return;
  MRISR_CHECK(sums != nullptr, "group_norm_backward_sums: null pointer");
  const Source gradient(grad, dtype), source(x, dtype);
  const Cut cut(s, kLongBlock, false);
  const Index slabs = s.slabs();
  parallel_for(
      s.n * cut.lines * slabs, grain(cut.channels * std::min(kSlab, s.voxels)), threads, [&](Index begin, Index end) {
        std::vector<float> gs(cut.floats()), xs(cut.floats()), rows(static_cast<std::size_t>(5 * cut.width));
        float *a = rows.data(), *b = a + cut.width, *m = b + cut.width, *first = m + cut.width,
              *second = first + cut.width;
        for (Index unit = begin; unit < end; ++unit) {
          const Index slab = unit % slabs, line = unit / slabs, n = line / cut.lines, c0 = line % cut.lines;
          const Index v1 = std::min(s.voxels, (slab + 1) * kSlab), p = line * cut.channels;
          repeat(a, folded.a + p, cut);
          repeat(b, folded.b + p, cut);
          repeat(m, folded.m + p, cut);
          double* to = sums + ((n * slabs + slab) * s.channels + c0) * 2;
          std::fill_n(to, 2 * cut.channels, 0.0);
          const auto add = [&](const float* g, const float* v, Index count, Index width) {
            if (count == 0) return;
            sum_rows(first, second, g, v, a, b, m, count / width, width, act == Act::silu);
            for (Index i = 0; i < width; ++i) {
              to[i % cut.channels * 2] += first[i];
              to[i % cut.channels * 2 + 1] += second[i];
            }
          };
          for (Index v = slab * kSlab; v < v1; v += cut.step) {
            const Index count = std::min(cut.step, v1 - v) * cut.channels, at = (line * s.voxels + v) * cut.channels;
            const float *g = gradient.read(at, count, gs.data()), *from = source.read(at, count, xs.data());
            const Index done = count / cut.width * cut.width;
            add(g, from, done, cut.width);
            add(g + done, from + done, count - done, cut.channels);
          }
        }
      });
}

void group_norm_backward_apply(void* dx, const void* grad, const void* x, const Folded& folded, const Through& through,
                               const std::uint8_t* mask, Act act, const NormShape& s, Dtype dtype, int threads) {
  check(grad, x, folded, s, dtype, "group_norm_backward_apply");
  if (s.n * s.voxels == 0) return;
  MRISR_CHECK(dx && through.p && through.u && through.v, "group_norm_backward_apply: null pointer");
  const Source gradient(grad, dtype), source(x, dtype);
  const Sink sink(dx, dtype, s.n * s.channels * s.voxels, grad);
  const Cut cut(s, kBlock, mask != nullptr || !s.channels_last);
  // Channels first: a block is one run of a channel, whatever its width.
  const Index step = cut.last ? cut.step : kBlock, steps = (s.voxels + step - 1) / step;
  const float* const parts[6] = {folded.a, folded.b, folded.m, through.p, through.u, through.v};
  parallel_for(s.n * cut.lines * steps, grain(step * cut.channels), threads, [&](Index begin, Index end) {
    const auto floats = static_cast<std::size_t>(step * cut.channels);
    std::vector<float> gs(floats), xs(floats), out(floats), wide(static_cast<std::size_t>(6 * cut.width)),
        narrow(static_cast<std::size_t>(6 * cut.channels));
    for (Index unit = begin; unit < end; ++unit) {
      const Index line = unit / steps, v = unit % steps * step, n = line / cut.lines, p = line * cut.channels;
      const Index count = std::min(step, s.voxels - v) * cut.channels, at = (line * s.voxels + v) * cut.channels;
      for (int k = 0; k < 6; ++k) {
        repeat(wide.data() + k * cut.width, parts[k] + p, cut);
        std::copy_n(parts[k] + p, cut.channels, narrow.data() + k * cut.channels);
      }
      const float *g = gradient.read(at, count, gs.data()), *from = source.read(at, count, xs.data());
      float* to = sink.place(at, out.data());
      const std::uint8_t* on = mask ? mask + n * s.voxels + v : nullptr;
      if (cut.last) {
        const Index done = count / cut.width * cut.width;
        dx_rows(to, g, from, wide.data(), on, done / cut.width, cut.width, act == Act::silu);
        if (done < count)
          dx_rows(to + done, g + done, from + done, narrow.data(), nullptr, (count - done) / cut.channels, cut.channels,
                  act == Act::silu);
      } else {
        dx_run(to, g, from, narrow.data(), on, count, act == Act::silu);
      }
      sink.write(at, count, to);
    }
    sink.finish();
  });
}

}  // namespace cpu
}  // namespace mrisr
