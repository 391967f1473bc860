// One table of what exists on the CPU and on a GPU: a function is bound with the same arguments for both, but for the
// last, which is a number of threads or a stream.
#pragma once

#include "doorway.h"

namespace mrisr::doorway {

// The functions of cpu:: and cuda:: by one name each, told apart by that last argument.
namespace both {

using cpu::gather;
using cpu::group_norm_apply;
using cpu::group_norm_backward_apply;
using cpu::group_norm_backward_sums;
using cpu::group_norm_merge_fold;
using cpu::group_norm_stats;
using cpu::normal_noise;
using cpu::rms_norm;
using cpu::rms_norm_backward;

// Half precision is widened before it comes to these two.
inline void blend_add(const View<float, 3>& volume, const View<const char, 3>& tile, Dtype dtype, const Index origin[3],
                      const float* const weights[3], int threads) {
  MRISR_CHECK(dtype == Dtype::f32, "blend_add: the tile must be float32 on the CPU");
  cpu::blend_add(volume, {reinterpret_cast<const float*>(tile.data), tile.size, tile.stride}, origin, weights, threads);
}

inline void sampler_step(const SamplerStep& step, Dtype dtype, int threads) {
  MRISR_CHECK(dtype == Dtype::f32, "sampler_step: f must be float32 on the CPU");
  cpu::sampler_step(step, threads);
}

#ifdef MRISR_WITH_CUDA
using cuda::blend_add;
using cuda::gather;
using cuda::group_norm_apply;
using cuda::group_norm_backward_apply;
using cuda::group_norm_backward_sums;
using cuda::group_norm_merge_fold;
using cuda::group_norm_stats;
using cuda::normal_noise;
using cuda::rms_norm;
using cuda::rms_norm_backward;
using cuda::sampler_step;
#endif

}  // namespace both

inline int where(int threads) { return threads; }
inline void* where(Address stream) { return reinterpret_cast<void*>(stream); }

// Last: int or Address.
template <class Last>
void bind_both(py::module_& m, const std::string& prefix) {
  using release = py::call_guard<py::gil_scoped_release>;
  const auto name = [&prefix](const char* function) { return prefix + function; };
  m.def(
      name("normal_noise").c_str(),
      [](Address out, Triple shape, Triple origin, Triple grid, std::uint64_t seed, std::uint32_t sample,
         std::uint32_t step, Last last) {
        both::normal_noise(at<float>(out, "out"), box_of(shape, origin, grid, seed, sample, step), where(last));
      },
      release());
  m.def(
      name("blend_add").c_str(),
      [](Address volume, Triple volume_size, Triple volume_stride, Address tile, Triple tile_size, Triple tile_stride,
         Triple origin, std::array<Address, 3> weights, int dtype, Last last) {
        const float* const w[3] = {at<const float>(weights[0], "weights[0]"), at<const float>(weights[1], "weights[1]"),
                                   at<const float>(weights[2], "weights[2]")};
        both::blend_add(view<float>(volume, volume_size, volume_stride, "volume"),
                        view<const char>(tile, tile_size, tile_stride, "tile"), static_cast<Dtype>(dtype),
                        origin.data(), w, where(last));
      },
      release());
  m.def(
      name("gather").c_str(),
      [](Address tile, Triple tile_size, Triple tile_stride, Address volume, Triple volume_size, Triple volume_stride,
         Triple origin, Last last) {
        both::gather(view<float>(tile, tile_size, tile_stride, "tile"),
                     view<const float>(volume, volume_size, volume_stride, "volume"), origin.data(), where(last));
      },
      release());
  m.def(
      name("sampler_step").c_str(),
      [](std::array<Address, 5> volumes, Address table, Index rows, Address clock, bool noise, float low, float high,
         Index count, int dtype, Last last) {
        both::sampler_step(step_of(volumes, table, rows, clock, noise, low, high, count), static_cast<Dtype>(dtype),
                           where(last));
      },
      release());
  m.def(
      name("group_norm_stats").c_str(),
      [](Address partials, Address x, Address mask, Index n, Index channels, Index voxels, Index groups,
         bool channels_last, int dtype, Last last) {
        both::group_norm_stats(
            at<double>(partials, "partials"), map_of<const void>(x, dtype, "x"), at<const std::uint8_t>(mask, "mask"),
            norm_shape(n, channels, voxels, groups, channels_last), static_cast<Dtype>(dtype), where(last));
      },
      release());
  m.def(
      name("group_norm_merge_fold").c_str(),
      [](Address mean, Address rstd, Address a, Address b, Address shift_point, Address partials, Address weight,
         Address bias, Address scale, Address shift, Index n, Index channels, Index slabs, Index groups, double eps,
         Last last) {
        both::group_norm_merge_fold(at<double>(mean, "mean"), at<double>(rstd, "rstd"), folded_of(a, b, shift_point),
                                    at<const double>(partials, "partials"), film_of(weight, bias, scale, shift),
                                    norm_shape(n, channels, 1, groups, false), slabs, eps, where(last));
      },
      release());
  m.def(
      name("group_norm_apply").c_str(),
      [](Address y, Address x, Address a, Address b, Address shift_point, bool silu, Index n, Index channels,
         Index voxels, bool channels_last, int dtype, Last last) {
        both::group_norm_apply(
            map_of<void>(y, dtype, "y"), map_of<const void>(x, dtype, "x"), folded_of(a, b, shift_point), act_of(silu),
            norm_shape(n, channels, voxels, 1, channels_last), static_cast<Dtype>(dtype), where(last));
      },
      release());
  m.def(
      name("group_norm_backward_sums").c_str(),
      [](Address sums, Address grad, Address x, Address a, Address b, Address shift_point, bool silu, Index n,
         Index channels, Index voxels, bool channels_last, int dtype, Last last) {
        both::group_norm_backward_sums(at<double>(sums, "sums"), map_of<const void>(grad, dtype, "grad"),
                                       map_of<const void>(x, dtype, "x"), folded_of(a, b, shift_point), act_of(silu),
                                       norm_shape(n, channels, voxels, 1, channels_last), static_cast<Dtype>(dtype),
                                       where(last));
      },
      release());
  m.def(
      name("group_norm_backward_apply").c_str(),
      [](Address dx, Address grad, Address x, Address a, Address b, Address shift_point, Address p, Address u,
         Address v, Address mask, bool silu, Index n, Index channels, Index voxels, bool channels_last, int dtype,
         Last last) {
        both::group_norm_backward_apply(
            map_of<void>(dx, dtype, "dx"), map_of<const void>(grad, dtype, "grad"), map_of<const void>(x, dtype, "x"),
            folded_of(a, b, shift_point), through_of(p, u, v), at<const std::uint8_t>(mask, "mask"), act_of(silu),
            norm_shape(n, channels, voxels, 1, channels_last), static_cast<Dtype>(dtype), where(last));
      },
      release());
  m.def(
      name("rms_norm").c_str(),
      [](Address y, Address x, Address scale, Address shift, double eps, bool silu, Index n, Index channels,
         Index voxels, bool channels_last, int dtype, Last last) {
        both::rms_norm(map_of<void>(y, dtype, "y"), map_of<const void>(x, dtype, "x"), at<const float>(scale, "scale"),
                       at<const float>(shift, "shift"), eps, act_of(silu), {n, channels, voxels, channels_last},
                       static_cast<Dtype>(dtype), where(last));
      },
      release());
  m.def(
      name("rms_norm_backward").c_str(),
      [](Address dx, Address sums, Address grad, Address x, Address scale, Address shift, double eps, bool silu,
         Index n, Index channels, Index voxels, bool channels_last, int dtype, Last last) {
        both::rms_norm_backward(map_of<void>(dx, dtype, "dx"), at<double>(sums, "sums"),
                                map_of<const void>(grad, dtype, "grad"), map_of<const void>(x, dtype, "x"),
                                at<const float>(scale, "scale"), at<const float>(shift, "shift"), eps, act_of(silu),
                                {n, channels, voxels, channels_last}, static_cast<Dtype>(dtype), where(last));
      },
      release());
}

}  // namespace mrisr::doorway
