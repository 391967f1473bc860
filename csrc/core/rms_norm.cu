#include "rms_norm.h"
#include "lines.cuh"

namespace mrisr {
namespace cuda {
namespace {

// Channels last: 8, 16 or 32 lanes share a voxel and add their squares by shuffles, which leaves the same sum in every lane.
// Channels first: a thread has a voxel of its own, and neighbours read neighbours. Both read x twice, the second time from
// the L1 cache.
template <class T>
struct Map {
  T* out;
  const T *grad, *x;
  const float *scale, *shift;
  ChannelShape s;
  float eps;
  bool active;

  __device__ __forceinline__ float gain(Index line) const { return scale ? 1.0f + scale[line] : 1.0f; }
  __device__ __forceinline__ float offset(Index line) const { return shift ? shift[line] : 0.0f; }
  __device__ __forceinline__ Index at(Index n, Index voxel, Index c) const {
    return s.channels_last ? (n * s.voxels + voxel) * s.channels + c : (n * s.channels + c) * s.voxels + voxel;
  }
  __device__ __forceinline__ float normed(Index i, float r) const { return load(x, i) * r; }
  __device__ __forceinline__ float dz(Index i, Index line, float n) const {
    const float g = load(grad, i);
    return active ? g * silu_slope(n * gain(line) + offset(line)) : g;
  }
};

template <int Lanes>
__device__ __forceinline__ float over_lanes(float value) {
#pragma unroll
  for (int o = Lanes / 2; o > 0; o >>= 1) value += __shfl_xor_sync(0xffffffffu, value, o);
  return value;
}

template <int Lanes, class T>
__device__ __forceinline__ float inverse_rms(const Map<T>& m, Index n, Index voxel, int lane, bool inside) {
  float squares = 0;
  if (inside)
    for (Index c = lane; c < m.s.channels; c += Lanes) {
      const float v = load(m.x, m.at(n, voxel, c));
      squares += v * v;
    }
  return rsqrtf(over_lanes<Lanes>(squares) / static_cast<float>(m.s.channels) + m.eps);
}

template <int Lanes, class T>
__global__ void __launch_bounds__(kThreads) forward_kernel(const Map<T> m) {
  constexpr Index kVoxels = kThreads / Lanes;
  const int lane = threadIdx.x % Lanes;
  const Index all = m.s.n * m.s.voxels;
  // All lanes of a warp stay in the loop: they meet in the shuffles.
  for (Index first = blockIdx.x * kVoxels; first < all; first += gridDim.x * kVoxels) {
    const Index id = first + threadIdx.x / Lanes, n = id / m.s.voxels, voxel = id - n * m.s.voxels;
    const bool inside = id < all;
    const float r = inverse_rms<Lanes>(m, n, voxel, lane, inside);
    if (!inside) continue;
    for (Index c = lane; c < m.s.channels; c += Lanes) {
      const Index i = m.at(n, voxel, c), line = n * m.s.channels + c;
      const float z = m.normed(i, r) * m.gain(line) + m.offset(line);
      store(m.out, i, m.active ? silu(z) : z);
    }
  }
}

// With n = x r, w = dz gain: dx = r (w - n mean_c(w n)).
template <int Lanes, class T>
__global__ void __launch_bounds__(kThreads) dx_kernel(const Map<T> m) {
  constexpr Index kVoxels = kThreads / Lanes;
  const int lane = threadIdx.x % Lanes;
  const Index all = m.s.n * m.s.voxels;
  for (Index first = blockIdx.x * kVoxels; first < all; first += gridDim.x * kVoxels) {
    const Index id = first + threadIdx.x / Lanes, n = id / m.s.voxels, voxel = id - n * m.s.voxels;
    const bool inside = id < all;
    const float r = inverse_rms<Lanes>(m, n, voxel, lane, inside);
    float dot = 0;
    if (inside)
      for (Index c = lane; c < m.s.channels; c += Lanes) {
        const Index i = m.at(n, voxel, c), line = n * m.s.channels + c;
        const float v = m.normed(i, r);
        dot += m.dz(i, line, v) * m.gain(line) * v;
      }
    const float mean = over_lanes<Lanes>(dot) / static_cast<float>(m.s.channels);
    if (!inside) continue;
    for (Index c = lane; c < m.s.channels; c += Lanes) {
      const Index i = m.at(n, voxel, c), line = n * m.s.channels + c;
      const float v = m.normed(i, r);
      store(m.out, i, r * (m.dz(i, line, v) * m.gain(line) - v * mean));
    }
  }
}

// sums [n, slabs, channels, 2]: a block has a slab; it keeps 1 / rms of its voxels in shared memory, then every warp takes
// channels in turn (first) or every thread a channel and every 256th / channels row (last). Runs before dx is written, which
// may overwrite grad.
template <class T>
__global__ void __launch_bounds__(kThreads) sums_kernel(double* __restrict__ sums, const Map<T> m) {
  __shared__ float r[kChannelSlab];
  __shared__ double rows[kThreads][2];
  const Index slabs = m.s.slabs(), channels = m.s.channels;
  const unsigned columns = channels < 32 || !m.s.channels_last ? 1u : 32u;  // threads side by side on channels
  const unsigned deep = kThreads / columns, column = threadIdx.x % columns, row = threadIdx.x / columns;
  for (Index unit = blockIdx.x; unit < m.s.n * slabs; unit += gridDim.x) {
    const Index n = unit / slabs, v0 = (unit - n * slabs) * kChannelSlab, left = m.s.voxels - v0;
    const auto voxels = static_cast<unsigned>(left < kChannelSlab ? left : kChannelSlab);
    for (unsigned v = threadIdx.x; v < voxels; v += kThreads) {
      float squares = 0;
      for (Index c = 0; c < channels; ++c) {
        const float value = load(m.x, m.at(n, v0 + v, c));
        squares += value * value;
      }
      r[v] = rsqrtf(squares / static_cast<float>(channels) + m.eps);
    }
    __syncthreads();
    for (Index c0 = 0; c0 < channels; c0 += columns) {
      const Index c = c0 + column, line = n * channels + c;
      double first = 0, second = 0;
      if (c < channels)
        for (unsigned v = row; v < voxels; v += deep) {
          const Index i = m.at(n, v0 + v, c);
          const float normed = m.normed(i, r[v]), dz = m.dz(i, line, normed);
          first += dz;
          second += static_cast<double>(dz) * normed;
        }
      rows[threadIdx.x][0] = first;
      rows[threadIdx.x][1] = second;
      __syncthreads();
      if (threadIdx.x < 2 * columns && c0 + threadIdx.x / 2 < channels) {
        double total = 0;
        for (unsigned k = 0; k < deep; ++k) total += rows[k * columns + threadIdx.x / 2][threadIdx.x % 2];
        sums[(unit * channels + c0) * 2 + threadIdx.x] = total;
      }
      __syncthreads();
    }
  }
}

// Lanes per voxel: channels first, one; else enough to cover the channels, a warp at most.
template <template <int, class> class Launch, class T>
void with_lanes(const Map<T>& m, cudaStream_t stream) {
  if (!m.s.channels_last) return Launch<1, T>::run(m, stream);
  if (m.s.channels <= 8) return Launch<8, T>::run(m, stream);
  if (m.s.channels <= 16) return Launch<16, T>::run(m, stream);
  return Launch<32, T>::run(m, stream);
}

template <int Lanes, class T>
struct Forward {
  static void run(const Map<T>& m, cudaStream_t stream) {
    forward_kernel<Lanes, T><<<blocks_for(m.s.n * m.s.voxels * Lanes, kThreads), kThreads, 0, stream>>>(m);
  }
};

template <int Lanes, class T>
struct Backward {
  static void run(const Map<T>& m, cudaStream_t stream) {
    dx_kernel<Lanes, T><<<blocks_for(m.s.n * m.s.voxels * Lanes, kThreads), kThreads, 0, stream>>>(m);
  }
};

template <class T>
Map<T> map_of(void* out, const void* grad, const void* x, const float* scale, const float* shift, double eps, Act act,
              const ChannelShape& s) {
  return {static_cast<T*>(out),
          static_cast<const T*>(grad),
          static_cast<const T*>(x),
          scale,
          shift,
          s,
          static_cast<float>(eps),
          act == Act::silu};
}

}  // namespace

void rms_norm(void* y, const void* x, const float* scale, const float* shift, double eps, Act act,
              const ChannelShape& s, Dtype dtype, void* stream) {
  check_rms_norm(s, eps);
  if (s.total() == 0) return;
  MRISR_CHECK(y && x, "rms_norm: null pointer");
  with_type(dtype, "rms_norm", [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    with_lanes<Forward>(map_of<T>(y, nullptr, x, scale, shift, eps, act, s), static_cast<cudaStream_t>(stream));
  });
  check_launch("rms_norm");
}

void rms_norm_backward(void* dx, double* sums, const void* grad, const void* x, const float* scale, const float* shift,
                       double eps, Act act, const ChannelShape& s, Dtype dtype, void* stream) {
  check_rms_norm(s, eps);
  if (s.total() == 0) return;
  MRISR_CHECK(dx && sums && grad && x, "rms_norm_backward: null pointer");
  with_type(dtype, "rms_norm_backward", [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    const auto map = map_of<T>(dx, grad, x, scale, shift, eps, act, s);
    const auto queue = static_cast<cudaStream_t>(stream);
    sums_kernel<T><<<blocks_for(s.n * s.slabs(), 1), kThreads, 0, queue>>>(sums, map);
    with_lanes<Backward>(map, queue);
  });
  check_launch("rms_norm_backward");
}

}  // namespace cuda
}  // namespace mrisr
