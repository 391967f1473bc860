// Launch shapes and launch errors of the CUDA kernels.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "tensor.h"

namespace mrisr {
namespace cuda {

// Enough blocks to fill any GPU; kernels stride over what is left, so that no size overflows the grid. Tests ask for few,
// so that small tensors are strided over too.
#ifndef MRISR_MOST_BLOCKS
#define MRISR_MOST_BLOCKS 16384
#endif

inline unsigned blocks_for(Index n, int threads) {
  return static_cast<unsigned>(std::max<Index>(1, std::min<Index>((n + threads - 1) / threads, MRISR_MOST_BLOCKS)));
}

inline void check_launch(const char* op) {
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) throw DeviceError(std::string(op) + ": CUDA launch failed: " + cudaGetErrorString(status));
}

}  // namespace cuda
}  // namespace mrisr
