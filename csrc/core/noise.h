// Gaussian noise that is a function of (seed, sample, step, voxel of the whole target grid) and of nothing else.
//
// Philox4x32-10 (Salmon et al., SC 2011) with key = (seed low, seed high) and counter = (voxel low, voxel high, sample,
// step), where voxel is the linear index in the whole grid, last axis fastest. Words 0 and 1 make one normal number by
// Box-Muller; words 2 and 3 are kept for later. Words are equal bit for bit on every backend; normals agree to 2e-6.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace mrisr {

struct NoiseBox {
  Index shape[3];   // of the box to fill
  Index origin[3];  // of the box in the grid
  Index grid[3];    // whole target grid
  std::uint64_t seed;
  std::uint32_t sample, step;
};

void check_noise(const NoiseBox& box);

namespace cpu {
// out: contiguous, box.shape. words: contiguous, box.shape x 4.
void normal_noise(float* out, const NoiseBox& box, int threads);
void philox_words(std::uint32_t* words, const NoiseBox& box, int threads);
}  // namespace cpu

#ifdef MRISR_WITH_CUDA
namespace cuda {
// out: contiguous device memory. stream: a cudaStream_t. Returns without waiting.
void normal_noise(float* out, const NoiseBox& box, void* stream);
}  // namespace cuda
#endif

}  // namespace mrisr
