// CUDA C++ for a host compiler: what the kernels of csrc/core use of it. Threads of a block are fibres that meet at
// barriers (fibres.cpp). tests/native/cuda_on_host.py rewrites launches, `__shared__` and the heads of kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline dim3 threadIdx, blockIdx, gridDim, blockDim;

namespace on_host {

constexpr unsigned kWarp = 32;

// Every block of the grid, one after another, in the order that was asked for. Throws where a thread leaves its memory,
// where threads wait for others that never come, and where arithmetic is undefined.
void launch(dim3 grid, dim3 block, const std::function<void()>& kernel);

// The most blocks that launches may ask for along x (MRISR_MOST_BLOCKS).
int most_blocks();

// Called first in every kernel: `name` has the template's arguments.
struct Entry {
  explicit Entry(const char* name);
  void count() { ++threads; }
  const char* name;
  long threads = 0;
};

void meet_block(const char* site);
// Waits for the lanes of `mask`; returns the value that lane `source` brought.
std::uint64_t meet_warp(unsigned mask, std::uint64_t value, unsigned source, const char* site);

// Memory of a block, full of NaN when a block begins.
void poison_at_every_block(void* data, std::size_t bytes);
template <class Array, class Tag>
Array& shared(Tag) {
  alignas(Array) static unsigned char bytes[sizeof(Array)];
  static const bool known = (poison_at_every_block(bytes, sizeof bytes), true);
  static_cast<void>(known);
  return *reinterpret_cast<Array*>(bytes);
}

inline unsigned lane() { return threadIdx.x % kWarp; }

template <class T>
T from_lane(unsigned mask, T value, unsigned source, const char* site) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t) && std::is_trivially_copyable<T>::value,
                "a shuffle moves up to 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = meet_warp(mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace on_host

#define ON_HOST_TEXT_(x) #x
#define ON_HOST_TEXT(x) ON_HOST_TEXT_(x)
#define ON_HOST_SITE __FILE__ ":" ON_HOST_TEXT(__LINE__)

#define __syncthreads() on_host::meet_block(ON_HOST_SITE)
#define __syncwarp() on_host::meet_warp(0xffffffffu, 0, 0, ON_HOST_SITE)
#define __shfl_sync(mask, value, source) on_host::from_lane(mask, value, source, ON_HOST_SITE)
#define __shfl_xor_sync(mask, value, lanes) on_host::from_lane(mask, value, on_host::lane() ^ (lanes), ON_HOST_SITE)
#define __shfl_down_sync(mask, value, lanes)                                                                    \
  on_host::from_lane(mask, value, on_host::lane() + (lanes) < 32 ? on_host::lane() + (lanes) : on_host::lane(), \
                     ON_HOST_SITE)

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
