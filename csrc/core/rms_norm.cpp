#include "rms_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "blocks.h"
#include "parallel.h"

namespace mrisr {
namespace cpu {
namespace {

constexpr Index kLanes = 16;

Index grain(Index floats_per_unit) { return 1 + 32768 / (1 + floats_per_unit); }

// sum_c x[c] y[c] in 16 parts, added up in a fixed order.
MRISR_INLINE float dot(const float* __restrict__ x, const float* __restrict__ y, Index width) {
  float lane[kLanes];
  for (Index l = 0; l < kLanes; ++l) lane[l] = 0.0f;
  Index c = 0;
  for (; c + kLanes <= width; c += kLanes)
    for (Index l = 0; l < kLanes; ++l) lane[l] += x[c + l] * y[c + l];
  for (Index l = 0; l < 8; ++l) lane[l] += lane[l + 8];
  for (Index l = 0; l < 4; ++l) lane[l] += lane[l + 4];
  float rest = 0.0f;
  for (; c < width; ++c) rest += x[c] * y[c];
  return (lane[0] + lane[2]) + (lane[1] + lane[3]) + rest;
}

// lanes[l] = sum of x^2 over every 16th channel from l on.
MRISR_INLINE void squares(float* __restrict__ lanes, const float* __restrict__ x, Index width) {
  float lane[kLanes];
  for (Index l = 0; l < kLanes; ++l) lane[l] = 0.0f;
  Index c = 0;
  for (; c + kLanes <= width; c += kLanes)
    for (Index l = 0; l < kLanes; ++l) lane[l] += x[c + l] * x[c + l];
  for (Index l = 0; l < kLanes; ++l) lanes[l] = lane[l];
  for (Index l = 0; c + l < width; ++l) lanes[l] += x[c + l] * x[c + l];
}

// --- channels last: rows of one voxel's channels

MRISR_INLINE void rms_rows_body(float* __restrict__ r, const float* __restrict__ x, Index rows, Index width,
                                float eps) {
  const float part = 1.0f / static_cast<float>(width);
  constexpr Index kRows = 32;
  float lanes[kRows * kLanes], half[kRows * 8], quarter[kRows * 4];
  for (Index v0 = 0; v0 < rows; v0 += kRows) {
    const Index count = std::min(kRows, rows - v0);
    for (Index v = 0; v < count; ++v) squares(lanes + v * kLanes, x + (v0 + v) * width, width);
    // Halving over all rows at a time: sums across the lanes of one row alone do not vectorise.
    for (Index v = 0; v < count; ++v)
      for (Index l = 0; l < 8; ++l) half[v * 8 + l] = lanes[v * kLanes + l] + lanes[v * kLanes + 8 + l];
    for (Index v = 0; v < count; ++v)
      for (Index l = 0; l < 4; ++l) quarter[v * 4 + l] = half[v * 8 + l] + half[v * 8 + 4 + l];
    for (Index v = 0; v < count; ++v) {
      const float* q = quarter + v * 4;
      r[v0 + v] = (q[0] + q[2]) + (q[1] + q[3]);
    }
  }
  for (Index v = 0; v < rows; ++v) r[v] = 1.0f / std::sqrt(r[v] * part + eps);
}
MRISR_VARIANTS(rms_rows, rms_rows_body,
               (float* __restrict__ r, const float* __restrict__ x, Index rows, Index width, float eps),
               (r, x, rows, width, eps))

MRISR_INLINE void apply_rows_body(float* y, const float* x, const float* __restrict__ r, const float* __restrict__ gain,
                                  const float* __restrict__ shift, Index rows, Index width, bool active) {
  for (Index v = 0; v < rows; ++v) {
    const float* from = x + v * width;
    float* to = y + v * width;
    const float scale = r[v];
    if (active)
      for (Index c = 0; c < width; ++c) to[c] = silu(from[c] * scale * gain[c] + shift[c]);
    else
      for (Index c = 0; c < width; ++c) to[c] = from[c] * scale * gain[c] + shift[c];
  }
}
MRISR_VARIANTS(apply_rows, apply_rows_body,
               (float* y, const float* x, const float* __restrict__ r, const float* __restrict__ gain,
                const float* __restrict__ shift, Index rows, Index width, bool active),
               (y, x, r, gain, shift, rows, width, active))

// With n = x r, w = dz gain: dx = r (w - n mean_c(w n)). first += dz, second += dz n. Whether there is an activation is a
// constant of the loop: with a flag inside it does not vectorise.
template <bool Active>
MRISR_INLINE void slope_row(float* __restrict__ first, float* __restrict__ second, float* __restrict__ w,
                            float* __restrict__ normed, const float* __restrict__ grad, const float* __restrict__ x,
                            float r, const float* __restrict__ gain, const float* __restrict__ shift, Index width) {
  for (Index c = 0; c < width; ++c) {
    const float n = x[c] * r;
    const float dz = Active ? grad[c] * silu_slope(n * gain[c] + shift[c]) : grad[c];
    first[c] += dz;
    second[c] += dz * n;
    w[c] = dz * gain[c];
    normed[c] = n;
  }
}

MRISR_INLINE void backward_rows_body(float* dx, float* __restrict__ first, float* __restrict__ second,
                                     float* __restrict__ w, float* __restrict__ normed, const float* grad,
                                     const float* x, const float* __restrict__ r, const float* __restrict__ gain,
                                     const float* __restrict__ shift, Index rows, Index width, bool active) {
  const float part = 1.0f / static_cast<float>(width);
  for (Index c = 0; c < width; ++c) first[c] = second[c] = 0.0f;
  for (Index v = 0; v < rows; ++v, dx += width, grad += width, x += width) {
    const float scale = r[v];
    active ? slope_row<true>(first, second, w, normed, grad, x, scale, gain, shift, width)
           : slope_row<false>(first, second, w, normed, grad, x, scale, gain, shift, width);
    const float mean = dot(w, normed, width) * part;
    for (Index c = 0; c < width; ++c) dx[c] = scale * (w[c] - normed[c] * mean);
  }
}
MRISR_VARIANTS(backward_rows, backward_rows_body,
               (float* dx, float* __restrict__ first, float* __restrict__ second, float* __restrict__ w,
                float* __restrict__ normed, const float* grad, const float* x, const float* __restrict__ r,
                const float* __restrict__ gain, const float* __restrict__ shift, Index rows, Index width, bool active),
               (dx, first, second, w, normed, grad, x, r, gain, shift, rows, width, active))

// --- channels first: runs of one channel over the voxels of a block

MRISR_INLINE void add_product_body(float* __restrict__ to, const float* x, const float* y, Index count) {
  for (Index v = 0; v < count; ++v) to[v] += x[v] * y[v];
}
MRISR_VARIANTS(add_product, add_product_body, (float* __restrict__ to, const float* x, const float* y, Index count),
               (to, x, y, count))

MRISR_INLINE void rms_run_body(float* __restrict__ r, Index count, float part, float eps) {
  for (Index v = 0; v < count; ++v) r[v] = 1.0f / std::sqrt(r[v] * part + eps);
}
MRISR_VARIANTS(rms_run, rms_run_body, (float* __restrict__ r, Index count, float part, float eps),
               (r, count, part, eps))

MRISR_INLINE void apply_run_body(float* y, const float* x, const float* __restrict__ r, float gain, float shift,
                                 Index count, bool active) {
  if (active)
    for (Index v = 0; v < count; ++v) y[v] = silu(x[v] * r[v] * gain + shift);
  else
    for (Index v = 0; v < count; ++v) y[v] = x[v] * r[v] * gain + shift;
}
MRISR_VARIANTS(apply_run, apply_run_body,
               (float* y, const float* x, const float* __restrict__ r, float gain, float shift, Index count,
                bool active),
               (y, x, r, gain, shift, count, active))

// dz and n of one channel; lanes of their sums.
MRISR_INLINE void slope_run_body(float* __restrict__ dz, float* __restrict__ normed, float* __restrict__ first,
                                 float* __restrict__ second, const float* __restrict__ grad,
                                 const float* __restrict__ x, const float* __restrict__ r, float gain, float shift,
                                 Index count, bool active) {
  for (Index v = 0; v < count; ++v) normed[v] = x[v] * r[v];
  if (active)
    for (Index v = 0; v < count; ++v) dz[v] = grad[v] * silu_slope(normed[v] * gain + shift);
  else
    for (Index v = 0; v < count; ++v) dz[v] = grad[v];
  float one[kLanes], two[kLanes];
  for (Index l = 0; l < kLanes; ++l) one[l] = two[l] = 0.0f;
  Index v = 0;
  for (; v + kLanes <= count; v += kLanes) {
    for (Index l = 0; l < kLanes; ++l) one[l] += dz[v + l];
    for (Index l = 0; l < kLanes; ++l) two[l] += dz[v + l] * normed[v + l];
  }
  for (Index l = 0; v + l < count; ++l) {
    one[l] += dz[v + l];
    two[l] += dz[v + l] * normed[v + l];
  }
  for (Index l = 0; l < kLanes; ++l) {
    first[l] = one[l];
    second[l] = two[l];
  }
}
MRISR_VARIANTS(slope_run, slope_run_body,
               (float* __restrict__ dz, float* __restrict__ normed, float* __restrict__ first,
                float* __restrict__ second, const float* __restrict__ grad, const float* __restrict__ x,
                const float* __restrict__ r, float gain, float shift, Index count, bool active),
               (dz, normed, first, second, grad, x, r, gain, shift, count, active))

MRISR_INLINE void dx_run_body(float* dx, const float* __restrict__ dz, const float* __restrict__ normed,
                              const float* __restrict__ r, const float* __restrict__ sum, float gain, float part,
                              Index count) {
  for (Index v = 0; v < count; ++v) dx[v] = r[v] * (dz[v] * gain - normed[v] * (sum[v] * part));
}
MRISR_VARIANTS(dx_run, dx_run_body,
               (float* dx, const float* __restrict__ dz, const float* __restrict__ normed, const float* __restrict__ r,
                const float* __restrict__ sum, float gain, float part, Index count),
               (dx, dz, normed, r, sum, gain, part, count))

// Of one sample, so that loops need no null checks: gain = 1 + scale, shift.
struct Film {
  Film(const float* scale, const float* shift, const ChannelShape& s)
      : gain(static_cast<std::size_t>(s.n * s.channels), 1.0f),
        offset(static_cast<std::size_t>(s.n * s.channels), 0.0f) {
    for (std::size_t i = 0; i < gain.size(); ++i) {
      if (scale) gain[i] += scale[i];
      if (shift) offset[i] = shift[i];
    }
  }
  std::vector<float> gain, offset;
};

std::vector<float> floats(Index count) { return std::vector<float>(static_cast<std::size_t>(count)); }

// Voxels of a block whose channels fill the L1 cache (channels last) or the L2 cache (first: each channel is a run).
Index step_last(const ChannelShape& s) { return std::max<Index>(1, kBlock / s.channels); }
Index step_first(const ChannelShape& s) { return std::max<Index>(64, std::min<Index>(2048, 16 * kBlock / s.channels)); }

void forward_last(const Sink& sink, const Source& source, const Film& film, float eps, bool active,
                  const ChannelShape& s, int threads) {
  const Index step = step_last(s), steps = (s.voxels + step - 1) / step;
  parallel_for(s.n * steps, grain(step * s.channels), threads, [&](Index begin, Index end) {
    auto in = floats(step * s.channels), out = floats(step * s.channels), r = floats(step);
    for (Index unit = begin; unit < end; ++unit) {
      const Index n = unit / steps, v = unit % steps * step, rows = std::min(step, s.voxels - v);
      const Index at = (n * s.voxels + v) * s.channels, count = rows * s.channels;
      const float* from = source.read(at, count, in.data());
      float* to = sink.place(at, out.data());
      rms_rows(r.data(), from, rows, s.channels, eps);
      apply_rows(to, from, r.data(), film.gain.data() + n * s.channels, film.offset.data() + n * s.channels, rows,
                 s.channels, active);
      sink.write(at, count, to);
    }
    sink.finish();
  });
}

void forward_first(const Sink& sink, const Source& source, const Film& film, float eps, bool active,
                   const ChannelShape& s, int threads) {
  const Index step = step_first(s), steps = (s.voxels + step - 1) / step;
  parallel_for(s.n * steps, grain(step * s.channels), threads, [&](Index begin, Index end) {
    auto in = floats(step), out = floats(step), r = floats(step);
    for (Index unit = begin; unit < end; ++unit) {
      const Index n = unit / steps, v = unit % steps * step, count = std::min(step, s.voxels - v);
      std::fill(r.begin(), r.end(), 0.0f);
      for (Index c = 0; c < s.channels; ++c) {
        const float* from = source.read((n * s.channels + c) * s.voxels + v, count, in.data());
        add_product(r.data(), from, from, count);
      }
      rms_run(r.data(), count, 1.0f / static_cast<float>(s.channels), eps);
      for (Index c = 0; c < s.channels; ++c) {
        const Index line = n * s.channels + c, at = line * s.voxels + v;
        const float* from = source.read(at, count, in.data());
        float* to = sink.place(at, out.data());
        apply_run(to, from, r.data(), film.gain[line], film.offset[line], count, active);
        sink.write(at, count, to);
      }
    }
    sink.finish();
  });
}

void backward_last(const Sink& sink, double* sums, const Source& gradient, const Source& source, const Film& film,
                   float eps, bool active, const ChannelShape& s, int threads) {
  const Index step = step_last(s), slabs = s.slabs(), channels = s.channels;
  parallel_for(s.n * slabs, 1, threads, [&](Index begin, Index end) {
    auto in = floats(step * channels), gs = floats(step * channels), out = floats(step * channels), r = floats(step);
    auto first = floats(channels), second = floats(channels), w = floats(channels), normed = floats(channels);
    for (Index unit = begin; unit < end; ++unit) {
      const Index n = unit / slabs, v1 = std::min(s.voxels, (unit % slabs + 1) * kChannelSlab);
      double* to = sums + unit * channels * 2;
      std::fill_n(to, 2 * channels, 0.0);
      for (Index v = unit % slabs * kChannelSlab; v < v1; v += step) {
        const Index rows = std::min(step, v1 - v), at = (n * s.voxels + v) * channels, count = rows * channels;
        const float *from = source.read(at, count, in.data()), *grad = gradient.read(at, count, gs.data());
        float* dx = sink.place(at, out.data());
        rms_rows(r.data(), from, rows, channels, eps);
        backward_rows(dx, first.data(), second.data(), w.data(), normed.data(), grad, from, r.data(),
                      film.gain.data() + n * channels, film.offset.data() + n * channels, rows, channels, active);
        for (Index c = 0; c < channels; ++c) {
          to[2 * c] += first[static_cast<std::size_t>(c)];
          to[2 * c + 1] += second[static_cast<std::size_t>(c)];
        }
        sink.write(at, count, dx);
      }
    }
    sink.finish();
  });
}

void backward_first(const Sink& sink, double* sums, const Source& gradient, const Source& source, const Film& film,
                    float eps, bool active, const ChannelShape& s, int threads) {
  const Index step = std::min<Index>(512, step_first(s)), slabs = s.slabs(), channels = s.channels;
  const float part = 1.0f / static_cast<float>(channels);
  parallel_for(s.n * slabs, 1, threads, [&](Index begin, Index end) {
    auto in = floats(step), gs = floats(step), out = floats(step), r = floats(step), sum = floats(step);
    auto dz = floats(step * channels), normed = floats(step * channels), lanes = floats(2 * kLanes);
    for (Index unit = begin; unit < end; ++unit) {
      const Index n = unit / slabs, v1 = std::min(s.voxels, (unit % slabs + 1) * kChannelSlab);
      double* to = sums + unit * channels * 2;
      std::fill_n(to, 2 * channels, 0.0);
      for (Index v = unit % slabs * kChannelSlab; v < v1; v += step) {
        const Index count = std::min(step, v1 - v);
        std::fill(r.begin(), r.end(), 0.0f);
        std::fill(sum.begin(), sum.end(), 0.0f);
        const auto at = [&](Index c) { return (n * channels + c) * s.voxels + v; };
        for (Index c = 0; c < channels; ++c) {
          const float* from = source.read(at(c), count, in.data());
          add_product(r.data(), from, from, count);
        }
        rms_run(r.data(), count, part, eps);
        for (Index c = 0; c < channels; ++c) {
          const float *from = source.read(at(c), count, in.data()), *grad = gradient.read(at(c), count, gs.data());
          const auto line = static_cast<std::size_t>(n * channels + c);
          float *d = dz.data() + c * step, *m = normed.data() + c * step;
          slope_run(d, m, lanes.data(), lanes.data() + kLanes, grad, from, r.data(), film.gain[line], film.offset[line],
                    count, active);
          for (Index l = 0; l < 2 * kLanes; ++l) to[2 * c + l / kLanes] += lanes[static_cast<std::size_t>(l)];
          apply_run(out.data(), d, m, film.gain[line], 0.0f, count, false);
          for (Index i = 0; i < count; ++i) sum[static_cast<std::size_t>(i)] += out[static_cast<std::size_t>(i)];
        }
        for (Index c = 0; c < channels; ++c) {
          float* dx = sink.place(at(c), out.data());
          dx_run(dx, dz.data() + c * step, normed.data() + c * step, r.data(), sum.data(),
                 film.gain[static_cast<std::size_t>(n * channels + c)], part, count);
          sink.write(at(c), count, dx);
        }
      }
    }
    sink.finish();
  });
}

}  // namespace

void rms_norm(void* y, const void* x, const float* scale, const float* shift, double eps, Act act,
              const ChannelShape& s, Dtype dtype, int threads) {
  check_rms_norm(s, eps);
  check_dtype(dtype, "rms_norm");
  if (s.total() == 0) return;
  MRISR_CHECK(x && y, "rms_norm: null pointer");
  (s.channels_last ? forward_last : forward_first)({y, dtype, s.total(), x}, {x, dtype}, {scale, shift, s},
                                                   static_cast<float>(eps), act == Act::silu, s, threads);
}

void rms_norm_backward(void* dx, double* sums, const void* grad, const void* x, const float* scale, const float* shift,
                       double eps, Act act, const ChannelShape& s, Dtype dtype, int threads) {
  check_rms_norm(s, eps);
  check_dtype(dtype, "rms_norm_backward");
  if (s.total() == 0) return;
  MRISR_CHECK(dx && sums && grad && x, "rms_norm_backward: null pointer");
  (s.channels_last ? backward_last : backward_first)({dx, dtype, s.total(), grad}, sums, {grad, dtype}, {x, dtype},
                                                     {scale, shift, s}, static_cast<float>(eps), act == Act::silu, s,
                                                     threads);
}

}  // namespace cpu
}  // namespace mrisr
