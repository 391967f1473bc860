#include "group_norm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "blocks.h"
#include "chan.h"
#include "isa.h"
#include "parallel.h"

namespace mrisr {
namespace cpu {
namespace {

constexpr Index kLanes = 64;  // independent float32 sums: a fixed order that vectorises

// Pieces of this many units of work are worth a thread of their own.
Index grain(Index floats_per_unit) { return 1 + 32768 / (1 + floats_per_unit); }

// Sums over rows of `width` floats: to[c] = sum_r x[r, c]; masked rows are left out, NaN or not.
MRISR_INLINE void sum_rows_body(float* __restrict__ to, const float* __restrict__ x, const std::uint8_t* mask,
                                Index rows, Index width) {
  for (Index c = 0; c < width; ++c) to[c] = 0.0f;
  if (mask != nullptr) {
    for (Index r = 0; r < rows; ++r)
      if (mask[r])
        for (Index c = 0; c < width; ++c) to[c] += x[r * width + c];
    return;
  }
  Index r = 0;
  for (; r + 4 <= rows; r += 4) {
    const float* p = x + r * width;
    for (Index c = 0; c < width; ++c) to[c] += (p[c] + p[width + c]) + (p[2 * width + c] + p[3 * width + c]);
  }
  for (; r < rows; ++r)
    for (Index c = 0; c < width; ++c) to[c] += x[r * width + c];
}
MRISR_VARIANTS(sum_rows, sum_rows_body,
               (float* __restrict__ to, const float* __restrict__ x, const std::uint8_t* mask, Index rows, Index width),
               (to, x, mask, rows, width))

// Deviations from the pivot: first[c] = sum_r (x - pivot), second[c] = sum_r (x - pivot)^2.
MRISR_INLINE void deviate_rows_body(float* __restrict__ first, float* __restrict__ second, const float* __restrict__ x,
                                    const float* __restrict__ pivot, const std::uint8_t* mask, Index rows,
                                    Index width) {
  for (Index c = 0; c < width; ++c) first[c] = second[c] = 0.0f;
  Index r = 0;
  if (mask == nullptr) {
    for (; r + 4 <= rows; r += 4) {
      const float* p = x + r * width;
      for (Index c = 0; c < width; ++c) {
        const float d0 = p[c] - pivot[c], d1 = p[width + c] - pivot[c];
        const float d2 = p[2 * width + c] - pivot[c], d3 = p[3 * width + c] - pivot[c];
        first[c] += (d0 + d1) + (d2 + d3);
        second[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
      }
    }
  }
  for (; r < rows; ++r) {
    if (mask != nullptr && !mask[r]) continue;
    for (Index c = 0; c < width; ++c) {
      const float d = x[r * width + c] - pivot[c];
      first[c] += d;
      second[c] += d * d;
    }
  }
}
MRISR_VARIANTS(deviate_rows, deviate_rows_body,
               (float* __restrict__ first, float* __restrict__ second, const float* __restrict__ x,
                const float* __restrict__ pivot, const std::uint8_t* mask, Index rows, Index width),
               (first, second, x, pivot, mask, rows, width))

// The same two sums over a masked run of one channel, in kLanes interleaved parts.
MRISR_INLINE void masked_run_body(float* __restrict__ first, float* __restrict__ second, const float* __restrict__ x,
                                  float pivot, const std::uint8_t* __restrict__ mask, Index count) {
  for (Index l = 0; l < kLanes; ++l) first[l] = second[l] = 0.0f;
  Index i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (Index l = 0; l < kLanes; ++l) {
      const float d =
          mask[i + l] ? x[i + l] - pivot : 0.0f;  // a select, not a product: NaN outside the mask is ignored
      first[l] += d;
      second[l] += d * d;
    }
  for (Index l = 0; i + l < count; ++l) {
    const float d = mask[i + l] ? x[i + l] - pivot : 0.0f;
    first[l] += d;
    second[l] += d * d;
  }
}
MRISR_VARIANTS(masked_run, masked_run_body,
               (float* __restrict__ first, float* __restrict__ second, const float* __restrict__ x, float pivot,
                const std::uint8_t* __restrict__ mask, Index count),
               (first, second, x, pivot, mask, count))

// Buffers of one worker: per column of a block the sums, the pivots and the sums of deviations.
struct Scratch {
  explicit Scratch(Index width) : width(width), storage(static_cast<std::size_t>(4 * width)) {
    sum = storage.data();
    pivot = sum + width;
    first = pivot + width;
    second = first + width;
  }
  Index width;
  std::vector<float> storage;
  float *sum, *pivot, *first, *second;
};

// Adds a block [rows, width] whose column c belongs to group (c % channels) / per_group.
void add_block(Moments* groups, Index group_count, const float* x, const std::uint8_t* mask, Index rows, Index width,
               Index channels, Scratch& s) {
  Index active = rows;
  if (mask != nullptr) active = std::count_if(mask, mask + rows, [](std::uint8_t m) { return m != 0; });
  if (active == 0) return;
  const Index per_group = channels / group_count, repeats = width / channels;
  const double n = static_cast<double>(active) * per_group * repeats;
  sum_rows(s.sum, x, mask, rows, width);
  const auto over_group = [&](const float* values, Index g) {
    double total = 0;
    for (Index q = 0; q < repeats; ++q)
      for (Index c = 0; c < per_group; ++c) total += values[q * channels + g * per_group + c];
    return total;
  };
  for (Index g = 0; g < group_count; ++g) {
    const auto mean = static_cast<float>(over_group(s.sum, g) / n);
    for (Index q = 0; q < repeats; ++q) std::fill_n(s.pivot + q * channels + g * per_group, per_group, mean);
  }
  deviate_rows(s.first, s.second, x, s.pivot, mask, rows, width);
  for (Index g = 0; g < group_count; ++g) {
    // The pivot is the mean rounded to float32; what is left of the mean is in the first-order sum.
    const double rest = over_group(s.first, g) / n;
    const double m2 = over_group(s.second, g) - n * rest * rest;
    groups[g].add(n, s.pivot[g * per_group] + rest, m2 < 0 ? 0.0 : m2);
  }
}

void store(double* to, const Moments& m) {
  to[0] = m.n;
  to[1] = m.mean;
  to[2] = m.m2;
}

void add_masked_run(Moments* group, const float* x, const std::uint8_t* mask, Index count, Scratch& lanes) {
  const Index active = std::count_if(mask, mask + count, [](std::uint8_t m) { return m != 0; });
  if (active == 0) return;
  const double n = static_cast<double>(active);
  const auto total = [](const float* values) {
    double sum = 0;
    for (Index l = 0; l < kLanes; ++l) sum += values[l];
    return sum;
  };
  masked_run(lanes.first, lanes.second, x, 0.0f, mask, count);
  const auto pivot = static_cast<float>(total(lanes.first) / n);
  masked_run(lanes.first, lanes.second, x, pivot, mask, count);
  const double rest = total(lanes.first) / n, m2 = total(lanes.second) - n * rest * rest;
  group->add(n, pivot + rest, m2 < 0 ? 0.0 : m2);  // NaN stays
}

// One run of `count` contiguous values of a single channel, as rows of kLanes and a shorter last row.
void add_run(Moments* group, const float* x, const std::uint8_t* mask, Index count, Scratch& rows_of_lanes,
             Scratch& single) {
  if (mask != nullptr) return add_masked_run(group, x, mask, count, rows_of_lanes);
  const Index rows = count / kLanes, done = rows * kLanes;
  if (rows > 0) add_block(group, 1, x, nullptr, rows, kLanes, 1, rows_of_lanes);
  if (done < count) add_block(group, 1, x + done, nullptr, count - done, 1, 1, single);
}

// Blocks of one worker: what is widened into, and what is computed into.
struct Blocks {
  explicit Blocks(Index floats) : x(size(floats)), out(size(floats)) {}
  static std::size_t size(Index floats) { return static_cast<std::size_t>(std::max(kLongBlock, floats)); }
  std::vector<float> x, out;
};

void stats_channels_first(double* partials, const Source& x, const std::uint8_t* mask, const NormShape& s,
                          int threads) {
  const Index slabs = s.slabs(), per_group = s.per_group();
  parallel_for(s.n * s.groups * slabs, grain(per_group * std::min(kSlab, s.voxels)), threads,
               [&](Index begin, Index end) {
                 Scratch lanes(kLanes), single(1);
                 std::vector<float> block(static_cast<std::size_t>(kLongBlock));
                 for (Index unit = begin; unit < end; ++unit) {
                   const Index slab = unit % slabs, g = unit / slabs % s.groups, n = unit / slabs / s.groups;
                   const Index v0 = slab * kSlab, v1 = std::min(s.voxels, v0 + kSlab);
                   Moments group;
                   for (Index c = g * per_group; c < (g + 1) * per_group; ++c)
                     for (Index v = v0; v < v1; v += kLongBlock) {
                       const Index count = std::min(kLongBlock, v1 - v);
                       add_run(&group, x.read((n * s.channels + c) * s.voxels + v, count, block.data()),
                               mask ? mask + n * s.voxels + v : nullptr, count, lanes, single);
                     }
                   store(partials + ((n * slabs + slab) * s.groups + g) * 3, group);
                 }
               });
}

void stats_channels_last(double* partials, const Source& x, const std::uint8_t* mask, const NormShape& s, int threads) {
  const Index slabs = s.slabs();
  // Few channels: several voxels make one row, so that rows are long enough to vectorise.
  const Index repeats = mask ? 1 : std::max<Index>(1, kLanes / s.channels);
  const Index step = std::max<Index>(1, kLongBlock / s.channels / repeats) * repeats;
  parallel_for(s.n * slabs, grain(s.channels * std::min(kSlab, s.voxels)), threads, [&](Index begin, Index end) {
    Scratch wide(repeats * s.channels), narrow(s.channels);
    std::vector<float> block(static_cast<std::size_t>(std::max(kLongBlock, step * s.channels)));
    std::vector<Moments> groups(static_cast<std::size_t>(s.groups));
    for (Index unit = begin; unit < end; ++unit) {
      const Index slab = unit % slabs, n = unit / slabs, v1 = std::min(s.voxels, (slab + 1) * kSlab);
      std::fill(groups.begin(), groups.end(), Moments());
      for (Index v = slab * kSlab; v < v1;) {
        const Index left = std::min(step, v1 - v), rows = left / repeats, count = rows > 0 ? rows * repeats : left;
        const float* from = x.read((n * s.voxels + v) * s.channels, count * s.channels, block.data());
        const std::uint8_t* m = mask ? mask + n * s.voxels + v : nullptr;
        if (rows > 0)
          add_block(groups.data(), s.groups, from, m, rows, repeats * s.channels, s.channels, wide);
        else
          add_block(groups.data(), s.groups, from, m, left, s.channels, s.channels, narrow);
        v += count;
      }
      for (Index g = 0; g < s.groups; ++g)
        store(partials + (unit * s.groups + g) * 3, groups[static_cast<std::size_t>(g)]);
    }
  });
}

// y = act(a (x - m) + b): one channel, or one voxel's row of channels.
MRISR_INLINE void apply_run_body(float* y, const float* x, Index count, float a, float b, float m, bool act) {
  if (act)
    for (Index i = 0; i < count; ++i) y[i] = silu(a * (x[i] - m) + b);
  else
    for (Index i = 0; i < count; ++i) y[i] = a * (x[i] - m) + b;
}
MRISR_VARIANTS(apply_run, apply_run_body, (float* y, const float* x, Index count, float a, float b, float m, bool act),
               (y, x, count, a, b, m, act))

// y may be x: either way no element depends on another, which the compiler cannot know.
MRISR_INLINE void apply_rows_body(float* y, const float* x, Index rows, Index width, const float* __restrict__ a,
                                  const float* __restrict__ b, const float* __restrict__ m, bool act) {
  if (act) {
    for (Index r = 0; r < rows; ++r) {
      const float* from = x + r * width;
      float* to = y + r * width;
#pragma GCC ivdep
      for (Index c = 0; c < width; ++c) to[c] = silu(a[c] * (from[c] - m[c]) + b[c]);
    }
    return;
  }
  for (Index r = 0; r < rows; ++r) {
    const float* from = x + r * width;
    float* to = y + r * width;
#pragma GCC ivdep
    for (Index c = 0; c < width; ++c) to[c] = a[c] * (from[c] - m[c]) + b[c];
  }
}
MRISR_VARIANTS(apply_rows, apply_rows_body,
               (float* y, const float* x, Index rows, Index width, const float* __restrict__ a,
                const float* __restrict__ b, const float* __restrict__ m, bool act),
               (y, x, rows, width, a, b, m, act))

}  // namespace

void group_norm_stats(double* partials, const void* x, const std::uint8_t* mask, const NormShape& shape, Dtype dtype,
                      int threads) {
  check_norm(shape);
  check_dtype(dtype, "group_norm_stats");
  if (shape.n * shape.voxels == 0) return;
  MRISR_CHECK(x != nullptr && partials != nullptr, "group_norm_stats: null pointer");
  const Source source(x, dtype);
  shape.channels_last ? stats_channels_last(partials, source, mask, shape, threads)
                      : stats_channels_first(partials, source, mask, shape, threads);
}

void group_norm_merge(double* mean, double* rstd, const double* partials, Index n, Index slabs, Index groups,
                      double eps) {
  MRISR_CHECK(n >= 0 && slabs >= 0 && groups > 0, "group_norm_merge: sizes must not be negative");
  MRISR_CHECK(eps > 0, "group_norm: eps must be positive; it is " << eps);
  MRISR_CHECK(n == 0 || (mean && rstd && (partials || slabs == 0)), "group_norm_merge: null pointer");
  for (Index i = 0; i < n; ++i)
    for (Index g = 0; g < groups; ++g) {
      Moments all;
      for (Index s = 0; s < slabs; ++s) {
        const double* p = partials + ((i * slabs + s) * groups + g) * 3;
        all.add(p[0], p[1], p[2]);
      }
      mean[i * groups + g] = all.mean;
      rstd[i * groups + g] = all.n == 0 ? 1.0 : 1.0 / std::sqrt(all.m2 / all.n + eps);
    }
}

void group_norm_fold(const Folded& out, const double* mean, const double* rstd, const FilmParams& film,
                     const NormShape& shape) {
  check_norm(shape);
  MRISR_CHECK(shape.n == 0 || (mean && rstd && out.a && out.b && out.m), "group_norm_fold: null pointer");
  for (Index n = 0; n < shape.n; ++n)
    for (Index c = 0; c < shape.channels; ++c) {
      const Index i = n * shape.channels + c, g = n * shape.groups + c / shape.per_group();
      const double scale = film.scale ? 1.0 + film.scale[i] : 1.0, shift = film.shift ? film.shift[i] : 0.0;
      const double weight = film.weight ? film.weight[c] : 1.0, bias = film.bias ? film.bias[c] : 0.0;
      const auto m = static_cast<float>(mean[g]);
      const double a = weight * rstd[g] * scale;
      out.a[i] = static_cast<float>(a);
      out.b[i] = static_cast<float>(bias * scale + shift - (mean[g] - m) * a);
      out.m[i] = m;
    }
}

void group_norm_merge_fold(double* mean, double* rstd, const Folded& out, const double* partials,
                           const FilmParams& film, const NormShape& shape, Index slabs, double eps, int) {
  group_norm_merge(mean, rstd, partials, shape.n, slabs, shape.groups, eps);
  group_norm_fold(out, mean, rstd, film, shape);
}

void group_norm_apply(void* y, const void* x, const Folded& folded, Act act, const NormShape& shape, Dtype dtype,
                      int threads) {
  check_norm(shape);
  check_dtype(dtype, "group_norm_apply");
  if (shape.n * shape.voxels == 0) return;
  MRISR_CHECK(y && x && folded.a && folded.b && folded.m, "group_norm_apply: null pointer");
  const bool active = act == Act::silu, last = shape.channels_last;
  const Source source(x, dtype);
  const Sink sink(y, dtype, shape.n * shape.channels * shape.voxels, x);
  // Few channels: several voxels make one row, so that rows are long enough to vectorise.
  const Index repeats = last ? std::max<Index>(1, kLanes / shape.channels) : 1, channels = last ? shape.channels : 1;
  const Index step = std::max<Index>(1, kBlock / (repeats * channels)) * repeats, lines = last ? 1 : shape.channels;
  const Index steps = (shape.voxels + step - 1) / step, width = repeats * channels, pieces = shape.n * lines * steps;
  parallel_for(pieces, grain(step * channels), threads, [&](Index begin, Index end) {
    Scratch row(width);
    Blocks blocks(step * channels);
    for (Index unit = begin; unit < end; ++unit) {
      const Index line = unit / steps, v0 = unit % steps * step;
      const Index count = std::min(step, shape.voxels - v0) * channels;
      const Index at = (line * shape.voxels + v0) * channels, p = line * channels;
      const float* from = source.read(at, count, blocks.x.data());
      float* to = sink.place(at, blocks.out.data());
      if (last) {
        for (Index q = 0; q < repeats; ++q) {
          std::copy_n(folded.a + p, channels, row.sum + q * channels);
          std::copy_n(folded.b + p, channels, row.pivot + q * channels);
          std::copy_n(folded.m + p, channels, row.first + q * channels);
        }
        const Index done = count / width * width;
        apply_rows(to, from, count / width, width, row.sum, row.pivot, row.first, active);
        apply_rows(to + done, from + done, (count - done) / channels, channels, row.sum, row.pivot, row.first, active);
      } else {
        apply_run(to, from, count, folded.a[p], folded.b[p], folded.m[p], active);
      }
      sink.write(at, count, to);
    }
    sink.finish();
  });
}

}  // namespace cpu
}  // namespace mrisr
