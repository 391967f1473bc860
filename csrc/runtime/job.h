// A model, and a job on it: everything that mrisr_plan decides, and what mrisr_run works in.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "axes.h"
#include "bundle.h"
#include "engine.h"
#include "geometry.h"
#include "memory.h"
#include "parallel.h"
#include "shared.h"

namespace mrisr::runtime {

struct Model {
  Config config;
  std::string folder, cache, onnxruntime;
  mrisr_log_callback log = nullptr;
  void* log_user = nullptr;

  void say(mrisr_log_level level, const std::string& text) const { say(level, text.c_str()); }
  void say(mrisr_log_level level, const char* text) const {
    if (log != nullptr) log(log_user, level, text);
  }

  // The graph in one of the library's own engines, read when a job first wants it: who brings an engine never loads it.
  // Null where it is not built in.
  std::shared_ptr<const Network> network(mrisr_runtime runtime) const {
    const std::lock_guard<std::mutex> hold(lock_);
    std::shared_ptr<const Network>& known = networks_[runtime];
    if (known == nullptr)
      known = runtime == MRISR_RUNTIME_OPENVINO ? load_network(folder, config, cache)
                                                : load_onnxruntime(folder, config, {runtime, onnxruntime, cache});
    return known;
  }

 private:
  mutable std::mutex lock_;
  mutable std::array<std::shared_ptr<const Network>, MRISR_RUNTIME_ONNX_TENSORRT + 1> networks_;
};

struct Job {
  std::shared_ptr<const Model> model;
  Grid source{}, target{};
  Psf psf{};
  bool psf_certain = false, sample = false;
  double denoise = 0;          // share of the measured band's noise that goes
  bool distilled = false;      // the weights know this number of steps
  std::array<int, 3> order{};  // of the axes, as the network sees them
  int steps = 1, samples = 1, threads = 1;
  mrisr_consistency consistency = MRISR_CONSISTENCY_AUTO;
  Triple tile{};
  bool tile_fixed = false;
  std::uint64_t budget = 0;
  Demand need{};
  std::int64_t most_voxels = 0;   // of a tile
  std::int64_t largest_tile = 0;  // that can occur on this grid
  Axes start, forward, adjoint;   // acquisition and its adjoint, where something looks at them
  Axes to_modes, from_modes;      // eigenvectors of the acquisition
  Axes plain, linear;             // what stands where the network does not count; the same for weights and masks
  std::vector<float> ends[3];     // how much of the network's answer counts across slices; empty: all
  mrisr_ends ends_wanted = MRISR_ENDS_FADE;
  std::vector<double> spectrum[3];  // its eigenvalues per axis; empty: ones
  std::vector<float> solver;        // rows of the sampler's table
  std::vector<double> sigmas;
  std::size_t workspace = 0;
  std::unique_ptr<Workers> workers;
  std::unique_ptr<Engine> engine;
  double engine_seconds = 0;  // that it took to make
  Precision precision;
  std::atomic<bool> busy{false};

  bool corrects() const {
    return consistency == MRISR_CONSISTENCY_ON || (consistency == MRISR_CONSISTENCY_AUTO && psf_certain);
  }
  // The scan is filtered for its noise: mrisr/infer/plan.py.
  bool filters() const { return denoise > 0 && !sample; }
  // How much of what the scan holds beyond the network's answer goes back onto it.
  double back_projection() const {
    if (filters() && answer_is_pilot()) return 1;
    if (sample || projects() || !compares()) return 0;
    return psf_certain ? 1 : shared::kBackAssumed;
  }
  // Anything of the scan goes onto the network's answer, or any of its noise out.
  bool restores() const { return filters() || back_projection() > 0; }
  // The network's answer is the pilot where it has learnt to leave noise out; else the scan is its own.
  bool answer_is_pilot() const { return model->config.diffusion.denoise; }
  // How much of the noise the network is to take out: all, for a pilot.
  double network_denoise() const { return !filters() ? denoise : answer_is_pilot() ? 1.0 : 0.0; }
  bool compares() const { return consistency != MRISR_CONSISTENCY_OFF; }
  // No band is exact where an axis has a slice profile: there the local mean is kept.
  bool projects() const { return !(psf[0].slice() || psf[1].slice() || psf[2].slice()); }
};

std::unique_ptr<Job> plan_job(std::shared_ptr<const Model> model, const mrisr_plan_options& options);
void run_job(Job& job, const mrisr_run_options& options, mrisr_run_info& info);

}  // namespace mrisr::runtime
