// Group normalisation + FiLM + SiLU over 5D feature maps, in three separable pieces:
//
//   stats   per slab of voxels and group: (n, mean, M2) of the active voxels
//   merge   Chan's formula over the slabs, in fixed order, float64 -> mean, rstd; folded with weight, bias and FiLM
//   apply   y = act(a (x - m) + b), one read and one write
//
// The slabs depend on the shape alone, so neither thread count nor device changes the statistics; pieces of a volume can
// be normalised by the statistics of the whole. `m` is kept apart from b because folding it in loses three digits where the
// mean is large (mean 1e4, std 1 in float32).
#pragma once

#include "activation.h"
#include "dtype.h"
#include "tensor.h"

namespace mrisr {

constexpr Index kSlab = 16384;  // voxels per partial

struct NormShape {
  Index n, channels, voxels, groups;
  bool channels_last;  // memory is [n, voxels, channels]; else [n, channels, voxels]; dense either way

  MRISR_HD Index slabs() const { return (voxels + kSlab - 1) / kSlab; }
  MRISR_HD Index per_group() const { return channels / groups; }
};

// Float64 [n, slabs, groups, 3]: count, mean, sum of squared deviations.
inline Index partials_size(const NormShape& s) { return s.n * s.slabs() * s.groups * 3; }

struct FilmParams {            // each may be null
  const float *weight, *bias;  // [channels]
  const float *scale, *shift;  // [n, channels]
};

struct Folded {  // float32 [n, channels] each
  float *a, *b, *m;
};

// What comes back through the statistics, float32 [n, channels] each: dx = p dz - (u + v (x - m)) where a voxel is active,
// p dz elsewhere.
struct Through {
  const float *p, *u, *v;
};

inline void check_norm(const NormShape& s) {
  MRISR_CHECK(
      s.n >= 0 && s.channels > 0 && s.voxels >= 0,
      "group_norm: sizes must not be negative; n=" << s.n << ", channels=" << s.channels << ", voxels=" << s.voxels);
  MRISR_CHECK(s.groups > 0 && s.channels % s.groups == 0,
              "group_norm: channels (" << s.channels << ") must be divisible by groups (" << s.groups << ")");
}

// Tensors of the feature map's shape are in `dtype`; everything else is float32 or float64, as declared.
namespace cpu {
// mask: uint8 [n, voxels], nonzero where a voxel counts; null means all.
void group_norm_stats(double* partials, const void* x, const std::uint8_t* mask, const NormShape& shape, Dtype dtype,
                      int threads);
// Merges any number of slabs of partials [n, slabs, groups, 3]. mean, rstd: float64 [n, groups]. Where nothing is
// active the mean is 0 and rstd 1.
void group_norm_merge(double* mean, double* rstd, const double* partials, Index n, Index slabs, Index groups,
                      double eps);
void group_norm_fold(const Folded& out, const double* mean, const double* rstd, const FilmParams& film,
                     const NormShape& shape);
// Both: shape's voxels do not count.
void group_norm_merge_fold(double* mean, double* rstd, const Folded& out, const double* partials,
                           const FilmParams& film, const NormShape& shape, Index slabs, double eps, int threads);
// y may be x.
void group_norm_apply(void* y, const void* x, const Folded& folded, Act act, const NormShape& shape, Dtype dtype,
                      int threads);
// sums: float64 [n, slabs, channels, 2] = sum of dz, sum of dz (x - m), over all voxels of the slab, where
// dz = grad act'(a (x - m) + b).
void group_norm_backward_sums(double* sums, const void* grad, const void* x, const Folded& folded, Act act,
                              const NormShape& shape, Dtype dtype, int threads);
// dx may be grad.
void group_norm_backward_apply(void* dx, const void* grad, const void* x, const Folded& folded, const Through& through,
                               const std::uint8_t* mask, Act act, const NormShape& shape, Dtype dtype, int threads);
}  // namespace cpu

#ifdef MRISR_WITH_CUDA
namespace cuda {
// The same pieces on device memory. They return without waiting.
void group_norm_stats(double* partials, const void* x, const std::uint8_t* mask, const NormShape& shape, Dtype dtype,
                      void* stream);
void group_norm_merge_fold(double* mean, double* rstd, const Folded& out, const double* partials,
                           const FilmParams& film, const NormShape& shape, Index slabs, double eps, void* stream);
void group_norm_apply(void* y, const void* x, const Folded& folded, Act act, const NormShape& shape, Dtype dtype,
                      void* stream);
void group_norm_backward_sums(double* sums, const void* grad, const void* x, const Folded& folded, Act act,
                              const NormShape& shape, Dtype dtype, void* stream);
void group_norm_backward_apply(void* dx, const void* grad, const void* x, const Folded& folded, const Through& through,
                               const std::uint8_t* mask, Act act, const NormShape& shape, Dtype dtype, void* stream);
}  // namespace cuda
#endif

}  // namespace mrisr
