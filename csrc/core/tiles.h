// Tiles out of a volume and back in, one pass each.
//
// Weights are separable and already normalised: along every axis the weights of all tiles add up to one at every voxel,
// so the pieces add up to one in 3D and no running sum of weights exists. A constant comes back as that constant.
#pragma once

#include "dtype.h"
#include "tensor.h"

namespace mrisr {
namespace cpu {

// volume[o0+i, o1+j, o2+k] += tile[i, j, k] * w0[i] * w1[j] * w2[k] for the part of the tile inside the volume.
// The tile may pass the volume's end (edge padding); what lies outside is dropped. Last strides must be 1.
void blend_add(const View<float, 3>& volume, const View<const float, 3>& tile, const Index origin[3],
               const float* const weights[3], int threads);

// tile[i, j, k] = volume[clamp(o0+i), clamp(o1+j), clamp(o2+k)]: outside the volume the nearest voxel is repeated.
void gather(const View<float, 3>& tile, const View<const float, 3>& volume, const Index origin[3], int threads);

}  // namespace cpu

#ifdef MRISR_WITH_CUDA
namespace cuda {
// The same on device memory; any strides, the tile in dtype. They return without waiting.
void blend_add(const View<float, 3>& volume, const View<const char, 3>& tile, Dtype dtype, const Index origin[3],
               const float* const weights[3], void* stream);
void gather(const View<float, 3>& tile, const View<const float, 3>& volume, const Index origin[3], void* stream);
}  // namespace cuda
#endif

}  // namespace mrisr
