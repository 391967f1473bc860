// The element types that kernels take, by the codes that doorways hand over.
#pragma once

#include "check.h"

namespace mrisr {

enum class Dtype { f32 = 0, f16 = 1, bf16 = 2 };

inline void check_dtype(Dtype dtype, const char* op) {
  MRISR_CHECK(dtype == Dtype::f32 || dtype == Dtype::f16 || dtype == Dtype::bf16,
              op << ": dtype code must be 0, 1 or 2; it is " << static_cast<int>(dtype));
}

}  // namespace mrisr
