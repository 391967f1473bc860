// Noise out of a volume: an empirical Wiener filter in overlapping blocks of 4 x 4 x 4 voxels. Rules and their numbers:
// mrisr/physics/wiener.py, which has the same in NumPy.
#pragma once

#include "tensor.h"

namespace mrisr {

constexpr Index kBlock = 4;                           // voxels along the edge of a block
constexpr Index kCosines = kBlock * kBlock * kBlock;  // coefficients of its cosine transform (orthonormal, type II)

// Which share of the variance of white noise each coefficient holds, after the band of every axis was cut at `band`
// cycles per voxel (0.5: nothing is cut). shares: kCosines numbers, the last axis fastest.
void cosine_shares(float* shares, const double band[3]);

namespace cpu {

// out [n]: the scan, each coefficient of each block times p^2 / (p^2 + variance) with p the pilot's, the mean of a block
// as it is; blocks overlap by all but a voxel and count by what little noise each holds. Beyond its ends a volume is
// mirrored at its outer voxels. variance: kCosines numbers. scratch: wiener_scratch floats. The same for any number of
// threads.
void wiener(float* out, const float* scan, const float* pilot, const Index n[3], const float* variance, float* scratch,
            int threads);
Index wiener_scratch(const Index n[3], int threads);

// The energy in `chosen` coefficients, over their shares, of at most `most` blocks that do not overlap, spread over the
// volume, whose mean is above `level`: into energy; their number. A volume thinner than a block has none.
Index cosine_energies(float* energy, Index most, const float* scan, const Index n[3], float level, const float* shares,
                      const int* chosen, int count);

}  // namespace cpu
}  // namespace mrisr
