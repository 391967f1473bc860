// Views of memory that someone else owns: pointer, sizes, strides in elements. Offsets are int64 throughout.
#pragma once

#include <array>
#include <cstdint>
#include <limits>

#include "check.h"

// In front of functions that both the host and CUDA kernels call.
#if defined(__CUDACC__)
#define MRISR_HD __host__ __device__
#else
#define MRISR_HD
#endif

namespace mrisr {

using Index = std::int64_t;

template <class T, int Rank>
struct View {
  T* data = nullptr;
  std::array<Index, Rank> size{};
  std::array<Index, Rank> stride{};

  Index count() const {
    Index n = 1;
    for (Index s : size) n *= s;
    return n;
  }
};

// Sizes are not negative, the pointer is there when there is anything to point to, and the extent fits int64.
template <class T, int Rank>
void check_view(const View<T, Rank>& v, const char* op, const char* name) {
  for (int d = 0; d < Rank; ++d)
    MRISR_CHECK(v.size[d] >= 0, op << ": " << name << ".size[" << d << "] must not be negative; it is " << v.size[d]);
  Index n = 1;
  for (int d = 0; d < Rank; ++d) {
    MRISR_CHECK(v.stride[d] >= 0,
                op << ": " << name << ".stride[" << d << "] must not be negative; it is " << v.stride[d]);
    MRISR_CHECK(v.size[d] == 0 || n <= std::numeric_limits<Index>::max() / 16 / v.size[d],
                op << ": " << name << " has more elements than an int64 offset can reach");
    n *= v.size[d];
  }
  MRISR_CHECK(n == 0 || v.data != nullptr, op << ": " << name << " is a null pointer with " << n << " elements");
}

template <class T>
View<T, 3> contiguous3(T* data, Index a, Index b, Index c) {
  return {data, {a, b, c}, {b * c, c, 1}};
}

}  // namespace mrisr
