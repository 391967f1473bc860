// What the doorway's files share: integers from Python become typed, checked arguments of csrc/core.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <type_traits>

#include "attention3d.h"
#include "fade.h"
#include "foreground.h"
#include "resample_axes.h"
#include "tiles.h"
#include "rms_norm.h"
#include "group_norm.h"
#include "isa.h"
#include "misfit.h"
#include "noise.h"
#include "resample_prefilter.h"
#include "resample.h"
#include "sampling.h"
#include "wiener.h"

namespace py = pybind11;

namespace mrisr::doorway {

using Address = std::uintptr_t;
using Triple = std::array<Index, 3>;

void bind_cpu(py::module_& m);
void bind_cuda(py::module_& m);

template <class T>
T* at(Address address, const char* name) {
  MRISR_CHECK(address % alignof(T) == 0, name << ": address is not aligned to " << alignof(T) << " bytes");
  return reinterpret_cast<T*>(address);
}

template <class T>
View<T, 3> view(Address address, const Triple& size, const Triple& stride, const char* name) {
  return {at<T>(address, name), size, stride};
}

inline NoiseBox box_of(const Triple& shape, const Triple& origin, const Triple& grid, std::uint64_t seed,
                       std::uint32_t sample, std::uint32_t step) {
  NoiseBox box{};
  for (int d = 0; d < 3; ++d) {
    box.shape[d] = shape[d];
    box.origin[d] = origin[d];
    box.grid[d] = grid[d];
  }
  box.seed = seed;
  box.sample = sample;
  box.step = step;
  return box;
}

inline NormShape norm_shape(Index n, Index channels, Index voxels, Index groups, bool channels_last) {
  NormShape shape{n, channels, voxels, groups, channels_last};
  check_norm(shape);
  return shape;
}

inline FilmParams film_of(Address weight, Address bias, Address scale, Address shift) {
  return {at<const float>(weight, "weight"), at<const float>(bias, "bias"), at<const float>(scale, "scale"),
          at<const float>(shift, "shift")};
}

// A feature map in `dtype` (0: float32, 1: float16, 2: bfloat16).
template <class T>
T* map_of(Address address, int dtype, const char* name) {
  return dtype == 0 ? static_cast<T*>(at<std::conditional_t<std::is_const_v<T>, const float, float>>(address, name))
                    : static_cast<T*>(at<std::conditional_t<std::is_const_v<T>, const std::uint16_t, std::uint16_t>>(
                          address, name));
}

inline Act act_of(bool silu) { return silu ? Act::silu : Act::none; }

inline Through through_of(Address p, Address u, Address v) {
  return {at<const float>(p, "p"), at<const float>(u, "u"), at<const float>(v, "v")};
}

inline Folded folded_of(Address a, Address b, Address m) {
  return {at<float>(a, "a"), at<float>(b, "b"), at<float>(m, "m")};
}

// volumes: next, x0, x, f, before.
inline SamplerStep step_of(const std::array<Address, 5>& volumes, Address table, Index rows, Address clock, bool noise,
                           float low, float high, Index count) {
  return {at<float>(volumes[0], "next"),
          at<float>(volumes[1], "x0"),
          at<const float>(volumes[2], "x"),
          at<const char>(volumes[3], "f"),
          at<const float>(volumes[4], "before"),
          at<const float>(table, "table"),
          rows,
          at<const std::int64_t>(clock, "clock"),
          noise,
          low,
          high,
          count};
}

inline AttentionInputs attention_inputs(Address qkv, Address mask, Address q_gain, Address k_gain, double eps,
                                        double scale) {
  return {at<const std::uint16_t>(qkv, "qkv"),
          at<const std::uint8_t>(mask, "mask"),
          at<const float>(q_gain, "q_gain"),
          at<const float>(k_gain, "k_gain"),
          eps,
          scale};
}

inline AttentionShape attention_shape(Index n, const Triple& size, const std::array<Index, 4>& stride, Index heads,
                                      Index head_dim, const Triple& window, const Triple& offset, int dtype) {
  AttentionShape shape{};
  shape.n = n;
  std::copy(size.begin(), size.end(), shape.size);
  std::copy(stride.begin(), stride.end(), shape.stride);
  std::copy(window.begin(), window.end(), shape.window);
  std::copy(offset.begin(), offset.end(), shape.offset);
  shape.heads = heads;
  shape.head_dim = head_dim;
  shape.dtype = static_cast<Dtype>(dtype);
  return shape;
}

}  // namespace mrisr::doorway
