#include <cuda_runtime.h>

#include "chan.h"
#include "element.cuh"
#include "group_norm.h"
#include "launch.cuh"

namespace mrisr {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// Sum over the block in a fixed order: shuffles inside a warp, then the warps one after another. All threads get it.
__device__ double block_sum(double value) {
  __shared__ double warps[kThreads / 32];
  for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_down_sync(0xffffffffu, value, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < kThreads / 32; ++w) total += warps[w];
  return total;
}

// The elements of one (sample, slab, group), fastest axis first, so that neighbouring threads read neighbours.
struct Slab {
  Index base, voxel0, voxels, channels, channel_stride, voxel_stride;
  bool channels_last;

  __device__ Index count() const { return voxels * channels; }
  __device__ Index voxel(Index i) const { return channels_last ? i / channels : i % voxels; }
  __device__ Index offset(Index i) const {
    const Index c = channels_last ? i % channels : i / voxels;
    return base + c * channel_stride + voxel(i) * voxel_stride;
  }
};

__device__ Slab slab_of(Index unit, const NormShape& s) {
  const Index g = unit % s.groups, slab = unit / s.groups % s.slabs(), n = unit / s.groups / s.slabs();
  const Index v0 = slab * kSlab, per_group = s.per_group();
  const Index cs = s.channels_last ? 1 : s.voxels, vs = s.channels_last ? s.channels : 1;
  const Index base = n * s.channels * s.voxels + g * per_group * cs + v0 * vs;
  const Index left = s.voxels - v0;
  return {base, n * s.voxels + v0, left < kSlab ? left : kSlab, per_group, cs, vs, s.channels_last};
}

// Two passes over one slab: the second read comes from the L2 cache. Threads sum in float32 over at most
// kSlab * per_group / 256 values, deviations from the mean; across threads in float64.
template <class T>
__global__ void __launch_bounds__(kThreads) stats_kernel(double* __restrict__ partials, const T* __restrict__ x,
                                                         const std::uint8_t* __restrict__ mask, const NormShape shape) {
  const Index units = shape.n * shape.slabs() * shape.groups;
  for (Index unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const Slab slab = slab_of(unit, shape);
    float sum = 0, active = 0;
    for (Index i = threadIdx.x; i < slab.count(); i += kThreads)
      if (mask == nullptr || mask[slab.voxel0 + slab.voxel(i)]) {
        sum += load(x, slab.offset(i));
        active += 1.0f;
      }
    const double n = block_sum(active);
    const double total = block_sum(sum);
    const float pivot = n > 0 ? static_cast<float>(total / n) : 0.0f;
    float first = 0, second = 0;
    for (Index i = threadIdx.x; i < slab.count(); i += kThreads)
      if (mask == nullptr || mask[slab.voxel0 + slab.voxel(i)]) {
        const float d = load(x, slab.offset(i)) - pivot;
        first += d;
        second += d * d;
      }
    const double rest = n > 0 ? block_sum(first) / n : block_sum(first);
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
                                  double eps) {
  __shared__ Moments lanes[32];
  __shared__ double found[2];
  const Index n = blockIdx.x / shape.groups, g = blockIdx.x % shape.groups, slabs = shape.slabs();
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
    found[0] = mean[blockIdx.x] = all.mean;
    found[1] = rstd[blockIdx.x] = all.n == 0 ? 1.0 : 1.0 / sqrt(all.m2 / all.n + eps);
  }
  __syncwarp();
  const float m = static_cast<float>(found[0]);
  for (Index k = threadIdx.x; k < shape.per_group(); k += 32) {
    const Index c = g * shape.per_group() + k, i = n * shape.channels + c;
    const double scale = film.scale ? 1.0 + film.scale[i] : 1.0, shift = film.shift ? film.shift[i] : 0.0;
    const double a = (film.weight ? film.weight[c] : 1.0) * found[1] * scale;
    out.a[i] = static_cast<float>(a);
    out.b[i] = static_cast<float>((film.bias ? film.bias[c] : 0.0) * scale + shift - (found[0] - m) * a);
    out.m[i] = m;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) apply_kernel(T* y, const T* x, const Folded f, bool silu,
                                                         const NormShape shape) {
  const Index per_sample = shape.channels * shape.voxels, total = shape.n * per_sample;
  for (Index i = blockIdx.x * static_cast<Index>(kThreads) + threadIdx.x; i < total;
       i += static_cast<Index>(gridDim.x) * kThreads) {
    const Index n = i / per_sample, inside = i % per_sample;
    const Index p = n * shape.channels + (shape.channels_last ? inside % shape.channels : inside / shape.voxels);
    const float z = f.a[p] * (load(x, i) - f.m[p]) + f.b[p];
    store(y, i, silu ? z / (1.0f + expf(-z)) : z);
  }
}

}  // namespace

void group_norm_stats(double* partials, const void* x, const std::uint8_t* mask, const NormShape& shape, Dtype dtype,
                      void* stream) {
  check_norm(shape);
  const Index units = shape.n * shape.slabs() * shape.groups;
  if (units == 0) return;
  MRISR_CHECK(x != nullptr && partials != nullptr, "group_norm_stats: null pointer");
  with_type(dtype, "group_norm", [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    stats_kernel<T><<<blocks_for(units, 1), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        partials, static_cast<const T*>(x), mask, shape);
  });
  check_launch("group_norm_stats");
}

void group_norm_merge_fold(double* mean, double* rstd, const Folded& out, const double* partials, const FilmParams& film,
                           const NormShape& shape, double eps, void* stream) {
  check_norm(shape);
  MRISR_CHECK(eps > 0, "group_norm: eps must be positive; it is " << eps);
  if (shape.n == 0) return;
  merge_fold_kernel<<<static_cast<unsigned>(shape.n * shape.groups), 32, 0, static_cast<cudaStream_t>(stream)>>>(
      mean, rstd, out, partials, film, shape, eps);
  check_launch("group_norm_merge_fold");
}

void group_norm_apply(void* y, const void* x, const Folded& folded, Act act, const NormShape& shape, Dtype dtype,
                      void* stream) {
  check_norm(shape);
  const Index total = shape.n * shape.channels * shape.voxels;
  if (total == 0) return;
  MRISR_CHECK(y && x && folded.a && folded.b && folded.m, "group_norm_apply: null pointer");
  with_type(dtype, "group_norm", [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    apply_kernel<T><<<blocks_for(total, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<T*>(y), static_cast<const T*>(x), folded, act == Act::silu, shape);
  });
  check_launch("group_norm_apply");
}

}  // namespace cuda
}  // namespace mrisr
