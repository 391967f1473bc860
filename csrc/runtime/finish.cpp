#include "finish.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "consistency.h"
#include "fade.h"
#include "restore.h"
#include "strided.h"

namespace mrisr::runtime {
namespace {

constexpr Index kGrain = 1 << 16;

void add_residual(const Job& job, const Workspace& w) {
  parallel_for(product(job.target.shape), kGrain, job.threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) w.y[i] += w.residual[i];
  });
}

// In the scan's units, in place.
void to_units(float* v, std::int64_t n, double gain, double offset, int threads) {
  const auto g = static_cast<float>(gain), o = static_cast<float>(offset);
  parallel_for(n, kGrain, threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) v[i] = v[i] * g + o;
  });
}

void put_background(float* v, std::int64_t n, const float* share, float half, float value, int threads) {
  parallel_for(n, kGrain, threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i)
      if (share[i] > half) v[i] = value;
  });
}

// w.y and w.spread in the scan's units, the background as it was, nothing negative where that is wanted.
void finish_values(const Job& job, const mrisr_run_options& options, const Workspace& w, const Frame& frame) {
  const std::int64_t voxels = product(job.target.shape);
  to_units(w.y, voxels, frame.scale.scale, frame.scale.offset, job.threads);
  if (options.spread != nullptr) to_units(w.spread, voxels, frame.scale.scale, 0.0, job.threads);
  if (frame.background) {
    resample_background(job, w);
    const auto half = static_cast<float>(job.model->config.fade.half),
               value = static_cast<float>(frame.background_value);
    put_background(w.y, voxels, w.fade.weights, half, value, job.threads);
    if (options.spread != nullptr) put_background(w.spread, voxels, w.fade.weights, half, 0.0f, job.threads);
  }
  if (options.nonnegative == 0) return;
  parallel_for(voxels, kGrain, job.threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) w.y[i] = std::max(w.y[i], 0.0f);
  });
}

// A strided copy; each voxel by way of `as`.
template <class T, class As>
void write_output(T* to, const Strides& stride, const float* from, const Triple& n, int threads, const As& as) {
  each_row(to, stride, n, threads, [&](T* row, Index at, Index n2, std::int64_t step) {
    for (Index k = 0; k < n2; ++k) row[k * step] = as(from[at + k]);
  });
}

const auto as_it_is = [](float v) { return v; };

constexpr double kLowest = std::numeric_limits<std::int16_t>::min(),
                 kHighest = std::numeric_limits<std::int16_t>::max();

// value = stored * scale: the caller's, or the least that holds every value, and 1 for a scan of whole numbers that fits.
double whole_scale(const mrisr_run_options& options, const float* v, std::int64_t n) {
  if (options.output_int16_scale > 0) return options.output_int16_scale;
  double low = 0, high = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    low = std::min<double>(low, v[i]);
    high = std::max<double>(high, v[i]);
  }
  if (options.input_element == MRISR_INT16 && low >= kLowest && high <= kHighest) return 1;
  const double largest = std::max(high, -low);
  return largest > 0 ? largest / kHighest : 1;
}

// Ties to even, as numpy rounds.
void write_whole(const mrisr_run_options& options, const Strides& stride, const float* from, const Triple& n,
                 int threads, mrisr_run_info& info) {
  const double scale = whole_scale(options, from, product(n));
  std::atomic<std::int64_t> clipped{0};
  write_output(options.output_int16, stride, from, n, threads, [&](float v) {
    const double whole = std::nearbyint(static_cast<double>(v) / scale);
    if (whole >= kLowest && whole <= kHighest) return static_cast<std::int16_t>(whole);
    clipped.fetch_add(1, std::memory_order_relaxed);
    return static_cast<std::int16_t>(whole > 0 ? kHighest : kLowest);
  });
  info.output_int16_scale = scale;
  info.output_int16_clipped = clipped.load();
}

}  // namespace

void finish(const Job& job, const Workspace& w, const mrisr_run_options& options, const Frame& frame,
            mrisr_run_info& info) {
  const Triple& fine = job.target.shape;
  const Strides out = strides_of(options.output_stride, fine, "output_stride");
  add_residual(job, w);
  if (job.restores()) restore_signal(job, w);
  if (frame.noise >= 0 && job.compares()) make_consistent(job, w, frame.noise, info);
  fade(job, w, -static_cast<float>(frame.scale.offset) / static_cast<float>(frame.scale.scale));
  finish_values(job, options, w, frame);
  if (options.output != nullptr) write_output(options.output, out, w.y, fine, job.threads, as_it_is);
  if (options.output_int16 != nullptr) write_whole(options, out, w.y, fine, job.threads, info);
  if (options.spread != nullptr) write_output(options.spread, out, w.spread, fine, job.threads, as_it_is);
}

}  // namespace mrisr::runtime
