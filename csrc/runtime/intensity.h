// Intensity scale and noise level of a scan: mrisr/physics/intensity.py, number for number.
#pragma once

#include <cstdint>

#include "bundle.h"
#include "geometry.h"

namespace mrisr::runtime {

struct Scale {
  double offset, scale;  // (v - offset) / scale
  double outliers;       // share of the foreground that was left out for being too bright
};

// Sort ascending, by radix; no NaN. `spare` is as long; the result is in `values`.
void sort_floats(float* values, float* spare, std::int64_t n);

// data [shape]: finite, not constant. values and spare hold as many floats each.
Scale robust_scale(const float* data, const Triple& shape, const Config& config, float* values, float* spare);

// Of a normalised scan; negative with too little foreground to know. sample holds 2 config.noise.sample floats.
double estimate_noise(const float* normalised, const Triple& shape, const Config& config, float* sample);

}  // namespace mrisr::runtime
