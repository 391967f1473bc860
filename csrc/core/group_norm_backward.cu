#include "group_norm.h"
#include "lines.cuh"

namespace mrisr {
namespace cuda {
namespace {

constexpr int kColumns = 32, kRows = kThreads / kColumns;
constexpr int kRun = 64;  // float32 sums of this many values go into a float64 one

struct Slope {
  float a, b, m;
  bool active;
  __device__ __forceinline__ float operator()(float grad, float d) const {
    return active ? grad * silu_slope(a * d + b) : grad;
  }
};

__device__ Slope slope_of(const Folded& f, Index line, bool active) {
  return {f.a[line], f.b[line], f.m[line], active};
}

// sum over voxels from, from + step, ... below `to` of dz and dz (x - m); element v lies at base + v * stride.
template <class T>
__device__ __forceinline__ void sum_voxels(double (&sums)[2], const T* __restrict__ grad, const T* __restrict__ x,
                                           const Slope& slope, Index base, Index stride, unsigned from, unsigned to,
                                           unsigned step) {
  sums[0] = sums[1] = 0;
  for (unsigned v = from; v < to;) {
    float first = 0, second = 0;
    for (int k = 0; k < kRun && v < to; ++k, v += step) {
      const float d = load(x, base + v * stride) - slope.m;
      const float dz = slope(load(grad, base + v * stride), d);
      first += dz;
      second += dz * d;
    }
    sums[0] += first;
    sums[1] += second;
  }
}

__device__ __forceinline__ unsigned slab_voxels(Index voxels, Index slab) {
  const Index left = voxels - slab * kSlab;
  return static_cast<unsigned>(left < kSlab ? left : kSlab);
}

// A block takes 32 channels of a slab: neighbouring threads read neighbouring channels; its 8 rows are added in order.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    sums_last_kernel(double* __restrict__ sums, const T* __restrict__ grad, const T* __restrict__ x,
                     const Folded folded, bool active, const NormShape s) {
  __shared__ double rows[kRows][kColumns][2];
  const Index chunks = (s.channels + kColumns - 1) / kColumns, slabs = s.slabs();
  const unsigned column = threadIdx.x % kColumns, row = threadIdx.x / kColumns;
  for (Index unit = blockIdx.x; unit < s.n * slabs * chunks; unit += gridDim.x) {
    const Index piece = unit / chunks, c = (unit - piece * chunks) * kColumns + column;
    const Index n = piece / slabs, slab = piece - n * slabs;
    double part[2] = {0, 0};
    if (c < s.channels)
      sum_voxels(part, grad, x, slope_of(folded, n * s.channels + c, active),
                 (n * s.voxels + slab * kSlab) * s.channels + c, s.channels, row, slab_voxels(s.voxels, slab), kRows);
    rows[row][column][0] = part[0];
    rows[row][column][1] = part[1];
    __syncthreads();
    if (row < 2 && c < s.channels) {
      double total = 0;
      for (int r = 0; r < kRows; ++r) total += rows[r][column][row];
      sums[(piece * s.channels + c) * 2 + row] = total;
    }
    __syncthreads();
  }
}

// A block takes one channel of a slab.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sums_first_kernel(double* __restrict__ sums, const T* __restrict__ grad, const T* __restrict__ x,
                      const Folded folded, bool active, const NormShape s) {
  const Index slabs = s.slabs();
  for (Index unit = blockIdx.x; unit < s.n * slabs * s.channels; unit += gridDim.x) {
    const Index piece = unit / s.channels, c = unit - piece * s.channels, n = piece / slabs, slab = piece - n * slabs;
    const Index line = n * s.channels + c;
    double part[2];
    sum_voxels(part, grad, x, slope_of(folded, line, active), line * s.voxels + slab * kSlab, 1, threadIdx.x,
               slab_voxels(s.voxels, slab), kThreads);
    for (int k = 0; k < 2; ++k) {
      const double total = block_sum(part[k]);
      if (threadIdx.x == 0) sums[unit * 2 + k] = total;
    }
    __syncthreads();
  }
}

template <class T>
struct BackwardApply {
  struct Numbers {
    Slope slope;
    float p, u, v;
  };
  T* dx;
  const T *grad, *x;
  Folded folded;
  Through through;
  const std::uint8_t* mask;
  Index voxels;
  bool active;

  __device__ Numbers numbers(Index line) const {
    return {slope_of(folded, line, active), through.p[line], through.u[line], through.v[line]};
  }

  template <int V, bool Last>
  __device__ __forceinline__ void run(Index i, Index n, Index voxel, const Numbers* numbers) const {
    float g[V], v[V];
    load_pack<T, V>(g, grad, i);
    load_pack<T, V>(v, x, i);
#pragma unroll
    for (int k = 0; k < V; ++k) {
      const Numbers& c = numbers[Last ? k : 0];
      const float d = v[k] - c.slope.m, direct = c.p * c.slope(g[k], d);
      const bool counts = mask == nullptr || mask[n * voxels + voxel + (Last ? 0 : k)];
      g[k] = counts ? direct - (c.u + c.v * d) : direct;
    }
    store_pack<T, V>(dx, i, g);
  }
};

}  // namespace

void group_norm_backward_sums(double* sums, const void* grad, const void* x, const Folded& folded, Act act,
                              const NormShape& s, Dtype dtype, void* stream) {
  check_norm(s);
  if (s.n * s.voxels == 0) return;
  MRISR_CHECK(sums && grad && x && folded.a && folded.b && folded.m, "group_norm_backward_sums: null pointer");
  with_type(dtype, "group_norm_backward_sums", [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const Index columns = s.channels_last ? (s.channels + kColumns - 1) / kColumns : s.channels;
    const auto kernel = s.channels_last ? sums_last_kernel<T> : sums_first_kernel<T>;
    kernel<<<blocks_for(s.n * s.slabs() * columns, 1), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        sums, static_cast<const T*>(grad), static_cast<const T*>(x), folded, act == Act::silu, s);
  });
  check_launch("group_norm_backward_sums");
}

void group_norm_backward_apply(void* dx, const void* grad, const void* x, const Folded& folded, const Through& through,
                               const std::uint8_t* mask, Act act, const NormShape& s, Dtype dtype, void* stream) {
  check_norm(s);
  if (s.n * s.voxels == 0) return;
  MRISR_CHECK(dx && grad && x && folded.a && folded.b && folded.m && through.p && through.u && through.v,
              "group_norm_backward_apply: null pointer");
  with_type(dtype, "group_norm_backward_apply", [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const BackwardApply<T> op{
        static_cast<T*>(dx), static_cast<const T*>(grad), static_cast<const T*>(x), folded, through, mask, s.voxels,
        act == Act::silu};
    for_each_line<8 / sizeof(T)>(op, {s.n, s.channels, s.voxels, s.channels_last},
                                 aligned16(dx) && aligned16(grad) && aligned16(x), static_cast<cudaStream_t>(stream));
  });
  check_launch("group_norm_backward_apply");
}

}  // namespace cuda
}  // namespace mrisr
