#include "denoise.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>

#include "../core/tiles.h"
#include "error.h"
#include "noise.h"
#include "sampling.h"
#include "shared.h"
#include "tiles.h"

namespace mrisr::runtime {
namespace {

constexpr Index kGrain = 1 << 16;

// to [size in the new order] = from [size in stored order], axes permuted: to's axis a is from's axis order[a].
void permute(float* to, const float* from, const Triple& size, const std::array<int, 3>& order, int threads) {
  const Index stride[3] = {size[1] * size[2], size[2], 1};
  const Triple n{size[order[0]], size[order[1]], size[order[2]]};
  const Index s[3] = {stride[order[0]], stride[order[1]], stride[order[2]]};
  parallel_for(n[0] * n[1], 64, threads, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
      const float* source = from + row / n[1] * s[0] + row % n[1] * s[1];
      float* target = to + row * n[2];
      for (Index k = 0; k < n[2]; ++k) target[k] = source[k * s[2]];
    }
  });
}

class Denoiser {
 public:
  Denoiser(Job& job, const Workspace& w, double noise, Progress& progress)
      : job_(job), w_(w), config_(job.model->config), noise_(noise), progress_(progress) {
    for (int a = 0; a < 3; ++a) back_[job.order[a]] = a;
    plan();
  }

  // x0 of the whole volume into w.residual: of the mean mode where x is null. done, share: of the progress.
  void run(const float* x, double sigma, double done, double share) {
    const auto level = static_cast<float>(sigma), data = static_cast<float>(config_.diffusion.sigma_data);
    const auto square = static_cast<float>(config_.diffusion.sigma_data * config_.diffusion.sigma_data);
    const float total = level * level + square;
    c_skip_ = x == nullptr ? 0.0f : square / total;
    c_out_ = level * data / std::sqrt(total);
    c_in_ = 1.0f / std::sqrt(total);
    fill_vector(level);
    fill(w_.residual, product(job_.target.shape), 0.0f);
    std::int64_t number = 0;
    each_active([&](const Triple& index) {
      tile(x, index);
      ++number;
      progress_.at(done + share * static_cast<double>(number) / static_cast<double>(active_));
    });
    keep_measured();
  }

  void tell(mrisr_run_info& info) const {
    for (int d = 0; d < 3; ++d) {
      info.box_start[d] = plan_.start[d];
      info.box_stop[d] = plan_.stop[d];
      info.tile[d] = plan_.axes[d].size;
    }
    info.tiles = plan_.count();
    info.tiles_run = active_;
  }

 private:
  void plan() {
    for (int d = 0; d < 3; ++d) plan_.axes[d] = {0, 0, w_.starts[d], w_.weights[d]};
    foreground_bricks(w_.y, job_.target.shape, config_, w_.bricks, w_.spare_bricks, job_.threads);
    plan_tiles(plan_, job_.target.shape, w_.bricks, job_.tile, job_.tile_fixed,
               whole_only() ? most() : job_.most_voxels, config_);
    const std::int64_t voxels = product(plan_.tile());
    if (voxels > job_.most_voxels || voxels > job_.largest_tile)
      refuse(job_.budget, job_.need, voxels, whole_only() ? "head" : "tile");
    each_active([&](const Triple&) { ++active_; });
    for (int a = 0; a < 3; ++a) shown_[a] = plan_.axes[job_.order[a]].size;
    prepare_engine();
  }

  // Said from the stack: a run allocates nothing.
  void prepare_engine() const {
    const auto began = std::chrono::steady_clock::now();
    if (!job_.engine->prepare(shown_)) return;
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
    char text[256];
    std::snprintf(text, sizeof text, "engine: %.100s compiled for tiles of %lld x %lld x %lld voxels in %.3f s",
                  job_.engine->name().c_str(), static_cast<long long>(shown_[0]), static_cast<long long>(shown_[1]),
                  static_cast<long long>(shown_[2]), took.count());
    job_.model->say(MRISR_LOG_INFO, text);
  }

  bool whole_only() const { return config_.network.whole_only; }
  static std::int64_t most() { return std::numeric_limits<std::int64_t>::max(); }

  template <class Call>
  void each_active(const Call& call) const {
    Triple i{};
    for (i[0] = 0; i[0] < plan_.axes[0].count; ++i[0])
      for (i[1] = 0; i[1] < plan_.axes[1].count; ++i[1])
        for (i[2] = 0; i[2] < plan_.axes[2].count; ++i[2])
          if (holds_foreground(plan_, i, w_.bricks, config_)) call(i);
  }

  // What a cut of k-space measured is exact in y: only what lies outside that band may be added to it. Across slices the
  // local mean is.
  // mrisr/infer/denoise.py: where noise is taken out, its part of the band goes too, and has no local mean.
  void keep_measured() {
    if (job_.projects() && job_.network_denoise() < 1) {
      prepare(Filter::band);
      subtract(1.0f - static_cast<float>(job_.network_denoise()));
    }
    if (!job_.projects() || job_.network_denoise() > 0) {
      prepare(Filter::mean);
      subtract(1.0f);
    }
  }

  enum class Filter { nothing, band, mean };

  void prepare(Filter filter) {
    if (filter_ == filter) return;
    filter_ = filter;
    for (int d = 0; d < 3; ++d) {
      inside_[d] = std::min(plan_.stop[d], plan_.shape[d]) - plan_.start[d];
      const double voxel = job_.target.voxel[d],
                   width = config_.consistency.mean_widths * std::max(job_.psf[d].width, voxel);
      if (filter == Filter::band)
        band_matrix(w_.band.matrix, w_.band.work, inside_[d], voxel, job_.psf[d]);
      else
        mean_matrix(w_.band.matrix, w_.band.work, inside_[d], voxel, width);
      band_[d] = cpu::axis_pack(w_.band.bands[d], w_.band.coefficients[d], w_.band.matrix, inside_[d], inside_[d],
                                shared::kDrop, d == 2 ? cpu::Lines::along : cpu::Lines::across);
    }
  }

  // What `prepare` was called for, times `share`, is no part of the residual.
  void subtract(float share) const {
    const Index n1 = plan_.shape[1], n2 = plan_.shape[2];
    float* const corner = w_.residual + (plan_.start[0] * n1 + plan_.start[1]) * n2 + plan_.start[2];
    const auto rows = [&](auto&& call) {
      parallel_for(inside_[0] * inside_[1], 64, job_.threads, [&](Index begin, Index end) {
        for (Index row = begin; row < end; ++row)
          call(corner + (row / inside_[1] * n1 + row % inside_[1]) * n2, row * inside_[2]);
      });
    };
    float *a = w_.band.a, *b = w_.band.b;
    rows([&](const float* volume, Index at) { std::copy_n(volume, inside_[2], a + at); });
    apply_axis(b, a, band_[0], inside_, 0, w_.scratch, job_.threads);
    apply_axis(a, b, band_[1], inside_, 1, w_.scratch, job_.threads);
    apply_axis(b, a, band_[2], inside_, 2, w_.scratch, job_.threads);
    rows([&](float* volume, Index at) {
      for (Index k = 0; k < inside_[2]; ++k) volume[k] -= share * b[at + k];
    });
  }

  // mrisr/nn/condition.py `vector`, axes in canonical order.
  void fill_vector(float sigma) const {
    const auto& v = config_.vector;
    float* to = w_.vector;
    std::fill_n(to, v.length, 0.0f);
    to[v.log_sigma.first] =
        std::log(sigma / static_cast<float>(config_.diffusion.sigma_data)) / static_cast<float>(v.log_sigma_unit);
    to[v.mode.first] = static_cast<float>(job_.sample ? v.mode_sample : v.mode_mean);
    for (int a = 0; a < 3; ++a) {
      const int axis = job_.order[a];
      const AxisPsf& psf = job_.psf[axis];
      to[v.width.first + a] = static_cast<float>(log_width(psf, job_.target.voxel[axis]));
      to[v.width_known.first + a] = 1.0f;
      const auto profile = std::find(v.profiles.begin(), v.profiles.end(), kind_name(psf.kind)) - v.profiles.begin();
      to[v.profile.first + a * static_cast<int>(v.profiles.size()) + static_cast<int>(profile)] = 1.0f;
      // A window is in a point spread because somebody stated it.
      if (psf.window != MRISR_WINDOW_BOX) {
        const bool hann = psf.window == MRISR_WINDOW_HANN;
        to[v.apodisation.first + a] = static_cast<float>(hann ? shared::kHannApodisation : shared::kTukeyApodisation);
        to[v.apodisation_known.first] = 1.0f;
      }
      to[v.spacing.first + a] = static_cast<float>(std::log2(job_.source.voxel[axis] / job_.target.voxel[axis]));
    }
    if (job_.distilled) to[v.step_share.first] = 1.0f / static_cast<float>(job_.steps);
    to[v.denoise.first] = static_cast<float>(job_.network_denoise());
    if (noise_ >= 0) {
      to[v.noise.first] = static_cast<float>(noise_) / static_cast<float>(v.noise_unit);
      to[v.noise_known.first] = 1.0f;
    }
  }

  void fill(float* to, Index n, float value) const {
    parallel_for(n, kGrain, job_.threads, [&](Index begin, Index end) { std::fill(to + begin, to + end, value); });
  }

  bool reorders() const { return job_.order != std::array<int, 3>{0, 1, 2}; }

  // The part of a volume under a tile, times `gain`, as the network sees it; `spare` is as large.
  void show(float* to, float* spare, const float* volume, const Triple& start, float gain) const {
    const Triple size = plan_.tile();
    float* const stored = reorders() ? spare : to;
    const View<const float, 3> from = contiguous3(volume, plan_.shape[0], plan_.shape[1], plan_.shape[2]);
    cpu::gather(contiguous3(stored, size[0], size[1], size[2]), from, start.data(), job_.threads);
    if (reorders()) permute(to, stored, size, job_.order, job_.threads);
    if (gain == 1.0f) return;
    parallel_for(product(size), kGrain, job_.threads, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) to[i] *= gain;
    });
  }

  void tile(const float* x, const Triple& index) {
    const Triple size = plan_.tile();
    const auto& net = w_.network;
    const Index voxels = product(size);
    Triple start{};
    const float* weights[3];
    for (int d = 0; d < 3; ++d) {
      start[d] = plan_.axes[d].starts[index[d]];
      weights[d] = plan_.axes[d].weights + index[d] * size[d];
    }
    if (x == nullptr)
      fill(net.tile_x, voxels, 0.0f);
    else
      show(net.tile_x, net.tile_spare, x, start, c_in_);
    show(net.tile_y, net.tile_spare, w_.y, start, 1.0f);
    const Index coarse = config_.guidance.stride * config_.guidance.stride * config_.guidance.stride;
    fill(net.guidance, config_.guidance.channels * (voxels / coarse), 0.0f);
    const mrisr_tile call{sizeof(mrisr_tile), {shown_[0], shown_[1], shown_[2]},
                          net.tile_x,         net.tile_y,
                          w_.vector,          net.guidance,
                          net.tile_f,         nullptr};
    job_.engine->run(call, progress_);
    float* answer = net.tile_f;
    if (reorders()) {
      permute(net.tile_spare, answer, shown_, back_, job_.threads);
      answer = net.tile_spare;
    }
    finish(answer, x, start, voxels);
    cpu::blend_add(contiguous3(w_.residual, plan_.shape[0], plan_.shape[1], plan_.shape[2]),
                   contiguous3<const float>(answer, size[0], size[1], size[2]), start.data(), weights, job_.threads);
  }

  // x0 = c_skip x + c_out f.
  void finish(float* f, const float* x, const Triple& start, Index voxels) const {
    float* const state = w_.network.tile_x;
    if (x != nullptr) {
      const Triple size = plan_.tile();
      const View<const float, 3> from = contiguous3(x, plan_.shape[0], plan_.shape[1], plan_.shape[2]);
      cpu::gather(contiguous3(state, size[0], size[1], size[2]), from, start.data(), job_.threads);
    }
    parallel_for(voxels, kGrain, job_.threads, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) f[i] = x == nullptr ? c_out_ * f[i] : c_skip_ * state[i] + c_out_ * f[i];
    });
  }

  Job& job_;
  const Workspace& w_;
  const Config& config_;
  double noise_;
  Progress& progress_;
  TilePlan plan_{};
  Triple shown_{}, inside_{};
  std::array<int, 3> back_{};
  Filter filter_ = Filter::nothing;
  cpu::AxisMatrix band_[3]{};
  std::int64_t active_ = 0;
  float c_skip_ = 0, c_out_ = 0, c_in_ = 0;
};

// One sample: its x0 at the end, into w.residual.
void draw(const Job& job, const Workspace& w, Denoiser& denoise, std::uint64_t seed, int sample) {
  const Triple& n = job.target.shape;
  const Index voxels = product(n);
  float *x = w.state, *following = w.following, *before = w.before;
  cpu::normal_noise(x, {{n[0], n[1], n[2]}, {0, 0, 0}, {n[0], n[1], n[2]}, seed, static_cast<std::uint32_t>(sample), 0},
                    job.threads);
  const auto first = static_cast<float>(job.sigmas[0]);
  const auto limit = static_cast<float>(job.model->config.diffusion.sigma_max);  // no residual is larger
  parallel_for(voxels, kGrain, job.threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) x[i] *= first;
  });
  const double share = (kDenoised - kStarted) / (job.steps * job.samples);
  for (int step = 0; step < job.steps; ++step) {
    denoise.run(x, job.sigmas[step], kStarted + share * (sample * job.steps + step), share);
    if (step + 1 == job.steps) break;
    const std::int64_t clock[3] = {step, sample, static_cast<std::int64_t>(seed)};
    SamplerStep s{};
    s.next = following, s.x0 = w.residual, s.x = x, s.f = w.residual, s.before = step == 0 ? nullptr : before;
    s.table = job.solver.data(), s.rows = job.steps, s.clock = clock;
    s.low = -limit, s.high = limit;
    s.count = voxels;
    cpu::sampler_step(s, job.threads);
    std::swap(x, following);
    parallel_for(voxels, kGrain, job.threads,
                 [&](Index begin, Index end) { std::copy(w.residual + begin, w.residual + end, before + begin); });
  }
  parallel_for(voxels, kGrain, job.threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) w.residual[i] = step_clamp(w.residual[i], -limit, limit);
  });
}

}  // namespace

void denoise(Job& job, const Workspace& w, double noise, std::uint64_t seed, Progress& progress, mrisr_run_info& info) {
  Denoiser denoiser(job, w, noise, progress);
  denoiser.tell(info);
  if (!job.sample) return denoiser.run(nullptr, job.model->config.diffusion.sigma_max, kStarted, kDenoised - kStarted);
  const Index voxels = product(job.target.shape);
  for (int k = 0; k < job.samples; ++k) {
    draw(job, w, denoiser, seed, k);
    if (job.samples == 1) return;
    const bool first = k == 0, last = k + 1 == job.samples;
    const auto count = static_cast<float>(k + 1), degrees = static_cast<float>(job.samples - 1);
    parallel_for(voxels, kGrain, job.threads, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) {  // Welford: no difference of large squares
        const float x = w.residual[i], delta = first ? 0.0f : x - w.mean[i];
        w.mean[i] = first ? x : w.mean[i] + delta / count;
        w.spread[i] = first ? 0.0f : w.spread[i] + delta * (x - w.mean[i]);
        if (last) w.residual[i] = w.mean[i], w.spread[i] = std::sqrt(w.spread[i] / degrees);
      }
    });
  }
}

}  // namespace mrisr::runtime
