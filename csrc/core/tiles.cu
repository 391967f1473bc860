#include "tiles.h"

#include <algorithm>

#include "element.cuh"
#include "launch.cuh"

namespace mrisr {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// A view with plain arrays: std::array cannot be indexed in device code.
template <class T>
struct Cells {
  T* data;
  Index size[3], stride[3];

  template <class From>
  explicit Cells(const View<From, 3>& v) : data(reinterpret_cast<T*>(v.data)) {
    std::copy_n(v.size.data(), 3, size);
    std::copy_n(v.stride.data(), 3, stride);
  }
  __device__ Index offset(Index i, Index j, Index k) const { return i * stride[0] + j * stride[1] + k * stride[2]; }
};

struct Box {
  Index n[3], origin[3];

  __host__ __device__ Index count() const { return n[0] * n[1] * n[2]; }
};

// Every voxel of the box has one thread, so that nothing is added twice and no order is open.
template <class T>
__global__ void __launch_bounds__(kThreads)
    blend_add_kernel(const Cells<float> volume, const Cells<const T> tile, const Box box, const float* __restrict__ w0,
                     const float* __restrict__ w1, const float* __restrict__ w2) {
  const Index stride = static_cast<Index>(gridDim.x) * kThreads;
  for (Index at = blockIdx.x * static_cast<Index>(kThreads) + threadIdx.x; at < box.count(); at += stride) {
    const Index k = at % box.n[2], row = at / box.n[2], j = row % box.n[1], i = row / box.n[1];
    const float scale = w0[i] * w1[j];
    if (scale == 0.0f) continue;  // trimmed rows: a NaN there is not ours to spread
    volume.data[volume.offset(box.origin[0] + i, box.origin[1] + j, box.origin[2] + k)] +=
        load(tile.data, tile.offset(i, j, k)) * (scale * w2[k]);
  }
}

__device__ Index inside(Index i, Index size) { return i < 0 ? 0 : (i < size ? i : size - 1); }

__global__ void __launch_bounds__(kThreads)
    gather_kernel(const Cells<float> tile, const Cells<const float> volume, const Box box) {
  const Index stride = static_cast<Index>(gridDim.x) * kThreads;
  for (Index at = blockIdx.x * static_cast<Index>(kThreads) + threadIdx.x; at < box.count(); at += stride) {
    const Index k = at % box.n[2], row = at / box.n[2], j = row % box.n[1], i = row / box.n[1];
    tile.data[tile.offset(i, j, k)] =
        volume.data[volume.offset(inside(box.origin[0] + i, volume.size[0]), inside(box.origin[1] + j, volume.size[1]),
                                  inside(box.origin[2] + k, volume.size[2]))];
  }
}

}  // namespace

void blend_add(const View<float, 3>& volume, const View<const char, 3>& tile, Dtype dtype, const Index origin[3],
               const float* const weights[3], void* stream) {
  check_view(volume, "blend_add", "volume");
  check_view(tile, "blend_add", "tile");
  Box box{};
  for (int d = 0; d < 3; ++d) {
    MRISR_CHECK(origin[d] >= 0 && origin[d] <= volume.size[d],
                "blend_add: origin[" << d << "] must lie in [0, " << volume.size[d] << "]; it is " << origin[d]);
    MRISR_CHECK(tile.size[d] == 0 || weights[d] != nullptr, "blend_add: weights[" << d << "] is a null pointer");
    box.n[d] = std::min(tile.size[d], volume.size[d] - origin[d]);
    box.origin[d] = origin[d];
  }
  if (box.count() == 0) return;
  with_type(dtype, "blend_add", [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    blend_add_kernel<T><<<blocks_for(box.count(), kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        Cells<float>(volume), Cells<const T>(tile), box, weights[0], weights[1], weights[2]);
  });
  check_launch("blend_add");
}

void gather(const View<float, 3>& tile, const View<const float, 3>& volume, const Index origin[3], void* stream) {
  check_view(tile, "gather", "tile");
  check_view(volume, "gather", "volume");
  const Box box{{tile.size[0], tile.size[1], tile.size[2]}, {origin[0], origin[1], origin[2]}};
  if (box.count() == 0) return;
  for (int d = 0; d < 3; ++d)
    MRISR_CHECK(volume.size[d] > 0, "gather: volume.size[" << d << "] must be positive to repeat its edge; it is 0");
  gather_kernel<<<blocks_for(box.count(), kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      Cells<float>(tile), Cells<const float>(volume), box);
  check_launch("gather");
}

}  // namespace cuda
}  // namespace mrisr
