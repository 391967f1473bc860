// CUDA C++ for a host compiler, as far as kernels go whose threads never meet: one thread after another.
// tests/native/test_cuda_on_host.py rewrites kernel<<<blocks, threads, 0, stream>>>(...) to on_host(blocks, threads, ...).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(threads)

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

struct OnHost {
  unsigned x;
};
inline OnHost blockIdx, threadIdx, gridDim, blockDim;

// At most three blocks, so that kernels have to stride over what is left.
template <class Kernel>
void on_host(unsigned blocks, unsigned threads, const Kernel& kernel) {
  gridDim.x = blocks < 3 ? blocks : 3;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel();
}
