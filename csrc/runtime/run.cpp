// mrisr_run: one volume through the whole pipeline.
#include <algorithm>
#include <cmath>
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

void check_apart(const std::pair<std::intptr_t, std::intptr_t>& a, const std::pair<std::intptr_t, std::intptr_t>& b, const char* what) {
  if (a.first < b.second && b.first < a.second)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, what << ": must not overlap; give each a block of its own (mrisr_job_geometry has the output's shape)");
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

void write_output(float* to, const Strides& stride, const float* from, const Triple& n, const Scale& scale, bool shift, int threads) {
  const auto gain = static_cast<float>(scale.scale), offset = static_cast<float>(shift ? scale.offset : 0.0);
  parallel_for(n[0] * n[1], 64, threads, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      float* target = to + row / n[1] * stride.s[0] + row % n[1] * stride.s[1];
      for (Index k = 0; k < n[2]; ++k) target[k * stride.s[2]] = from[row * n[2] + k] * gain + offset;
    }
  });
}

// call(first voxel, its place in a contiguous volume, voxels, stride) of every row of a strided volume.
template <class Call>
void each_row(float* to, const Strides& stride, const Triple& n, int threads, const Call& call) {
  parallel_for(n[0] * n[1], 64, threads, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row)
      call(to + row / n[1] * stride.s[0] + row % n[1] * stride.s[1], row * n[2], n[2], stride.s[2]);
  });
}

void put_background(float* to, const Strides& stride, const float* share, float half, float value, const Triple& n, int threads) {
  each_row(to, stride, n, threads, [&](float* row, Index at, Index n2, std::int64_t step) {
    for (Index k = 0; k < n2; ++k)
      if (share[at + k] > half) row[k * step] = value;
  });
}

void check_options(const Job& job, const mrisr_run_options& options) {
  if (options.input == nullptr) MRISR_FAIL(MRISR_ERROR_ARGUMENT, "input: is NULL");
  if (options.output == nullptr) MRISR_FAIL(MRISR_ERROR_ARGUMENT, "output: is NULL");
  if (options.input_element != MRISR_FLOAT32 && options.input_element != MRISR_INT16)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "input_element: expected a mrisr_element (0 or 1), found " << options.input_element);
  if (options.nonnegative != 0 && options.nonnegative != 1)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "nonnegative: expected 0 or 1, found " << options.nonnegative);
  if (options.spread != nullptr && job.samples < 2)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "spread: one sample has none; plan with samples of 2 or more");
}

void run_stages(Job& job, const mrisr_run_options& options, const Workspace& w, mrisr_run_info& info) {
  const Config& config = job.model->config;
  const Triple &coarse = job.source.shape, &fine = job.target.shape;
  const std::int64_t n = product(coarse), voxels = product(fine);
  const Strides in = strides_of(options.input_stride, coarse, "input_stride"), out = strides_of(options.output_stride, fine, "output_stride");
  const auto to = bytes_of(options.output, out, fine, sizeof(float));
  check_apart(bytes_of(options.input, in, coarse, options.input_element == MRISR_INT16 ? 2 : sizeof(float)), to, "input and output");
  if (options.spread != nullptr) check_apart(to, bytes_of(options.spread, out, fine, sizeof(float)), "output and spread");
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
  write_output(options.output, out, w.y, fine, scale, true, job.threads);
  if (options.spread != nullptr) write_output(options.spread, out, w.spread, fine, scale, false, job.threads);
  if (info.background != 0) {
    resample_background(job, w);
    const auto half = static_cast<float>(config.fade.half), value = static_cast<float>(info.background_value);
    put_background(options.output, out, w.fade.weights, half, value, fine, job.threads);
    if (options.spread != nullptr) put_background(options.spread, out, w.fade.weights, half, 0.0f, fine, job.threads);
  }
  if (options.nonnegative != 0)
    each_row(options.output, out, fine, job.threads, [](float* row, Index, Index n2, std::int64_t step) {
      for (Index k = 0; k < n2; ++k) row[k * step] = std::max(row[k * step], 0.0f);
    });
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
