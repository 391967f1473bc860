#include "start.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.h"
#include "foreground.h"
#include "strided.h"

namespace mrisr::runtime {
namespace {

// Dense float32 of a strided input.
template <class T>
void read_input(float* to, const void* from, const Strides& stride, const Triple& n, int threads) {
  each_row(static_cast<const T*>(from), stride, n, threads, [to](const T* row, Index at, Index n2, std::int64_t step) {
    for (Index k = 0; k < n2; ++k) to[at + k] = static_cast<float>(row[k * step]);
  });
}

void check_input(const float* v, std::int64_t n) {
  float low = v[0], high = v[0];
  std::int64_t broken = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    broken += !std::isfinite(v[i]);
    low = std::min(low, v[i]);
    high = std::max(high, v[i]);
  }
  if (broken > 0)
    MRISR_FAIL(MRISR_ERROR_INPUT, "input: " << broken << " NaN or infinite voxels of " << n << "; replace them first");
  if (low == high)
    MRISR_FAIL(MRISR_ERROR_INPUT, "input: the volume is constant (every voxel " << low << "); expected an image");
}

// A background of -1024 or 1e6, that no voxel of the head comes near, becomes as dark as the head's darkest: else
// interpolation would draw the head's rim towards it.
void replace_foreign_value(const Workspace& w, std::int64_t n, float value) {
  float low = std::numeric_limits<float>::max(), high = -low;
  for (std::int64_t i = 0; i < n; ++i) {
    if (w.background[i] != 0) continue;
    low = std::min(low, w.lr[i]);
    high = std::max(high, w.lr[i]);
  }
  if ((low <= value && value <= high) || (value == 0 && low >= 0)) return;
  for (std::int64_t i = 0; i < n; ++i)
    if (w.background[i] != 0) w.lr[i] = low;
}

// Into w.background, before w.lr is normalised: what is masked by `mask` (or, without, by the scan itself).
void find_background(const Job& job, const Workspace& w, const std::uint8_t* mask, Frame& frame) {
  const std::int64_t n = product(job.source.shape);
  auto* const queue = reinterpret_cast<std::uint32_t*>(w.start.values);
  const Background own =
      cpu::masked_background(w.background, w.lr, job.source.shape.data(), job.model->config.fade.background, queue);
  frame.background = mask != nullptr || own.voxels > 0;
  frame.background_value = own.voxels > 0 ? w.lr[own.first] : 0.0;
  if (own.voxels > 0) replace_foreign_value(w, n, static_cast<float>(frame.background_value));
  for (std::int64_t i = 0; i < n && mask != nullptr; ++i) w.background[i] = mask[i] == 0 ? 1 : 0;
}

void normalise(const Job& job, const Workspace& w, const Scale& scale) {
  const auto offset = static_cast<float>(scale.offset), gain = static_cast<float>(scale.scale);
  parallel_for(product(job.source.shape), 1 << 16, job.threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) w.lr[i] = (w.lr[i] - offset) / gain;
  });
}

}  // namespace

Frame start(const Job& job, const Workspace& w, const mrisr_run_options& options, Progress& progress) {
  const Config& config = job.model->config;
  const Triple& coarse = job.source.shape;
  const Strides in = strides_of(options.input_stride, coarse, "input_stride");
  if (options.input_element == MRISR_INT16)
    read_input<std::int16_t>(w.lr, options.input, in, coarse, job.threads);
  else
    read_input<float>(w.lr, options.input, in, coarse, job.threads);
  check_input(w.lr, product(coarse));
  progress.at(kRead);
  Frame frame{};
  find_background(job, w, options.mask, frame);
  frame.scale = robust_scale(w.lr, coarse, config, w.start.values, w.start.spare);
  if (frame.scale.outliers > 0)
    job.model->say(MRISR_LOG_WARNING,
                   "input: the brightest voxels are so much brighter than the rest (an implant, a vessel, spikes?) "
                   "that the intensity scale was taken without them; look at the output there");
  normalise(job, w, frame.scale);
  frame.noise = estimate_noise(w.lr, coarse, config, w.start.sample);
  job.start.apply(w.y, w.lr, coarse, w.start.a, w.start.b, w.scratch, job.threads);
  progress.at(kStarted);
  return frame;
}

}  // namespace mrisr::runtime
