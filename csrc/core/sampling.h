// One step of a diffusion sampler over a volume, in one pass:
//
//   x0   = clamp(f)                           f: what the denoiser gives
//   next = a x + b x0 + c before + d normal   before: x0 of the step before; normal: of this voxel, see noise.h
//
// The coefficients are a row of a table, chosen by a counter that lies where the volume lies: a loop of steps captured in
// a CUDA graph takes nothing from the host. A counter without a row gives NaN everywhere.
#pragma once

#include "dtype.h"
#include "noise.h"
#include "noise_math.h"

namespace mrisr {

constexpr int kStepColumns = 4;  // a, b, c, d

struct SamplerStep {
  float* next;
  float* x0;  // null: nothing is clamped, so that it need not be written; may be f (float32)
  const float* x;
  const void* f;
  const float* before;  // or null
  const float* table;   // [rows, kStepColumns]
  Index rows;
  const std::int64_t* clock;  // step, sample, seed: on the device, where the volumes are there
  bool noise;
  float low, high;  // of the clamp
  Index count;      // voxels, in the order of the whole target grid
};

struct StepRow {
  float a, b, c, d;
  std::uint32_t k0, k1, sample, step;
};

// The noise of a step is that of `step + 1`: step 0 of a sample is its starting noise.
MRISR_HD inline StepRow step_row(const SamplerStep& s) {
  const std::int64_t step = s.clock[0];
  const bool inside = step >= 0 && step < s.rows;
  const float* row = s.table + (inside ? step : 0) * kStepColumns;
  const float broken = noise::as_float(inside ? 0u : 0x7fc00000u);
  const auto seed = static_cast<std::uint64_t>(s.clock[2]);
  return {row[0] + broken,
          row[1],
          row[2],
          row[3],
          static_cast<std::uint32_t>(seed),
          static_cast<std::uint32_t>(seed >> 32),
          static_cast<std::uint32_t>(s.clock[1]),
          static_cast<std::uint32_t>(step + 1)};
}

// What is no number stays none, infinities too: an overflow must be seen.
MRISR_NOISE_FN float step_clamp(float v, float low, float high) {
  const float clamp = v < low ? low : (v > high ? high : v);
  return v - v == 0.0f ? clamp : v;
}

MRISR_NOISE_FN float step_normal(const StepRow& r, std::uint64_t voxel) {
  const noise::Words w = noise::philox(static_cast<std::uint32_t>(voxel), static_cast<std::uint32_t>(voxel >> 32),
                                       r.sample, r.step, r.k0, r.k1);
  return noise::box_muller(w.w0, w.w1);
}

void check_step(const SamplerStep& s);

namespace cpu {
// f: float32.
void sampler_step(const SamplerStep& s, int threads);
}  // namespace cpu

#ifdef MRISR_WITH_CUDA
namespace cuda {
// f in dtype. stream: a cudaStream_t. Returns without waiting.
void sampler_step(const SamplerStep& s, Dtype dtype, void* stream);
}  // namespace cuda
#endif

}  // namespace mrisr
