// The element types that kernels on a device take, by the codes that doorways hand over.
#pragma once

namespace mrisr {
enum class Dtype { f32 = 0, f16 = 1, bf16 = 2 };
}  // namespace mrisr
