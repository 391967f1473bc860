// The module: what it is, and its doorways. Integers from Python become pointers, strides and streams (doorway.h); the
// work is in csrc/core. No torch, no numpy.
#include <string>
#include <utility>

#include "doorway.h"
#include "isa.h"

#ifdef MRISR_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace {

// The number of CUDA devices, or why there is none. Asks the driver, allocates nothing.
std::pair<int, std::string> cuda_devices() {
#ifdef MRISR_WITH_CUDA
  int count = 0, driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return {0, "no NVIDIA driver on this machine"};
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    return {0, cudaGetErrorString(status)};
  }
  return {count, count ? "" : "no CUDA device"};
#else
  return {0, "built without CUDA"};
#endif
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "mrisr's native core. Addresses are integers; sizes and strides count elements. Use mrisr.ops instead.";
  m.attr("version") = MRISR_VERSION;
  m.def("isa", [] { return mrisr::isa_name(); });
  m.def("cuda_devices", &cuda_devices);
#ifdef MRISR_WITH_CUDA
  m.attr("with_cuda") = true;
  mrisr::doorway::bind_cuda(m);
#else
  m.attr("with_cuda") = false;
#endif
  mrisr::doorway::bind_cpu(m);
}
