// Elementwise kernels over feature maps whose numbers depend on sample and channel ("line"): the loop, once.
//
// Threads take packs of neighbouring elements. Channels last: the stride of the grid is a multiple of the channels, so that
// a thread meets the same channels all the way and loads their numbers once. Channels first: a block stays inside a line.
// No division inside a loop.
#pragma once

#include <numeric>

#include "element.cuh"
#include "launch.cuh"

namespace mrisr {
namespace cuda {

constexpr int kThreads = 256;

__device__ __forceinline__ float silu(float z) { return z / (1.0f + expf(-z)); }
__device__ __forceinline__ float silu_slope(float z) {
  const float s = 1.0f / (1.0f + expf(-z));
  return s * (1.0f + z * (1.0f - s));
}

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

template <class T, int V>
__device__ __forceinline__ void load_pack(float (&to)[V], const T* from, Index i) {
  const auto pack = *reinterpret_cast<const Pack<T, V>*>(from + i);
#pragma unroll
  for (int k = 0; k < V; ++k) to[k] = load(pack.at, k);
}

template <class T, int V>
__device__ __forceinline__ void store_pack(T* to, Index i, const float (&from)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int k = 0; k < V; ++k) store(pack.at, k, from[k]);
  *reinterpret_cast<Pack<T, V>*>(to + i) = pack;
}

struct Lines {
  Index n, channels, voxels;
  bool channels_last;
};

// Op: Numbers numbers(line); run<V>(element, sample, voxel, numbers): V elements from `element` on. Channels last: they
// are V channels of one voxel with numbers[0..V); channels first: V voxels of one line with numbers[0].
template <int V, class Op>
__global__ void __launch_bounds__(kThreads) last_kernel(const Op op, const Lines s) {
  const Index packs = s.voxels * s.channels / V, stride = static_cast<Index>(gridDim.x) * kThreads;
  const Index per_voxel = s.channels / V, first = blockIdx.x * static_cast<Index>(kThreads) + threadIdx.x;
  const Index channel = first % per_voxel * V, voxel_step = stride / per_voxel;
  for (Index n = blockIdx.y; n < s.n; n += gridDim.y) {
    typename Op::Numbers numbers[V];
#pragma unroll
    for (int k = 0; k < V; ++k) numbers[k] = op.numbers(n * s.channels + channel + k);
    const Index base = n * s.voxels * s.channels;
    Index voxel = first / per_voxel;
    for (Index i = first; i < packs; i += stride, voxel += voxel_step)
      op.template run<V, true>(base + i * V, n, voxel, numbers);
  }
}

template <int V, class Op>
__global__ void __launch_bounds__(kThreads) first_kernel(const Op op, const Lines s) {
  const Index packs = s.voxels / V, stride = static_cast<Index>(gridDim.x) * kThreads;
  for (Index line = blockIdx.y; line < s.n * s.channels; line += gridDim.y) {
    const typename Op::Numbers numbers[1] = {op.numbers(line)};
    const Index n = line / s.channels;
    for (Index i = blockIdx.x * static_cast<Index>(kThreads) + threadIdx.x; i < packs; i += stride)
      op.template run<V, false>(line * s.voxels + i * V, n, i * V, numbers);
  }
}

// V elements make 16 bytes where sizes and addresses allow it, else one at a time.
template <int Wide, class Op>
void for_each_line(const Op& op, const Lines& s, bool aligned, cudaStream_t stream) {
  const Index run = s.channels_last ? s.channels : s.voxels;
  const bool wide = aligned && run % Wide == 0;
  const int v = wide ? Wide : 1;
  const Index packs = (s.channels_last ? s.voxels * s.channels : s.voxels) / v;
  Index blocks = std::min<Index>((packs + kThreads - 1) / kThreads, std::max(1, MRISR_MOST_BLOCKS / 4));
  if (s.channels_last) {
    const Index per_voxel = s.channels / v, unit = per_voxel / std::gcd(per_voxel, Index{kThreads});
    blocks = (blocks + unit - 1) / unit * unit;
  }
  const Index lines = std::min<Index>(s.channels_last ? s.n : s.n * s.channels, std::min(65535, 4 * MRISR_MOST_BLOCKS));
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(lines));
  if (s.channels_last)
    wide ? last_kernel<Wide><<<grid, kThreads, 0, stream>>>(op, s)
         : last_kernel<1><<<grid, kThreads, 0, stream>>>(op, s);
  else
    wide ? first_kernel<Wide><<<grid, kThreads, 0, stream>>>(op, s)
         : first_kernel<1><<<grid, kThreads, 0, stream>>>(op, s);
}

inline bool aligned16(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

// Sum over the block in a fixed order: shuffles inside a warp, then the warps one after another. All threads get it.
static __device__ double block_sum(double value) {
  __shared__ double warps[kThreads / 32];
  for (int offset = 16; offset > 0; offset >>= 1) value += __shfl_down_sync(0xffffffffu, value, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < kThreads / 32; ++w) total += warps[w];
  return total;
}

}  // namespace cuda
}  // namespace mrisr
