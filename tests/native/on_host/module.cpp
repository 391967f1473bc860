// csrc/python/cuda.cpp as a module of its own, over kernels that run on the host, and the switches of the host.
#include "doorway.h"
#include "host.h"

namespace py = pybind11;

namespace faulty {
void run(const std::string& name, float* y, const float* x, void* stream);
}

PYBIND11_MODULE(mrisr_cuda_on_host, m) {
  using namespace on_host;
  mrisr::doorway::bind_cuda(m);
  m.def("run_in_order", [](const std::string& order, std::uint64_t seed, int most_blocks) {
    settings = {order == "ascending"    ? Order::ascending
                : order == "descending" ? Order::descending
                                        : Order::shuffled,
                seed, most_blocks};
  });
  m.def("ran", [] {
    py::dict all;
    for (const Ran& one : ran()) all[py::str(one.kernel)] = one.threads;
    return all;
  });
  m.def("faulty", [](const std::string& name, std::uintptr_t y, std::uintptr_t x) {
    faulty::run(name, reinterpret_cast<float*>(y), reinterpret_cast<const float*>(x), nullptr);
  });
  m.def("guard", &guard, py::arg("behind"));
  m.def("unguard", &unguard);
}
