// The Philox words that normal numbers are made of, a line of voxels at a time: what the CPU kernels share.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace mrisr {

struct NoiseKey {
  std::uint32_t k0, k1, sample, step;
};

namespace cpu {

constexpr Index kNoiseChunk = 256;  // voxels whose words are held together, in the L1 cache

// Words 0 and 1 (see noise.h) of the voxels first, ..., first + n - 1.
void noise_words(std::uint32_t* w0, std::uint32_t* w1, Index n, std::uint64_t first, const NoiseKey& key);

}  // namespace cpu
}  // namespace mrisr
