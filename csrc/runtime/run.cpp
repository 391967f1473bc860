// mrisr_run: one volume through the whole pipeline.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <new>
#include <utility>

#include "correct.h"
#include "error.h"
#include "finish.h"
#include "intensity.h"
#include "residual.h"
#include "workspace.h"

namespace mrisr::runtime {
namespace {

constexpr double kRead = 0.005, kStarted = 0.02, kNetworkDone = 0.97;

struct Strides {
  std::int64_t s[3];
};

Strides strides_of(const std::int64_t given[3], const Triple& shape, const char* name) {
  if (given[0] == 0 && given[1] == 0 && given[2] == 0) return {{shape[1] * shape[2], shape[2], 1}};
  for (int d = 0; d < 3; ++d)
    if (given[d] == 0 || std::abs(given[d]) > (std::int64_t{1} << 40))
      MRISR_FAIL(MRISR_ERROR_ARGUMENT, name << ": expected three strides in elements, or all 0, found " << given[0] << ", " << given[1]
                                            << ", " << given[2]);
  return {{given[0], given[1], given[2]}};
}

// Where a strided volume lies: its first byte, and one past its last.
std::pair<std::intptr_t, std::intptr_t> bytes_of(const void* start, const Strides& stride, const Triple& n, std::size_t element) {
  std::int64_t low = 0, high = 0;
  for (int d = 0; d < 3; ++d) (stride.s[d] < 0 ? low : high) += (n[d] - 1) * stride.s[d];
  const auto at = reinterpret_cast<std::intptr_t>(start), size = static_cast<std::intptr_t>(element);
  return {at + low * size, at + (high + 1) * size};
}

void check_apart(const std::pair<std::intptr_t, std::intptr_t>& a, const std::pair<std::intptr_t, std::intptr_t>& b, const char* one,
                 const char* other) {
  if (a.first < b.second && b.first < a.second)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, one << " and " << other << ": must not overlap; give each a block of its own (mrisr_job_geometry has the output's shape)");
}

// The workspace of a call: the caller's, or one block of our own.
class Block {
 public:
  Block(const Job& job, const mrisr_run_options& options) : pointer_(options.workspace) {
    if (pointer_ == nullptr) {
      own_ = true;
      pointer_ = ::operator new(job.workspace, std::align_val_t{Arena::kAlign});
      return;
    }
    if (options.workspace_size < job.workspace)
      MRISR_FAIL(MRISR_ERROR_MEMORY, "workspace: " << options.workspace_size << " bytes, this job needs " << job.workspace
                                         << " (mrisr_geometry.workspace_bytes)");
    if (reinterpret_cast<std::uintptr_t>(pointer_) % Arena::kAlign != 0)
      MRISR_FAIL(MRISR_ERROR_ARGUMENT, "workspace: must be aligned to " << Arena::kAlign << " bytes");
  }
  ~Block() {
    if (own_) ::operator delete(pointer_, std::align_val_t{Arena::kAlign});
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  void* get() const { return pointer_; }

 private:
  void* pointer_;
  bool own_ = false;
};

// Plain float32 of a strided input, and that it can be used.
template <class T>
void read_input(float* to, const T* from, const Strides& stride, const Triple& n, int threads) {
  parallel_for(n[0] * n[1], 64, threads, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      const T* source = from + row / n[1] * stride.s[0] + row % n[1] * stride.s[1];
      for (Index k = 0; k < n[2]; ++k) to[row * n[2] + k] = static_cast<float>(source[k * stride.s[2]]);
    }
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
  if (broken > 0) MRISR_FAIL(MRISR_ERROR_INPUT, "input: " << broken << " NaN or infinite voxels of " << n << "; replace them first");
  if (low == high) MRISR_FAIL(MRISR_ERROR_INPUT, "input: the volume is constant (every voxel " << low << "); expected an image");
}

// In the scan's units, in place.
void to_units(float* v, std::int64_t n, double gain, double offset, int threads) {
  const auto g = static_cast<float>(gain), o = static_cast<float>(offset);
  parallel_for(n, 1 << 16, threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) v[i] = v[i] * g + o;
  });
}

void put_background(float* v, std::int64_t n, const float* share, float half, float value, int threads) {
  parallel_for(n, 1 << 16, threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i)
      if (share[i] > half) v[i] = value;
  });
}

// A strided copy; each voxel by way of `as`.
template <class T, class As>
void write_output(T* to, const Strides& stride, const float* from, const Triple& n, int threads, const As& as) {
  parallel_for(n[0] * n[1], 64, threads, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      T* target = to + row / n[1] * stride.s[0] + row % n[1] * stride.s[1];
      for (Index k = 0; k < n[2]; ++k) target[k * stride.s[2]] = as(from[row * n[2] + k]);
    }
  });
}

const auto as_it_is = [](float v) { return v; };

constexpr double kLowest = std::numeric_limits<std::int16_t>::min(), kHighest = std::numeric_limits<std::int16_t>::max();

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
void write_whole(const mrisr_run_options& options, const Strides& stride, const float* from, const Triple& n, int threads,
                 mrisr_run_info& info) {
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

void check_options(const Job& job, const mrisr_run_options& options) {
  if (options.input == nullptr) MRISR_FAIL(MRISR_ERROR_ARGUMENT, "input: is NULL");
  if (options.output == nullptr && options.output_int16 == nullptr)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "output: is NULL, and so is output_int16");
  if (!(options.output_int16_scale >= 0 && options.output_int16_scale <= std::numeric_limits<float>::max()))
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "output_int16_scale: expected 0 or more, found " << options.output_int16_scale);
  if (options.input_element != MRISR_FLOAT32 && options.input_element != MRISR_INT16)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "input_element: expected a mrisr_element (0 or 1), found " << options.input_element);
  if (options.nonnegative != 0 && options.nonnegative != 1)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "nonnegative: expected 0 or 1, found " << options.nonnegative);
  if (options.spread != nullptr && job.samples < 2)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "spread: one sample has none; plan with samples of 2 or more");
}

// No array of a call lies on another.
void check_arrays(const mrisr_run_options& options, const std::pair<std::intptr_t, std::intptr_t>& input, const Strides& out,
                  const Triple& fine) {
  const struct {
    const void* start;
    std::size_t element;
    const char* name;
  } results[] = {{options.output, sizeof(float), "output"},
                 {options.output_int16, sizeof(std::int16_t), "output_int16"},
                 {options.spread, sizeof(float), "spread"}};
  for (int i = 0; i < 3; ++i) {
    if (results[i].start == nullptr) continue;
    const auto bytes = bytes_of(results[i].start, out, fine, results[i].element);
    check_apart(input, bytes, "input", results[i].name);
    for (int j = 0; j < i; ++j)
      if (results[j].start != nullptr)
        check_apart(bytes_of(results[j].start, out, fine, results[j].element), bytes, results[j].name, results[i].name);
  }
}

// w.y and w.spread in the scan's units, the background as it was, nothing negative where that is wanted.
void finish_values(const Job& job, const mrisr_run_options& options, const Workspace& w, const Scale& scale, const mrisr_run_info& info) {
  const std::int64_t voxels = product(job.target.shape);
  to_units(w.y, voxels, scale.scale, scale.offset, job.threads);
  if (options.spread != nullptr) to_units(w.spread, voxels, scale.scale, 0.0, job.threads);
  if (info.background != 0) {
    resample_background(job, w);
    const auto half = static_cast<float>(job.model->config.fade.half), value = static_cast<float>(info.background_value);
    put_background(w.y, voxels, w.fade.weights, half, value, job.threads);
    if (options.spread != nullptr) put_background(w.spread, voxels, w.fade.weights, half, 0.0f, job.threads);
  }
  if (options.nonnegative == 0) return;
  parallel_for(voxels, 1 << 16, job.threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) w.y[i] = std::max(w.y[i], 0.0f);
  });
}

void run_stages(Job& job, const mrisr_run_options& options, const Workspace& w, mrisr_run_info& info) {
  const Config& config = job.model->config;
  const Triple &coarse = job.source.shape, &fine = job.target.shape;
  const std::int64_t n = product(coarse), voxels = product(fine);
  const Strides in = strides_of(options.input_stride, coarse, "input_stride"), out = strides_of(options.output_stride, fine, "output_stride");
  check_arrays(options, bytes_of(options.input, in, coarse, options.input_element == MRISR_INT16 ? 2 : sizeof(float)), out, fine);
  Progress progress(options.progress, options.progress_user);
  progress.at(0);
  if (options.input_element == MRISR_INT16)
    read_input(w.lr, static_cast<const std::int16_t*>(options.input), in, coarse, job.threads);
  else
    read_input(w.lr, static_cast<const float*>(options.input), in, coarse, job.threads);
  check_input(w.lr, n);
  progress.at(kRead);
  info.background = find_background(job, w, options.mask, info.background_value) ? 1 : 0;
  const Scale scale = robust_scale(w.lr, coarse, config, w.start.values, w.start.spare);
  if (scale.outliers > 0)
    job.model->say(MRISR_LOG_WARNING, "input: the brightest voxels are so much brighter than the rest (an implant, a vessel, spikes?) "
                                      "that the intensity scale was taken without them; look at the output there");
  const auto offset = static_cast<float>(scale.offset), gain = static_cast<float>(scale.scale);
  parallel_for(n, 1 << 16, job.threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) w.lr[i] = (w.lr[i] - offset) / gain;
  });
  const double noise = estimate_noise(w.lr, coarse, config, w.start.sample);
  job.start.apply(w.y, w.lr, coarse, w.start.a, w.start.b, w.scratch, job.threads);
  info.offset = scale.offset, info.scale = scale.scale, info.noise = noise, info.outliers = scale.outliers;
  progress.at(kStarted);

  find_residual(job, w, noise, options.seed, progress, info);
  job.engine->release();  // what follows needs memory of its own
  progress.at(kNetworkDone);

  parallel_for(voxels, 1 << 16, job.threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) w.y[i] += w.found[i];
  });
  if (noise >= 0 && job.compares()) make_consistent(job, w, noise, info);
  fade(job, w, -offset / gain);
  finish_values(job, options, w, scale, info);
  if (options.output != nullptr) write_output(options.output, out, w.y, fine, job.threads, as_it_is);
  if (options.output_int16 != nullptr) write_whole(options, out, w.y, fine, job.threads, info);
  if (options.spread != nullptr) write_output(options.spread, out, w.spread, fine, job.threads, as_it_is);
  progress.at(1);
}

class Busy {
 public:
  explicit Busy(Job& job) : job_(job) {
    if (job.busy.exchange(true)) MRISR_FAIL(MRISR_ERROR_ARGUMENT, "job: runs in another thread already; a job is for one thread at a time");
  }
  ~Busy() { job_.busy.store(false); }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  Job& job_;
};

}  // namespace

void run_job(Job& job, const mrisr_run_options& options, mrisr_run_info& info) {
  const Busy busy(job);
  check_options(job, options);
  const Workers::Scope own_threads(*job.workers);
  const Block block(job, options);
  run_stages(job, options, lay_out(job, block.get()), info);
}

}  // namespace mrisr::runtime
