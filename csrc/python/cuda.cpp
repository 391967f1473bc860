// The doorway to csrc/core on a GPU. Every call returns without waiting.
#include "bindings.h"

#ifdef MRISR_WITH_CUDA
namespace mrisr::doorway {

void bind_cuda(py::module_& m) { bind_both<Address>(m, "cuda_"); }

}  // namespace mrisr::doorway
#endif
