// The doorway to csrc/core on the CPU.
#include "doorway.h"

namespace mrisr::doorway {
namespace {

void bind_attention(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def(
      "attention3d",
      [](Address y, Address lse, Address qkv, Address mask, Address q_gain, Address k_gain, Index n, Triple size,
         std::array<Index, 4> stride, Index heads, Index head_dim, Triple window, Triple offset, int dtype, double eps,
         double scale, int threads) {
        cpu::attention3d(at<std::uint16_t>(y, "y"), at<float>(lse, "lse"),
                         attention_inputs(qkv, mask, q_gain, k_gain, eps, scale),
                         attention_shape(n, size, stride, heads, head_dim, window, offset, dtype), threads);
      },
      release());
  m.def(
      "attention3d_backward",
      [](Address d_qkv, Address d_gains, Address d_y, Address y, Address lse, Address qkv, Address mask, Address q_gain,
         Address k_gain, Index n, Triple size, std::array<Index, 4> stride, Index heads, Index head_dim, Triple window,
         Triple offset, int dtype, double eps, double scale, int threads) {
        cpu::attention3d_backward(at<std::uint16_t>(d_qkv, "d_qkv"), at<float>(d_gains, "d_gains"),
                                  at<const std::uint16_t>(d_y, "d_y"), at<const std::uint16_t>(y, "y"),
                                  at<const float>(lse, "lse"), attention_inputs(qkv, mask, q_gain, k_gain, eps, scale),
                                  attention_shape(n, size, stride, heads, head_dim, window, offset, dtype), threads);
      },
      release());
}

// float and double by one name each: "prefilter_f32", "prefilter_f64".
template <class T>
void bind_splines(py::module_& m, const std::string& type) {
  using release = py::call_guard<py::gil_scoped_release>;
  using Matrix = std::array<double, 12>;
  const auto sampling = [](Index batch, Index channels, Triple source, Triple target, Matrix matrix, bool one,
                           int order, int boundary) {
    Sampling s{batch, channels, {source[0], source[1], source[2]}, {target[0], target[1], target[2]}, {}, one, order,
               static_cast<Boundary>(boundary)};
    std::copy(matrix.begin(), matrix.end(), s.matrix);
    return s;
  };
  m.def(
      ("prefilter_" + type).c_str(),
      [](Address out, Address x, Index outer, Index n, Index inner, int order, int boundary, bool adjoint, int threads) {
        const auto run = adjoint ? cpu::prefilter_adjoint<T> : cpu::prefilter<T>;
        run(at<T>(out, "out"), at<const T>(x, "x"), outer, n, inner, order, static_cast<Boundary>(boundary), threads);
      },
      release());
  m.def(
      ("resample3d_" + type).c_str(),
      [sampling](Address out, Address coefficients, Address displacement, Index batch, Index channels, Triple source,
                 Triple target, Matrix matrix, bool one, int order, int boundary, int threads) {
        cpu::resample3d(at<T>(out, "out"), at<const T>(coefficients, "coefficients"),
                        at<const T>(displacement, "displacement"),
                        sampling(batch, channels, source, target, matrix, one, order, boundary), threads);
      },
      release());
  m.def(
      ("resample3d_slope_" + type).c_str(),
      [sampling](Address out, Address coefficients, Address displacement, Address grad, Index batch, Index channels,
                 Triple source, Triple target, Matrix matrix, bool one, int order, int boundary, int threads) {
        cpu::resample3d_slope(at<T>(out, "out"), at<const T>(coefficients, "coefficients"),
                              at<const T>(displacement, "displacement"), at<const T>(grad, "grad"),
                              sampling(batch, channels, source, target, matrix, one, order, boundary), threads);
      },
      release());
  m.def(
      ("resample3d_adjoint_" + type).c_str(),
      [sampling](Address out, Address displacement, Address grad, Index batch, Index channels, Triple source,
                 Triple target, Matrix matrix, bool one, int order, int boundary, int threads) {
        cpu::resample3d_adjoint(at<T>(out, "out"), at<const T>(displacement, "displacement"), at<const T>(grad, "grad"),
                                sampling(batch, channels, source, target, matrix, one, order, boundary), threads);
      },
      release());
}

}  // namespace

void bind_cpu(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def(
      "normal_noise",
      [](Address out, Triple shape, Triple origin, Triple grid, std::uint64_t seed, std::uint32_t sample,
         std::uint32_t step, int threads) {
        cpu::normal_noise(at<float>(out, "out"), box_of(shape, origin, grid, seed, sample, step), threads);
      },
      release());
  m.def(
      "philox_words",
      [](Address out, Triple shape, Triple origin, Triple grid, std::uint64_t seed, std::uint32_t sample,
         std::uint32_t step, int threads) {
        cpu::philox_words(at<std::uint32_t>(out, "words"), box_of(shape, origin, grid, seed, sample, step), threads);
      },
      release());
  m.def(
      "axis_apply",
      [](Address out, Address x, Address matrix, Index outer, Index n_in, Index n_out, Index inner, double drop,
         int threads) {
        cpu::axis_apply(at<float>(out, "out"), at<const float>(x, "x"), at<const double>(matrix, "matrix"), outer, n_in,
                        n_out, inner, drop, threads);
      },
      release());
  m.def(
      "blend_add",
      [](Address volume, Triple volume_size, Triple volume_stride, Address tile, Triple tile_size, Triple tile_stride,
         Triple origin, std::array<Address, 3> weights, int threads) {
        const float* const w[3] = {at<const float>(weights[0], "weights[0]"), at<const float>(weights[1], "weights[1]"),
                                   at<const float>(weights[2], "weights[2]")};
        cpu::blend_add(view<float>(volume, volume_size, volume_stride, "volume"),
                       view<const float>(tile, tile_size, tile_stride, "tile"), origin.data(), w, threads);
      },
      release());
  m.def(
      "gather",
      [](Address tile, Triple tile_size, Triple tile_stride, Address volume, Triple volume_size, Triple volume_stride,
         Triple origin, int threads) {
        cpu::gather(view<float>(tile, tile_size, tile_stride, "tile"),
                    view<const float>(volume, volume_size, volume_stride, "volume"), origin.data(), threads);
      },
      release());
  m.def(
      "sampler_step",
      [](std::array<Address, 5> volumes, Address table, Index rows, Address clock, bool raw, bool noise, float low,
         float high, Triple shape, Triple origin, Triple grid, int threads) {
        cpu::sampler_step(step_of(volumes, table, rows, clock, raw, noise, low, high, shape, origin, grid), threads);
      },
      release());
  m.def("group_norm_slabs", [](Index voxels) { return NormShape{1, 1, voxels, 1, false}.slabs(); });
  m.def(
      "group_norm_stats",
      [](Address partials, Address x, Address mask, Index n, Index channels, Index voxels, Index groups,
         bool channels_last, int dtype, int threads) {
        cpu::group_norm_stats(at<double>(partials, "partials"), map_of<const void>(x, dtype, "x"),
                              at<const std::uint8_t>(mask, "mask"), norm_shape(n, channels, voxels, groups, channels_last),
                              static_cast<Dtype>(dtype), threads);
      },
      release());
  m.def(
      "add_stats",
      [](Address partials, Address sum, Address x, Address y, Address mask, Index n, Index channels, Index voxels,
         Index groups, bool channels_last, int dtype, int threads) {
        cpu::add_stats(at<double>(partials, "partials"), map_of<void>(sum, dtype, "sum"), map_of<const void>(x, dtype, "x"),
                       map_of<const void>(y, dtype, "y"), at<const std::uint8_t>(mask, "mask"),
                       norm_shape(n, channels, voxels, groups, channels_last), static_cast<Dtype>(dtype), threads);
      },
      release());
  m.def(
      "group_norm_merge",
      [](Address mean, Address rstd, Address partials, Index n, Index slabs, Index groups, double eps) {
        cpu::group_norm_merge(at<double>(mean, "mean"), at<double>(rstd, "rstd"), at<const double>(partials, "partials"),
                              n, slabs, groups, eps);
      },
      release());
  m.def(
      "group_norm_fold",
      [](Address a, Address b, Address shift_point, Address mean, Address rstd, Address weight, Address bias,
         Address scale, Address shift, Index n, Index channels, Index groups) {
        cpu::group_norm_fold(folded_of(a, b, shift_point), at<const double>(mean, "mean"), at<const double>(rstd, "rstd"),
                             film_of(weight, bias, scale, shift), norm_shape(n, channels, 1, groups, false));
      },
      release());
  m.def(
      "group_norm_apply",
      [](Address y, Address x, Address a, Address b, Address shift_point, bool silu, Index n, Index channels, Index voxels,
         bool channels_last, int dtype, int threads) {
        cpu::group_norm_apply(map_of<void>(y, dtype, "y"), map_of<const void>(x, dtype, "x"), folded_of(a, b, shift_point),
                              act_of(silu), norm_shape(n, channels, voxels, 1, channels_last), static_cast<Dtype>(dtype),
                              threads);
      },
      release());
  m.def(
      "group_norm_backward_sums",
      [](Address sums, Address grad, Address x, Address a, Address b, Address shift_point, bool silu, Index n,
         Index channels, Index voxels, bool channels_last, int dtype, int threads) {
        cpu::group_norm_backward_sums(at<double>(sums, "sums"), map_of<const void>(grad, dtype, "grad"),
                                      map_of<const void>(x, dtype, "x"), folded_of(a, b, shift_point), act_of(silu),
                                      norm_shape(n, channels, voxels, 1, channels_last), static_cast<Dtype>(dtype), threads);
      },
      release());
  m.def(
      "group_norm_backward_apply",
      [](Address dx, Address grad, Address x, Address a, Address b, Address shift_point, Address p, Address u, Address v,
         Address mask, bool silu, Index n, Index channels, Index voxels, bool channels_last, int dtype, int threads) {
        cpu::group_norm_backward_apply(map_of<void>(dx, dtype, "dx"), map_of<const void>(grad, dtype, "grad"),
                                       map_of<const void>(x, dtype, "x"), folded_of(a, b, shift_point),
                                       through_of(p, u, v), at<const std::uint8_t>(mask, "mask"), act_of(silu),
                                       norm_shape(n, channels, voxels, 1, channels_last), static_cast<Dtype>(dtype), threads);
      },
      release());
  m.def(
      "channel_norm",
      [](Address y, Address x, Address scale, Address shift, double eps, bool silu, Index n, Index channels, Index voxels,
         bool channels_last, int dtype, int threads) {
        cpu::channel_norm(map_of<void>(y, dtype, "y"), map_of<const void>(x, dtype, "x"), at<const float>(scale, "scale"),
                          at<const float>(shift, "shift"), eps, act_of(silu), {n, channels, voxels, channels_last},
                          static_cast<Dtype>(dtype), threads);
      },
      release());
  m.def(
      "channel_norm_backward",
      [](Address dx, Address sums, Address grad, Address x, Address scale, Address shift, double eps, bool silu, Index n,
         Index channels, Index voxels, bool channels_last, int dtype, int threads) {
        cpu::channel_norm_backward(map_of<void>(dx, dtype, "dx"), at<double>(sums, "sums"),
                                   map_of<const void>(grad, dtype, "grad"), map_of<const void>(x, dtype, "x"),
                                   at<const float>(scale, "scale"), at<const float>(shift, "shift"), eps, act_of(silu),
                                   {n, channels, voxels, channels_last}, static_cast<Dtype>(dtype), threads);
      },
      release());
  bind_splines<float>(m, "f32");
  bind_splines<double>(m, "f64");
  bind_attention(m);
}

}  // namespace mrisr::doorway
