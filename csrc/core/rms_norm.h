// y = act(x rsqrt(mean_c x^2 + eps) (1 + scale) + shift): the channels of every voxel by their root mean square, FiLM and
// SiLU in one pass. No statistics across voxels, so a part of a volume needs nothing of the rest.
#pragma once

#include "activation.h"
#include "dtype.h"
#include "tensor.h"

namespace mrisr {

constexpr Index kChannelSlab = 2048;  // voxels per partial sum of the backward pass

struct ChannelShape {
  Index n, channels, voxels;
  bool channels_last;  // memory is [n, voxels, channels]; else [n, channels, voxels]; dense either way

  MRISR_HD Index slabs() const { return (voxels + kChannelSlab - 1) / kChannelSlab; }
  MRISR_HD Index total() const { return n * channels * voxels; }
};

inline void check_rms_norm(const ChannelShape& s, double eps) {
  MRISR_CHECK(
      s.n >= 0 && s.channels > 0 && s.voxels >= 0,
      "rms_norm: sizes must not be negative; n=" << s.n << ", channels=" << s.channels << ", voxels=" << s.voxels);
  MRISR_CHECK(eps > 0, "rms_norm: eps must be positive; it is " << eps);
}

// scale, shift: float32 [n, channels], each may be null. x, y, grad, dx are in `dtype`.
namespace cpu {
// y may be x.
void rms_norm(void* y, const void* x, const float* scale, const float* shift, double eps, Act act,
              const ChannelShape& shape, Dtype dtype, int threads);
// sums: float64 [n, slabs, channels, 2]: sums over the slab of dz (the gradient of shift) and of dz x rsqrt(...) (that of
// scale). dx may be grad.
void rms_norm_backward(void* dx, double* sums, const void* grad, const void* x, const float* scale, const float* shift,
                       double eps, Act act, const ChannelShape& shape, Dtype dtype, int threads);
}  // namespace cpu

#ifdef MRISR_WITH_CUDA
namespace cuda {
void rms_norm(void* y, const void* x, const float* scale, const float* shift, double eps, Act act,
              const ChannelShape& shape, Dtype dtype, void* stream);
void rms_norm_backward(void* dx, double* sums, const void* grad, const void* x, const float* scale, const float* shift,
                       double eps, Act act, const ChannelShape& shape, Dtype dtype, void* stream);
}  // namespace cuda
#endif

}  // namespace mrisr
