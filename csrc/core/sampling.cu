#include "sampling.h"

#include "element.cuh"
#include "launch.cuh"

namespace mrisr {
namespace cuda {
namespace {

constexpr int kThreads = 256;

// Which of the three parts there are is the same for all threads: branches on s cost nothing beside the memory.
template <class T>
__global__ void __launch_bounds__(kThreads) sampler_step_kernel(const SamplerStep s) {
  const StepRow r = step_row(s);
  const T* f = static_cast<const T*>(s.f);
  const Index stride = static_cast<Index>(gridDim.x) * kThreads;
  for (Index i = blockIdx.x * static_cast<Index>(kThreads) + threadIdx.x; i < s.count; i += stride) {
    const float x = s.x[i];
    float x0 = load(f, i);
    if (s.x0 != nullptr) {
      x0 = step_clamp(x0, s.low, s.high);
      s.x0[i] = x0;
    }
    float next = r.a * x + r.b * x0;
    if (s.before != nullptr) next += r.c * s.before[i];
    if (s.noise) next += r.d * step_normal(r, static_cast<std::uint64_t>(i));
    s.next[i] = next;
  }
}

}  // namespace

void sampler_step(const SamplerStep& s, Dtype dtype, void* stream) {
  check_step(s);
  if (s.count == 0) return;
  with_type(dtype, "sampler_step", [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    sampler_step_kernel<T><<<blocks_for(s.count, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(s);
  });
  check_launch("sampler_step");
}

}  // namespace cuda
}  // namespace mrisr
