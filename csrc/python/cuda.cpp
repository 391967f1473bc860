// The doorway to csrc/core on a GPU. Every call returns without waiting.
#include "doorway.h"

#ifdef MRISR_WITH_CUDA
namespace mrisr::doorway {

void bind_cuda(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def(
      "cuda_normal_noise",
      [](Address out, Triple shape, Triple origin, Triple grid, std::uint64_t seed, std::uint32_t sample,
         std::uint32_t step, Address stream) {
        cuda::normal_noise(at<float>(out, "out"), box_of(shape, origin, grid, seed, sample, step),
                           reinterpret_cast<void*>(stream));
      },
      release());
  m.def(
      "cuda_blend_add",
      [](Address volume, Triple volume_size, Triple volume_stride, Address tile, Triple tile_size, Triple tile_stride,
         Triple origin, std::array<Address, 3> weights, int dtype, Address stream) {
        const float* const w[3] = {at<const float>(weights[0], "weights[0]"), at<const float>(weights[1], "weights[1]"),
                                   at<const float>(weights[2], "weights[2]")};
        cuda::blend_add(view<float>(volume, volume_size, volume_stride, "volume"),
                        view<const char>(tile, tile_size, tile_stride, "tile"), static_cast<Dtype>(dtype), origin.data(),
                        w, reinterpret_cast<void*>(stream));
      },
      release());
  m.def(
      "cuda_gather",
      [](Address tile, Triple tile_size, Triple tile_stride, Address volume, Triple volume_size, Triple volume_stride,
         Triple origin, Address stream) {
        cuda::gather(view<float>(tile, tile_size, tile_stride, "tile"),
                     view<const float>(volume, volume_size, volume_stride, "volume"), origin.data(),
                     reinterpret_cast<void*>(stream));
      },
      release());
  m.def(
      "cuda_sampler_step",
      [](std::array<Address, 5> volumes, Address table, Index rows, Address clock, bool raw, bool noise, float low,
         float high, Triple shape, Triple origin, Triple grid, int dtype, Address stream) {
        cuda::sampler_step(step_of(volumes, table, rows, clock, raw, noise, low, high, shape, origin, grid),
                           static_cast<Dtype>(dtype), reinterpret_cast<void*>(stream));
      },
      release());
  m.def(
      "cuda_group_norm_stats",
      [](Address partials, Address x, Address mask, Index n, Index channels, Index voxels, Index groups,
         bool channels_last, int dtype, Address stream) {
        cuda::group_norm_stats(at<double>(partials, "partials"), map_of<const void>(x, dtype, "x"),
                              at<const std::uint8_t>(mask, "mask"), norm_shape(n, channels, voxels, groups, channels_last),
                              static_cast<Dtype>(dtype), reinterpret_cast<void*>(stream));
      },
      release());
  m.def(
      "cuda_add_stats",
      [](Address partials, Address sum, Address x, Address y, Address mask, Index n, Index channels, Index voxels,
         Index groups, bool channels_last, int dtype, Address stream) {
        cuda::add_stats(at<double>(partials, "partials"), map_of<void>(sum, dtype, "sum"), map_of<const void>(x, dtype, "x"),
                       map_of<const void>(y, dtype, "y"), at<const std::uint8_t>(mask, "mask"),
                       norm_shape(n, channels, voxels, groups, channels_last), static_cast<Dtype>(dtype), reinterpret_cast<void*>(stream));
      },
      release());
  m.def(
      "cuda_group_norm_merge_fold",
      [](Address mean, Address rstd, Address a, Address b, Address shift_point, Address partials, Address weight,
         Address bias, Address scale, Address shift, Index n, Index channels, Index slabs, Index groups, double eps,
         Address stream) {
        cuda::group_norm_merge_fold(at<double>(mean, "mean"), at<double>(rstd, "rstd"), folded_of(a, b, shift_point),
                                    at<const double>(partials, "partials"), film_of(weight, bias, scale, shift),
                                    norm_shape(n, channels, 1, groups, false), slabs, eps, reinterpret_cast<void*>(stream));
      },
      release());
  m.def(
      "cuda_group_norm_apply",
      [](Address y, Address x, Address a, Address b, Address shift_point, bool silu, Index n, Index channels, Index voxels,
         bool channels_last, int dtype, Address stream) {
        cuda::group_norm_apply(map_of<void>(y, dtype, "y"), map_of<const void>(x, dtype, "x"), folded_of(a, b, shift_point),
                              act_of(silu), norm_shape(n, channels, voxels, 1, channels_last), static_cast<Dtype>(dtype),
                              reinterpret_cast<void*>(stream));
      },
      release());
  m.def(
      "cuda_group_norm_backward_sums",
      [](Address sums, Address grad, Address x, Address a, Address b, Address shift_point, bool silu, Index n,
         Index channels, Index voxels, bool channels_last, int dtype, Address stream) {
        cuda::group_norm_backward_sums(at<double>(sums, "sums"), map_of<const void>(grad, dtype, "grad"),
                                      map_of<const void>(x, dtype, "x"), folded_of(a, b, shift_point), act_of(silu),
                                      norm_shape(n, channels, voxels, 1, channels_last), static_cast<Dtype>(dtype), reinterpret_cast<void*>(stream));
      },
      release());
  m.def(
      "cuda_group_norm_backward_apply",
      [](Address dx, Address grad, Address x, Address a, Address b, Address shift_point, Address p, Address u, Address v,
         Address mask, bool silu, Index n, Index channels, Index voxels, bool channels_last, int dtype, Address stream) {
        cuda::group_norm_backward_apply(map_of<void>(dx, dtype, "dx"), map_of<const void>(grad, dtype, "grad"),
                                       map_of<const void>(x, dtype, "x"), folded_of(a, b, shift_point),
                                       through_of(p, u, v), at<const std::uint8_t>(mask, "mask"), act_of(silu),
                                       norm_shape(n, channels, voxels, 1, channels_last), static_cast<Dtype>(dtype), reinterpret_cast<void*>(stream));
      },
      release());
  m.def(
      "cuda_channel_norm",
      [](Address y, Address x, Address scale, Address shift, double eps, bool silu, Index n, Index channels, Index voxels,
         bool channels_last, int dtype, Address stream) {
        cuda::channel_norm(map_of<void>(y, dtype, "y"), map_of<const void>(x, dtype, "x"), at<const float>(scale, "scale"),
                          at<const float>(shift, "shift"), eps, act_of(silu), {n, channels, voxels, channels_last},
                          static_cast<Dtype>(dtype), reinterpret_cast<void*>(stream));
      },
      release());
  m.def(
      "cuda_channel_norm_backward",
      [](Address dx, Address sums, Address grad, Address x, Address scale, Address shift, double eps, bool silu, Index n,
         Index channels, Index voxels, bool channels_last, int dtype, Address stream) {
        cuda::channel_norm_backward(map_of<void>(dx, dtype, "dx"), at<double>(sums, "sums"),
                                   map_of<const void>(grad, dtype, "grad"), map_of<const void>(x, dtype, "x"),
                                   at<const float>(scale, "scale"), at<const float>(shift, "shift"), eps, act_of(silu),
                                   {n, channels, voxels, channels_last}, static_cast<Dtype>(dtype), reinterpret_cast<void*>(stream));
      },
      release());
}

}  // namespace mrisr::doorway
#endif
