#include "chan.h"
#include "group_norm.h"
#include "lines.cuh"

namespace mrisr {
namespace cuda {
namespace {

// The elements of one (sample, slab, group) as rows of neighbours: channels last, a row is a voxel's channels of the group;
// channels first, a channel's voxels. Threads walk with a fixed step and carry instead of dividing.
struct Slab {
  Index base, row_stride, first_voxel;
  unsigned width, rows;
  bool channels_last;
};

__device__ Slab slab_of(Index unit, const NormShape& s) {
  const Index g = unit % s.groups, rest = unit / s.groups, slabs = s.slabs();
  const Index n = rest / slabs, v0 = (rest - n * slabs) * kSlab, per_group = s.per_group();
  const Index sample = n * s.channels * s.voxels, left = s.voxels - v0;
  const auto voxels = static_cast<unsigned>(left < kSlab ? left : kSlab), channels = static_cast<unsigned>(per_group);
  if (s.channels_last)
    return {sample + v0 * s.channels + g * per_group, s.channels, n * s.voxels + v0, channels, voxels, true};
  return {sample + g * per_group * s.voxels + v0, s.voxels, n * s.voxels + v0, voxels, channels, false};
}

// visit(offset) for this thread's active elements, in a fixed order.
template <class Visit>
__device__ __forceinline__ void walk(const Slab& slab, const std::uint8_t* __restrict__ mask, const Visit& visit) {
  const unsigned row_step = kThreads / slab.width, step = kThreads - row_step * slab.width;
  unsigned row = threadIdx.x / slab.width, at = threadIdx.x - row * slab.width;
  while (row < slab.rows) {
    if (mask == nullptr || mask[slab.first_voxel + (slab.channels_last ? row : at)])
      visit(slab.base + row * slab.row_stride + at);
    row += row_step;
    at += step;
    if (at >= slab.width) {
      at -= slab.width;
      ++row;
    }
  }
}

// Two passes over one slab: the second read comes from the L2 cache. Threads sum in float32 over at most
// kSlab * per_group / 256 values, deviations from the mean; across threads in float64.
template <class T>
__global__ void __launch_bounds__(kThreads) stats_kernel(double* __restrict__ partials, const T* __restrict__ x,
                                                         const std::uint8_t* __restrict__ mask, const NormShape shape) {
  const Index units = shape.n * shape.slabs() * shape.groups;
  for (Index unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const Slab slab = slab_of(unit, shape);
    float total = 0, active = 0;
    walk(slab, mask, [&](Index i) {
      total += load(x, i);
      active += 1.0f;
    });
    const double n = block_sum(active), whole = block_sum(total);
    const float pivot = n > 0 ? static_cast<float>(whole / n) : 0.0f;
    float first = 0, second = 0;
    walk(slab, mask, [&](Index i) {
      const float d = load(x, i) - pivot;
      first += d;
      second += d * d;
    });
    const double rest = block_sum(first) / (n > 0 ? n : 1.0);
    const double m2 = block_sum(second) - n * rest * rest;
    if (threadIdx.x == 0) {
      partials[unit * 3] = n;
      partials[unit * 3 + 1] = pivot + rest;
      partials[unit * 3 + 2] = m2 < 0 ? 0.0 : m2;
    }
    __syncthreads();
  }
}

// One warp per (sample, group): every lane merges its own run of slabs, then lane 0 the lanes, in order.
__global__ void merge_fold_kernel(double* __restrict__ mean, double* __restrict__ rstd, const Folded out,
                                  const double* __restrict__ partials, const FilmParams film, const NormShape shape,
                                  Index slabs, double eps) {
  __shared__ Moments lanes[32];
  __shared__ double stats[2];
  const Index n = blockIdx.x / shape.groups, g = blockIdx.x % shape.groups;
  const Index run = (slabs + 31) / 32, from = threadIdx.x * run, to = from + run < slabs ? from + run : slabs;
  Moments mine;
  for (Index s = from; s < to; ++s) {
    const double* p = partials + ((n * slabs + s) * shape.groups + g) * 3;
    mine.add(p[0], p[1], p[2]);
  }
  lanes[threadIdx.x] = mine;
  __syncwarp();
  if (threadIdx.x == 0) {
    Moments all;
    for (int lane = 0; lane < 32; ++lane) all.add(lanes[lane].n, lanes[lane].mean, lanes[lane].m2);
    stats[0] = mean[blockIdx.x] = all.mean;
    stats[1] = rstd[blockIdx.x] = all.n == 0 ? 1.0 : 1.0 / sqrt(all.m2 / all.n + eps);
  }
  __syncwarp();
  const float m = static_cast<float>(stats[0]);
  for (Index k = threadIdx.x; k < shape.per_group(); k += 32) {
    const Index c = g * shape.per_group() + k, i = n * shape.channels + c;
    const double scale = film.scale ? 1.0 + film.scale[i] : 1.0, shift = film.shift ? film.shift[i] : 0.0;
    const double a = (film.weight ? film.weight[c] : 1.0) * stats[1] * scale;
    out.a[i] = static_cast<float>(a);
    out.b[i] = static_cast<float>((film.bias ? film.bias[c] : 0.0) * scale + shift - (stats[0] - m) * a);
    out.m[i] = m;
  }
}

template <class T>
struct Apply {
  struct Numbers {
    float a, b, m;
  };
  T* y;
  const T* x;
  Folded folded;
  bool active;

  __device__ Numbers numbers(Index line) const { return {folded.a[line], folded.b[line], folded.m[line]}; }

  template <int V, bool Last>
  __device__ __forceinline__ void run(Index i, Index, Index, const Numbers* f) const {
    float v[V];
    load_pack<T, V>(v, x, i);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const Numbers& c = f[Last ? k : 0];
      const float z = c.a * (v[k] - c.m) + c.b;
      v[k] = active ? silu(z) : z;
    }
    store_pack<T, V>(y, i, v);
  }
};

}  // namespace

void group_norm_stats(double* partials, const void* x, const std::uint8_t* mask, const NormShape& shape, Dtype dtype,
                      void* stream) {
  check_norm(shape);
  const Index units = shape.n * shape.slabs() * shape.groups;
  if (units == 0) return;
  MRISR_CHECK(x != nullptr && partials != nullptr, "group_norm_stats: null pointer");
  with_type(dtype, "group_norm_stats", [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    stats_kernel<T><<<blocks_for(units, 1), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        partials, static_cast<const T*>(x), mask, shape);
  });
  check_launch("group_norm_stats");
}

void group_norm_merge_fold(double* mean, double* rstd, const Folded& out, const double* partials,
                           const FilmParams& film, const NormShape& shape, Index slabs, double eps, void* stream) {
  check_norm(shape);
  MRISR_CHECK(eps > 0, "group_norm: eps must be positive; it is " << eps);
  if (shape.n == 0) return;
  merge_fold_kernel<<<static_cast<unsigned>(shape.n * shape.groups), 32, 0, static_cast<cudaStream_t>(stream)>>>(
      mean, rstd, out, partials, film, shape, slabs, eps);
  check_launch("group_norm_merge_fold");
}

void group_norm_apply(void* y, const void* x, const Folded& folded, Act act, const NormShape& s, Dtype dtype,
                      void* stream) {
  check_norm(s);
  if (s.n * s.voxels == 0) return;
  MRISR_CHECK(y && x && folded.a && folded.b && folded.m, "group_norm_apply: null pointer");
  with_type(dtype, "group_norm_apply", [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const Apply<T> op{static_cast<T*>(y), static_cast<const T*>(x), folded, act == Act::silu};
    for_each_line<16 / sizeof(T)>(op, {s.n, s.channels, s.voxels, s.channels_last}, aligned16(y) && aligned16(x),
                                  static_cast<cudaStream_t>(stream));
  });
  check_launch("group_norm_apply");
}

}  // namespace cuda
}  // namespace mrisr
