#include "strided.h"

#include <cstdlib>

#include "error.h"

namespace mrisr::runtime {

Strides strides_of(const std::int64_t strides[3], const Triple& shape, const char* name) {
  if (strides[0] == 0 && strides[1] == 0 && strides[2] == 0) return {{shape[1] * shape[2], shape[2], 1}};
  for (int d = 0; d < 3; ++d)
    if (strides[d] == 0 || std::abs(strides[d]) > (std::int64_t{1} << 40))
      MRISR_FAIL(MRISR_ERROR_ARGUMENT, name << ": expected three strides in elements, or all 0, found " << strides[0]
                                            << ", " << strides[1] << ", " << strides[2]);
  return {{strides[0], strides[1], strides[2]}};
}

std::pair<std::intptr_t, std::intptr_t> bytes_of(const void* start, const Strides& stride, const Triple& n,
                                                 std::size_t element) {
  std::int64_t low = 0, high = 0;
  for (int d = 0; d < 3; ++d) (stride.s[d] < 0 ? low : high) += (n[d] - 1) * stride.s[d];
  const auto at = reinterpret_cast<std::intptr_t>(start), size = static_cast<std::intptr_t>(element);
  return {at + low * size, at + (high + 1) * size};
}

void check_apart(const std::pair<std::intptr_t, std::intptr_t>& a, const std::pair<std::intptr_t, std::intptr_t>& b,
                 const char* one, const char* other) {
  if (a.first < b.second && b.first < a.second)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT,
               one << " and " << other
                   << ": must not overlap; give each a block of its own (mrisr_job_geometry has the output's shape)");
}

}  // namespace mrisr::runtime
