// The network's answer, held to what a scan can have, fades into plain interpolation where it does not count. Rules and
// their numbers: mrisr/infer/fade.py, which has the same in PyTorch.
#pragma once

#include <cstdint>

#include "resample_axes.h"
#include "tensor.h"

namespace mrisr {

// How two volumes of one grid are brought onto another, axis by axis; a null matrix: nothing changes along that axis,
// in either.
struct Interpolation {
  const cpu::AxisMatrix* plain[3] = {};  // of the scan
  const cpu::AxisMatrix* share[3] = {};  // of where the head is
};

// What values a result may have, as `Limits` in mrisr/infer/fade.py.
struct Limits {
  float floor, ceiling;
  float least;  // the answer keeps so much of what interpolation gives, counted from the floor
};

struct Fade {
  Index coarse[3], fine[3];
  Interpolation between;
  const float* ends[3];  // [fine], how much of the answer counts for the sake of end slices; null: all
  Limits limits;
};

namespace cpu {

// image [fine], in place: held to the limits, and where the head is not, plain interpolation of the scan [coarse].
// spread: likewise [fine], times how much of the answer counts; or null. head: [coarse], not 0 where the answer counts.
// scratch: fade_scratch floats. No volume of the target's size is made.
void fade(float* image, float* spread, const float* scan, const std::uint8_t* head, const Fade& f, float* scratch,
          int threads);
Index fade_scratch(const Fade& f, int threads);

// The same of float64 matrices [fine, coarse], null likewise, that are packed here: entries below `drop` times their
// row's largest are left out at its ends.
void fade(float* image, float* spread, const float* scan, const std::uint8_t* head, Fade f,
          const double* const plain[3], const double* const share[3], double drop, int threads);

}  // namespace cpu
}  // namespace mrisr
