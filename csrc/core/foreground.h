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

// Numbers of `cpu::bricks`, in units of the normalised intensity.
struct BrickRule {
  Index size;    // voxels along an edge
  float air;     // a mean above it is tissue
  float bright;  // a voxel above it is tissue
  int fewest;    // bricks of the 27 at and around one; with no more it is a speck of noise
};

struct Background {
  Index voxels = 0;  // 0: none was found
  Index first = 0;   // one of them
};

namespace cpu {

// 1 in the head and one voxel around it, 0 in the air around that; holes in a head are head. All 1 where nothing is
// certain. v: [n0, n1, n2], normalised; open: axes at whose two ends there may be air; mean: as many floats as v.
void tissue(std::uint8_t* out, const float* v, const Index n[3], const bool open[3], const TissueRule& rule,
            float* mean, std::uint8_t* spare, int threads);

// 1 where v holds the one exact value that has been written around a head (0, or what most of the faces have), else 0. queue: an
// entry per voxel, of which there are at most 2^32.
Background masked_background(std::uint8_t* out, const float* v, const Index n[3], const BackgroundRule& rule,
                             std::uint32_t* queue);

// 1 in every brick of rule.size^3 voxels that holds tissue, and around it: [ceil(n0 / size), ...], as spare. v: [n0, n1,
// n2], normalised.
void bricks(std::uint8_t* out, std::uint8_t* spare, const float* v, const Index n[3], const BrickRule& rule,
            int threads);

}  // namespace cpu
}  // namespace mrisr
