// Softmax attention over a 3D grid of tokens, in windows (one window as large as the volume: global attention), with
// RMS normalisation of queries and keys.
//
// Token i of an axis is in window (i + offset) / window; windows are cut at the volume's edges. qkv is read where it
// lies: [n, D, H, W, 3, heads, head_dim], four strides, the last three axes dense. Results are float32 sums in a fixed
// order, whatever the thread count.
#pragma once

#include "dtype.h"
#include "tensor.h"

namespace mrisr {

struct AttentionShape {
  Index n;
  Index size[3];
  Index stride[4];  // of qkv along n, D, H, W, in elements
  Index heads, head_dim;
  Index window[3], offset[3];
  Dtype dtype;  // of qkv, y and their gradients

  Index voxels() const { return size[0] * size[1] * size[2]; }
  Index windows(int axis) const { return (size[axis] + offset[axis] + window[axis] - 1) / window[axis]; }
};

constexpr Index kMaxHeadDim = 512;

struct AttentionInputs {
  const void* qkv;
  const std::uint8_t* mask;      // [n, D, H, W], nonzero where a token is a key; null: all are
  const float *q_gain, *k_gain;  // [head_dim] or null
  double eps;                    // of the normalisation; 0: none
  double scale;
};

void check_attention(const AttentionShape& shape, const AttentionInputs& in);

namespace cpu {
// y: dense [n, D, H, W, heads, head_dim]. lse: dense float32 [n, D, H, W, heads], or null; infinite where a window has
// no key (y is 0 there).
void attention3d(void* y, float* lse, const AttentionInputs& in, const AttentionShape& shape, int threads);
// d_qkv: dense [n, D, H, W, 3, heads, head_dim]; d_gains: float32 [2, head_dim], queries then keys. d_y, y: as y above.
void attention3d_backward(void* d_qkv, float* d_gains, const void* d_y, const void* y, const float* lse,
                          const AttentionInputs& in, const AttentionShape& shape, int threads);
}  // namespace cpu

}  // namespace mrisr
