// The doorway to csrc/core on the CPU: what is there on a GPU too (bindings.h), and what is there alone.
#include "bindings.h"

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
    Sampling s{batch, channels, {source[0], source[1], source[2]}, {target[0], target[1], target[2]}, {},
               one,   order,    static_cast<Boundary>(boundary)};
    std::copy(matrix.begin(), matrix.end(), s.matrix);
    return s;
  };
  m.def(("prefilter_" + type).c_str(),
        [](Address out, Address x, Index outer, Triple shape, int order, int boundary, bool adjoint, int threads) {
          const auto run = adjoint ? cpu::prefilter_adjoint<T> : cpu::prefilter<T>;
          const Index n[3] = {shape[0], shape[1], shape[2]};
          run(at<T>(out, "out"), at<const T>(x, "x"), outer, n, order, static_cast<Boundary>(boundary), threads);
        },
        release());
  m.def(("resample3d_" + type).c_str(),
        [sampling](Address out, Address coefficients, Address displacement, Index batch, Index channels, Triple source,
                   Triple target, Matrix matrix, bool one, int order, int boundary, int threads) {
          cpu::resample3d(at<T>(out, "out"), at<const T>(coefficients, "coefficients"),
                          at<const T>(displacement, "displacement"),
                          sampling(batch, channels, source, target, matrix, one, order, boundary), threads);
        },
        release());
  m.def(("resample3d_slope_" + type).c_str(),
        [sampling](Address out, Address coefficients, Address displacement, Address grad, Index batch, Index channels,
                   Triple source, Triple target, Matrix matrix, bool one, int order, int boundary, int threads) {
          cpu::resample3d_slope(at<T>(out, "out"), at<const T>(coefficients, "coefficients"),
                                at<const T>(displacement, "displacement"), at<const T>(grad, "grad"),
                                sampling(batch, channels, source, target, matrix, one, order, boundary), threads);
        },
        release());
  m.def(("resample3d_adjoint_" + type).c_str(),
        [sampling](Address out, Address displacement, Address grad, Index batch, Index channels, Triple source,
                   Triple target, Matrix matrix, bool one, int order, int boundary, int threads) {
          cpu::resample3d_adjoint(at<T>(out, "out"), at<const T>(displacement, "displacement"),
                                  at<const T>(grad, "grad"),
                                  sampling(batch, channels, source, target, matrix, one, order, boundary), threads);
        },
        release());
}

}  // namespace

void bind_cpu(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  bind_both<int>(m, "");
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
      "tissue",
      [](Address out, Address v, Triple shape, std::array<bool, 3> open, double darkest, double certain,
         double over_air, Address mean, Address spare, int threads) {
        cpu::tissue(at<std::uint8_t>(out, "out"), at<const float>(v, "v"), shape.data(), open.data(),
                    {darkest, certain, over_air}, at<float>(mean, "mean"), at<std::uint8_t>(spare, "spare"), threads);
      },
      release());
  m.def(
      "masked_background",
      [](Address out, Address v, Triple shape, double share, double solid, Address queue) {
        const Background found =
            cpu::masked_background(at<std::uint8_t>(out, "out"), at<const float>(v, "v"), shape.data(), {share, solid},
                                   at<std::uint32_t>(queue, "queue"));
        return std::pair<Index, Index>(found.voxels, found.first);
      },
      release());
  m.def(
      "bricks",
      [](Address out, Address spare, Address v, Triple shape, Index size, float air, float bright, int fewest,
         int threads) {
        cpu::bricks(at<std::uint8_t>(out, "out"), at<std::uint8_t>(spare, "spare"), at<const float>(v, "v"),
                    shape.data(), {size, air, bright, fewest}, threads);
      },
      release());
  m.def(
      "fade",
      [](Address image, Address spread, Address scan, Address head, Triple coarse, Triple fine,
         std::array<Address, 3> plain, std::array<Address, 3> share, std::array<Address, 3> ends, double drop,
         float floor, float ceiling, float least, int threads) {
        Fade f{};
        const double *of_plain[3], *of_share[3];
        for (int d = 0; d < 3; ++d) {
          f.coarse[d] = coarse[d], f.fine[d] = fine[d];
          f.ends[d] = at<const float>(ends[d], "ends");
          of_plain[d] = at<const double>(plain[d], "plain"), of_share[d] = at<const double>(share[d], "share");
        }
        f.limits = {floor, ceiling, least};
        cpu::fade(at<float>(image, "image"), at<float>(spread, "spread"), at<const float>(scan, "scan"),
                  at<const std::uint8_t>(head, "head"), f, of_plain, of_share, drop, threads);
      },
      release());
  m.def(
      "misfit",
      [](Address made, Address scan, float level, Index planes, Index plane, int threads) {
        std::vector<double> partial(static_cast<std::size_t>(2 * std::max<Index>(planes, 0)));
        const Misfit found = cpu::misfit(at<float>(made, "made"), at<const float>(scan, "scan"), level, planes, plane,
                                         partial.data(), threads);
        return std::pair<double, Index>(found.squares, found.voxels);
      },
      release());
  m.def("cosine_shares", [](std::array<double, 3> band) {
    std::array<float, kCosines> shares;
    cosine_shares(shares.data(), band.data());
    return shares;
  });
  m.def(
      "wiener",
      [](Address out, Address scan, Address pilot, Triple shape, const std::array<float, kCosines>& variance,
         int threads) {
        std::vector<float> scratch(static_cast<std::size_t>(cpu::wiener_scratch(shape.data(), threads)));
        cpu::wiener(at<float>(out, "out"), at<const float>(scan, "scan"), at<const float>(pilot, "pilot"), shape.data(),
                    variance.data(), scratch.data(), threads);
      },
      release());
  m.def(
      "cosine_energies",
      [](Address energy, Index most, Address scan, Triple shape, float level, const std::array<float, kCosines>& shares,
         const std::vector<int>& chosen) {
        for (int k : chosen) MRISR_CHECK(k >= 0 && k < kCosines, "cosine_energies: no coefficient " << k);
        return cpu::cosine_energies(at<float>(energy, "energy"), most, at<const float>(scan, "scan"), shape.data(),
                                    level, shares.data(), chosen.data(), static_cast<int>(chosen.size()));
      },
      release());
  m.def("group_norm_slabs", [](Index voxels) { return NormShape{1, 1, voxels, 1, false}.slabs(); });
  m.def(
      "group_norm_merge",
      [](Address mean, Address rstd, Address partials, Index n, Index slabs, Index groups, double eps) {
        cpu::group_norm_merge(at<double>(mean, "mean"), at<double>(rstd, "rstd"),
                              at<const double>(partials, "partials"), n, slabs, groups, eps);
      },
      release());
  bind_splines<float>(m, "f32");
  bind_splines<double>(m, "f64");
  bind_attention(m);
}

}  // namespace mrisr::doorway
