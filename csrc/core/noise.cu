#include <cuda_runtime.h>

#include "launch.cuh"
#include "noise.h"
#include "noise_math.h"

namespace mrisr {
namespace cuda {
namespace {

__global__ void normal_noise_kernel(float* __restrict__ out, const NoiseBox box) {
  const Index n = box.shape[0] * box.shape[1] * box.shape[2];
  const auto k0 = static_cast<std::uint32_t>(box.seed), k1 = static_cast<std::uint32_t>(box.seed >> 32);
  for (Index i = blockIdx.x * static_cast<Index>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<Index>(gridDim.x) * blockDim.x) {
    const Index z = i % box.shape[2], row = i / box.shape[2];
    const Index x = row / box.shape[1], y = row % box.shape[1];
    const auto voxel = static_cast<std::uint64_t>(
        ((box.origin[0] + x) * box.grid[1] + box.origin[1] + y) * box.grid[2] + box.origin[2] + z);
    const noise::Words w = noise::philox(static_cast<std::uint32_t>(voxel), static_cast<std::uint32_t>(voxel >> 32),
                                         box.sample, box.step, k0, k1);
    out[i] = noise::box_muller(w.w0, w.w1);
  }
}

}  // namespace

void normal_noise(float* out, const NoiseBox& box, void* stream) {
  check_noise(box);
  const Index n = box.shape[0] * box.shape[1] * box.shape[2];
  if (n == 0) return;
  MRISR_CHECK(out != nullptr, "noise: out is a null pointer");
  normal_noise_kernel<<<blocks_for(n, 256), 256, 0, static_cast<cudaStream_t>(stream)>>>(out, box);
  check_launch("noise");
}

}  // namespace cuda
}  // namespace mrisr
