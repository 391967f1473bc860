// The caller's volumes, which may lie in any strides.
#pragma once

#include <cstdint>
#include <utility>

#include "geometry.h"
#include "parallel.h"

namespace mrisr::runtime {

struct Strides {
  std::int64_t s[3];
};

// All 0: those of a dense volume. `name` begins the error text.
Strides strides_of(const std::int64_t strides[3], const Triple& shape, const char* name);

// Where a strided volume lies: its first byte, and one past its last.
std::pair<std::intptr_t, std::intptr_t> bytes_of(const void* start, const Strides& stride, const Triple& n,
                                                 std::size_t element);

// No byte in both; `one` and `other` name them in the error text.
void check_apart(const std::pair<std::intptr_t, std::intptr_t>& a, const std::pair<std::intptr_t, std::intptr_t>& b,
                 const char* one, const char* other);

// call(first voxel, its place in a dense volume, voxels, stride) of every row of a strided volume.
template <class T, class Call>
void each_row(T* volume, const Strides& stride, const Triple& n, int threads, const Call& call) {
  parallel_for(n[0] * n[1], 64, threads, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row)
      call(volume + row / n[1] * stride.s[0] + row % n[1] * stride.s[1], row * n[2], n[2], stride.s[2]);
  });
}

}  // namespace mrisr::runtime
