// mrisr_plan: everything that can be decided before voxels are there.
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "error.h"
#include "job.h"
#include "shared.h"
#include "workspace.h"

namespace mrisr::runtime {
namespace {

constexpr std::int64_t kMostSourceVoxels = std::int64_t{1} << 31;
constexpr int kMostThreads = 1024, kMostSteps = 1000, kMostSamples = 100000;

std::int32_t within(const char* name, std::int32_t value, std::int32_t low, std::int32_t high) {
  if (value < low || value > high)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, name << ": expected " << low << " to " << high << ", found " << value);
  return value;
}

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
    return std::min(CPU_COUNT(&set), kMostThreads);
  return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, static_cast<unsigned>(kMostThreads)));
}

void plan_mode(Job& job, const mrisr_plan_options& options) {
  job.steps = within("steps", options.steps, 1, kMostSteps);
  job.samples = within("samples", options.samples, 1, kMostSamples);
  const int mode = within("mode", options.mode, MRISR_MODE_AUTO, MRISR_MODE_SAMPLE);
  const bool several = job.steps > 1 || job.samples > 1;
  if (mode == MRISR_MODE_MEAN && several)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT,
               "mode: mean is one noiseless step, found steps=" << job.steps << " and samples=" << job.samples
                                                                << "; leave both at 1, or ask for MRISR_MODE_SAMPLE");
  job.sample = mode == MRISR_MODE_SAMPLE || (mode == MRISR_MODE_AUTO && several);
  job.consistency = static_cast<mrisr_consistency>(
      within("consistency", options.consistency, MRISR_CONSISTENCY_AUTO, MRISR_CONSISTENCY_OFF));
  job.ends_wanted = static_cast<mrisr_ends>(within("ends", options.ends, MRISR_ENDS_FADE, MRISR_ENDS_FULL));
  if (!(options.denoise >= 0 && options.denoise <= 1))
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "denoise: expected a number from 0 to 1, found " << options.denoise);
  if (options.denoise > 0 && job.sample && !job.model->config.diffusion.denoise)
    MRISR_FAIL(
        MRISR_ERROR_ARGUMENT,
        "denoise: model '" << job.model->config.name
                           << "' has not learnt to remove noise from what was measured, and in samples no filter "
                              "does; leave denoise at 0");
  job.denoise = options.denoise;
  job.threads = within("threads", options.threads, 0, kMostThreads);
  if (job.threads == 0) job.threads = usable_cores();
}

void plan_grids(Job& job, const mrisr_plan_options& options) {
  job.source = source_grid(options.shape, options.affine);
  if (product(job.source.shape) > kMostSourceVoxels)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "shape: expected at most 2^31 voxels, found " << product(job.source.shape));
  const Config& config = job.model->config;
  job.target = target_grid(job.source, options.voxel_size, options.factor, config);
  within("psf_stated", options.psf_stated, 0, 1);
  job.psf = options.psf_stated != 0 ? stated_psf(options.psf, job.source.voxel)
                                    : assumed_psf(job.source.voxel, config.start.thick_slice_ratio);
  job.psf_certain = options.psf_stated != 0 && std::none_of(job.psf.begin(), job.psf.end(), [](const AxisPsf& p) {
                      return p.kind == MRISR_PSF_UNKNOWN;
                    });
  for (const AxisPsf& p : job.psf)
    if (std::find(config.vector.profiles.begin(), config.vector.profiles.end(), kind_name(p.kind)) ==
        config.vector.profiles.end())
      MRISR_FAIL(MRISR_ERROR_MODEL, "the model does not know the profile '" << kind_name(p.kind) << "'");
  job.order = canonical_order(job.psf, job.target.voxel, config.vector.width_decimals);
}

// mrisr/infer/fade.py: from the centre of an end slice inwards.
std::vector<float> end_weights(std::int64_t n_in, std::int64_t n_out, double ratio, const Config& config) {
  const std::vector<double> at = axis_positions(n_in, n_out, ratio);
  const double none = config.fade.end_none, all = config.fade.end_all;
  std::vector<float> weights;
  for (const double p : at) {
    const double inside = std::min(p, static_cast<double>(n_in - 1) - p),
                 share = std::clamp((inside - none) / (all - none), 0.0, 1.0);
    weights.push_back(static_cast<float>(share * share * (3 - 2 * share)));
  }
  return weights;
}

void plan_fade(Job& job) {
  const Config& config = job.model->config;
  const Grid &in = job.source, &out = job.target;
  Matrix plain[3], linear[3];
  for (int d = 0; d < 3; ++d) {
    plain[d] = plain_matrix(in.shape[d], in.voxel[d], out.shape[d], out.voxel[d], config.fade.spline_order);
    linear[d] = plain_matrix(in.shape[d], in.voxel[d], out.shape[d], out.voxel[d], 1);
    if (job.psf[d].slice() && job.ends_wanted == MRISR_ENDS_FADE)
      job.ends[d] = end_weights(in.shape[d], out.shape[d], out.voxel[d] / in.voxel[d], config);
  }
  job.plain = Axes(plain);
  job.linear = Axes(linear);
}

void plan_axes(Job& job) {
  const Grid &in = job.source, &out = job.target;
  Matrix start[3], forward[3], adjoint[3], to[3], from[3];
  for (int d = 0; d < 3; ++d) {
    start[d] = start_matrix(in.shape[d], in.voxel[d], out.shape[d], out.voxel[d], job.psf[d],
                            job.model->config.start.spline_order);
    if (!job.compares() && !job.filters()) continue;
    forward[d] = acquisition_matrix(out.shape[d], out.voxel[d], in.shape[d], in.voxel[d], job.psf[d]);
    if (!job.corrects()) continue;
    adjoint[d] = transposed(forward[d]);
    if (forward[d].identity()) continue;
    eigen_of_square(forward[d], from[d], job.spectrum[d]);
    to[d] = transposed(from[d]);
  }
  job.start = Axes(start);
  job.forward = Axes(forward);
  job.adjoint = Axes(adjoint);
  job.to_modes = Axes(to);
  job.from_modes = Axes(from);
}

// Karras' noise levels and the rows of DPM-Solver++(2M), or of first-order steps where the weights were distilled for
// them: mrisr/diffusion/schedule.py and sampler.py.
void plan_sampler(Job& job) {
  const auto& how = job.model->config.diffusion;
  const double high = std::pow(how.sigma_max, 1 / how.rho), low = std::pow(how.sigma_min, 1 / how.rho);
  job.distilled = job.sample && std::count(how.few_steps.begin(), how.few_steps.end(), job.steps) > 0;
  const int intervals = std::max(1, job.distilled ? job.steps : job.steps - 1);
  for (int i = 0; i < job.steps; ++i) {
    const double ramp = static_cast<double>(i) / intervals;
    job.sigmas.push_back(std::pow(high + ramp * (low - high), how.rho));
  }
  job.sigmas.push_back(0.0);
  double before = 0;
  for (int i = 0; i < job.steps; ++i) {
    const double sigma = job.sigmas[i], following = job.sigmas[i + 1];
    double row[4] = {0, 1, 0, 0};  // the last step, to zero, is its x0
    if (following > 0 && job.distilled) {
      row[0] = following / sigma;
      row[1] = 1 - row[0];
    } else if (following > 0) {
      const double step = std::log(sigma / following), gain = -std::expm1(-step),
                   weight = i == 0 ? 0.0 : step / (2 * before);
      row[0] = following / sigma * std::exp(-0.0 * step);
      row[1] = gain * (1 + weight);
      row[2] = -gain * weight;
      before = step;
    }
    for (double v : row) job.solver.push_back(static_cast<float>(v));
  }
}

void plan_engine(Job& job, const mrisr_plan_options& options) {
  const Config& config = job.model->config;
  if (config.network.multiple % config.guidance.stride != 0)
    MRISR_FAIL(MRISR_ERROR_MODEL, "network.multiple: expected a multiple of " << config.guidance.stride << ", found "
                                                                              << config.network.multiple);
  const auto precision = static_cast<mrisr_precision>(
      within("precision", options.precision, MRISR_PRECISION_AUTO, MRISR_PRECISION_BFLOAT16));
  const auto runtime = static_cast<mrisr_runtime>(
      within("runtime", options.runtime, MRISR_RUNTIME_OPENVINO, MRISR_RUNTIME_ONNX_TENSORRT));
  const auto began = std::chrono::steady_clock::now();
  if (options.engine != nullptr) {
    if (runtime != MRISR_RUNTIME_OPENVINO)
      MRISR_FAIL(MRISR_ERROR_ARGUMENT, "runtime: is of the library's own engines; leave it at 0, or give no engine");
    if (precision == MRISR_PRECISION_BFLOAT16)
      MRISR_FAIL(MRISR_ERROR_ARGUMENT,
                 "precision: is that of the built-in engine; the engine given computes in what it was made for");
    job.engine = caller_engine(*options.engine, config);
  } else if (const auto network = job.model->network(runtime)) {
    job.engine = network->engine(job.threads, precision);
  } else {
    MRISR_FAIL(MRISR_ERROR_ENGINE, "engine: this library was built without "
                                       << (runtime == MRISR_RUNTIME_OPENVINO ? "OpenVINO" : "ONNX Runtime")
                                       << "; give mrisr_plan_options.engine, or another runtime");
  }
  job.engine_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

void plan_tile(Job& job, const mrisr_plan_options& options) {
  const Config& config = job.model->config;
  const std::int64_t smallest = smallest_tile(config);
  const bool has_tile = options.tile[0] != 0 || options.tile[1] != 0 || options.tile[2] != 0;
  for (int d = 0; d < 3; ++d) {
    if (has_tile && (options.tile[d] < smallest || options.tile[d] > (std::int64_t{1} << 20)))
      MRISR_FAIL(MRISR_ERROR_ARGUMENT, "tile: expected 0, or at least "
                                           << smallest << " voxels along every axis, found " << options.tile[0] << ", "
                                           << options.tile[1] << ", " << options.tile[2]);
    job.tile[d] = options.tile[d];
  }
  if (has_tile && config.network.whole_only)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "tile: model '"
                                         << config.name
                                         << "' normalises over the whole head, which tiles would each do for "
                                            "themselves; leave tile at 0");
  job.tile_fixed = within("tile_fixed", options.tile_fixed, 0, 1) == 1;
  if (job.tile_fixed && !has_tile)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "tile_fixed: needs a tile; state its size, for example 96, 96, 96");
  for (std::int64_t& n : job.tile) n = round_up(n, config.tiling.brick);
}

void plan_memory(Job& job, const mrisr_plan_options& options) {
  const Config& config = job.model->config;
  const Triple& fine = job.target.shape;
  const Cost engine = job.engine->cost();
  job.need.resident = static_cast<double>(resident_bytes());
  job.need.fixed = engine.fixed;
  job.need.per_voxel = shared::kPieceBytes + engine.per_voxel;
  job.need.volumes = volume_bytes(product(job.source.shape), product(fine), {job.steps, job.samples, job.corrects()});
  job.budget = options.memory != 0 ? options.memory : default_budget();
  job.most_voxels = job.need.tile_voxels(job.budget);
  std::int64_t smallest = 1, whole = 1, tile = 1;
  for (int d = 0; d < 3; ++d) {
    const std::int64_t n = round_up(fine[d], config.tiling.brick);
    whole *= n;
    smallest *= std::min(smallest_tile(config), n);
    const std::int64_t own = job.tile[d] != 0 ? job.tile[d] : n;
    tile *= job.tile_fixed ? own : std::min(own, n);
  }
  if (job.tile_fixed && tile > job.most_voxels) refuse(job.budget, job.need, tile, "fixed tile");
  if (config.network.whole_only) smallest = 1;  // how much of the grid is head is known when its voxels are there
  if (job.most_voxels < smallest)
    refuse(job.budget, job.need, config.network.whole_only ? whole : smallest, "smallest tile");
  job.largest_tile = std::min(tile, job.most_voxels);
}

void tell(const Job& job) {
  if (job.model->log == nullptr) return;
  const auto grid = [](const Grid& g) {
    std::ostringstream text;
    text.precision(4);
    text << g.shape[0] << " x " << g.shape[1] << " x " << g.shape[2] << " voxels of " << g.voxel[0] << " x "
         << g.voxel[1] << " x " << g.voxel[2] << " mm";
    return text.str();
  };
  std::ostringstream text;
  text.precision(3);
  text << "plan: " << grid(job.source) << " to " << grid(job.target) << "; engine " << job.engine->name();
  if (job.precision.value != MRISR_PRECISION_AUTO)
    text << " in " << (job.precision.value == MRISR_PRECISION_BFLOAT16 ? "bfloat16" : "float32") << " ("
         << job.precision.why << ")";
  text << ", made in " << job.engine_seconds << " s; " << job.threads << (job.threads == 1 ? " thread" : " threads");
  job.model->say(MRISR_LOG_INFO, text.str());
}

void warn(const Job& job) {
  const Config& config = job.model->config;
  if (job.target.shape == job.source.shape && job.target.voxel == job.source.voxel)
    job.model->say(
        MRISR_LOG_WARNING,
        "the target grid is the scan's own: hardly anything is gained; ask for a smaller voxel_size, or for factor");
  for (int d = 0; d < 3; ++d) {
    std::ostringstream text;
    const double in = job.source.voxel[d], out = job.target.voxel[d], step = job.psf[d].width / out;
    if (out / in > 1 + config.grid.same_spacing) {
      text << "axis " << d << ": the input (" << in << " mm) is already finer than the target (" << out
           << " mm): detail is removed there";
      job.model->say(MRISR_LOG_WARNING, text.str());
    }
    const Config::Range& range = job.psf[d].slice() ? config.trained_slice : config.trained_isotropic;
    if (range.known && step > range.high * (1 + config.grid.same_spacing)) {
      text.str("");
      text << "axis " << d << ": " << job.psf[d].width << " mm acquired to " << out << " mm is " << step
           << "x finer, and " << config.name << " was trained on " << range.low << "x to " << range.high
           << "x: do not rely on it";
      job.model->say(MRISR_LOG_WARNING, text.str());
    }
  }
}

}  // namespace

std::unique_ptr<Job> plan_job(std::shared_ptr<const Model> model, const mrisr_plan_options& options) {
  auto job = std::make_unique<Job>();
  job->model = std::move(model);
  plan_mode(*job, options);
  plan_grids(*job, options);
  plan_tile(*job, options);
  plan_engine(*job, options);
  plan_memory(*job, options);
  plan_axes(*job);
  plan_fade(*job);
  plan_sampler(*job);
  job->workspace = lay_out(*job, nullptr).bytes;
  job->precision = job->engine->precision();
  job->workers = std::make_unique<Workers>(job->threads);
  tell(*job);
  warn(*job);
  return job;
}

}  // namespace mrisr::runtime
