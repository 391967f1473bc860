// What of a scan is head: the air around it, and the background that somebody has masked. Rules and their numbers:
// mrisr/physics/foreground.py, which has the same in NumPy. Nothing is allocated here.
#pragma once

#include <cstdint>

#include "tensor.h"

namespace mrisr {

// Numbers of `cpu::tissue`, in units of the normalised intensity.
struct TissueRule {
  double darkest;   // a local mean below it is air, whatever the noise
  double certain;   // a local mean above it is tissue
  double over_air;  // between the two: tissue above this many times the level of air, and only where it is connected
};

// Numbers of `cpu::masked_background`.
struct BackgroundRule {
  double share;  // of all voxels, at least
  double solid;  // of its voxels, at least so many lie inside of it
};

struct Background {
  Index voxels = 0;  // 0: none was found
  Index first = 0;   // one of them
};

namespace cpu {

// 1 in the head and one voxel around it, 0 in the air around that; holes in a head are head. All 1 where nothing is
// certain. v: [n0, n1, n2], normalised; open: axes at whose two ends there may be air; mean: as many floats as v.
void tissue(std::uint8_t* out, const float* v, const Index n[3], const bool open[3], const TissueRule& rule, float* mean,
            std::uint8_t* spare, int threads);

// 1 where v holds the one exact value that has been written around a head (0, or what most of the faces have), else 0. queue: an
// entry per voxel, of which there are at most 2^32.
Background masked_background(std::uint8_t* out, const float* v, const Index n[3], const BackgroundRule& rule,
                             std::uint32_t* queue);

}  // namespace cpu
}  // namespace mrisr
