// Elements of half or single precision in memory, single precision in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "dtype.h"
#include "tensor.h"

namespace mrisr {
namespace cuda {

__device__ __forceinline__ float load(const float* p, Index i) { return p[i]; }
__device__ __forceinline__ float load(const __half* p, Index i) { return __half2float(p[i]); }
__device__ __forceinline__ float load(const __nv_bfloat16* p, Index i) { return __bfloat162float(p[i]); }
__device__ __forceinline__ void store(float* p, Index i, float v) { p[i] = v; }
__device__ __forceinline__ void store(__half* p, Index i, float v) { p[i] = __float2half_rn(v); }
__device__ __forceinline__ void store(__nv_bfloat16* p, Index i, float v) { p[i] = __float2bfloat16_rn(v); }

// Calls launch with a null pointer whose type is the element type.
template <class Launch>
void with_type(Dtype dtype, const char* op, const Launch& launch) {
  switch (dtype) {
    case Dtype::f32:
      return launch(static_cast<float*>(nullptr));
    case Dtype::f16:
      return launch(static_cast<__half*>(nullptr));
    case Dtype::bf16:
      return launch(static_cast<__nv_bfloat16*>(nullptr));
  }
  MRISR_CHECK(false, op << ": dtype code must be 0, 1 or 2; it is " << static_cast<int>(dtype));
}

}  // namespace cuda
}  // namespace mrisr
