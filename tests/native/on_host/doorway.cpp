// The CUDA functions of blend, noise and sampler_step as C functions, for ctypes. A message comes back where one threw.
#include <algorithm>

#include "blend.h"
#include "noise.h"
#include "sampler_step.h"

using namespace mrisr;

namespace {

char message[512];

template <class Work>
const char* guarded(const Work& work) {
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), sizeof message - 1);
    return message;
  }
}

template <class T>
View<T, 3> view(void* data, const Index* size, const Index* stride) {
  return {static_cast<T*>(data), {size[0], size[1], size[2]}, {stride[0], stride[1], stride[2]}};
}

}  // namespace

extern "C" {

const char* on_host_normal_noise(float* out, const Index* shape, const Index* origin, const Index* grid,
                                 std::uint64_t seed, std::uint32_t sample, std::uint32_t step) {
  NoiseBox box{};
  std::copy_n(shape, 3, box.shape);
  std::copy_n(origin, 3, box.origin);
  std::copy_n(grid, 3, box.grid);
  box.seed = seed;
  box.sample = sample;
  box.step = step;
  return guarded([&] { cuda::normal_noise(out, box, nullptr); });
}

const char* on_host_sampler_step(void* const* volumes, const float* table, Index rows, const std::int64_t* clock, int raw,
                                 int noise, float low, float high, const Index* shape, const Index* origin,
                                 const Index* grid, int dtype) {
  SamplerStep s{static_cast<float*>(volumes[0]),
                static_cast<float*>(volumes[1]),
                static_cast<const float*>(volumes[2]),
                volumes[3],
                static_cast<const float*>(volumes[4]),
                table,
                rows,
                clock,
                raw != 0,
                noise != 0,
                low,
                high,
                {},
                {},
                {}};
  std::copy_n(shape, 3, s.shape);
  std::copy_n(origin, 3, s.origin);
  std::copy_n(grid, 3, s.grid);
  return guarded([&] { cuda::sampler_step(s, static_cast<Dtype>(dtype), nullptr); });
}

const char* on_host_blend_add(void* volume, const Index* volume_size, const Index* volume_stride, void* tile,
                              const Index* tile_size, const Index* tile_stride, const Index* origin,
                              const float* const* weights, int dtype) {
  return guarded([&] {
    cuda::blend_add(view<float>(volume, volume_size, volume_stride), view<const char>(tile, tile_size, tile_stride),
                    static_cast<Dtype>(dtype), origin, weights, nullptr);
  });
}

const char* on_host_gather(void* tile, const Index* tile_size, const Index* tile_stride, void* volume,
                           const Index* volume_size, const Index* volume_stride, const Index* origin) {
  return guarded([&] {
    cuda::gather(view<float>(tile, tile_size, tile_stride), view<const float>(volume, volume_size, volume_stride), origin,
                 nullptr);
  });
}

}  // extern "C"
