// The C boundary: structures of any version in, no exception out.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>

#include "error.h"
#include "isa.h"
#include "job.h"

struct mrisr_model {
  std::shared_ptr<const mrisr::runtime::Model> model;
};

struct mrisr_job {
  std::unique_ptr<mrisr::runtime::Job> job;
};

namespace {

using mrisr::runtime::Error;

constexpr std::size_t kTextBytes = 1024;
thread_local char last_error[kTextBytes];

mrisr_status fail(mrisr_status status, const char* text) noexcept {
  std::snprintf(last_error, kTextBytes, "%s", text);
  return status;
}

// Runs `call`; whatever it throws becomes a status and this thread's last error.
template <class Call>
mrisr_status guarded(Call&& call) noexcept {
  try {
    call();
    return MRISR_OK;
  } catch (const Error& error) { return fail(error.status(), error.what()); } catch (const mrisr::BadArgument& error) {
    return fail(MRISR_ERROR_INTERNAL, error.what());
  } catch (const std::bad_alloc&) {
    return fail(MRISR_ERROR_MEMORY, "out of memory");
  } catch (const std::exception& error) { return fail(MRISR_ERROR_INTERNAL, error.what()); } catch (...) {
    return fail(MRISR_ERROR_INTERNAL, "an unknown exception");
  }
}

void check_size(std::size_t size, const char* name) {
  if (size < sizeof(std::size_t) || size > (std::size_t{1} << 16))
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, name << ": struct_size is " << size << "; call its _init function first");
}

// An older caller's structure is shorter than ours: the members that it lacks keep what _init gives them.
template <class T>
T copy_of(const T* theirs, const char* name, void (*init)(T*, std::size_t)) {
  T own;
  init(&own, sizeof own);
  if (theirs == nullptr) return own;
  check_size(theirs->struct_size, name);
  std::memcpy(&own, theirs, std::min(theirs->struct_size, sizeof own));
  own.struct_size = sizeof own;
  return own;
}

template <class T>
void given_back(T* to, const T& own, const char* name) {
  check_size(to->struct_size, name);
  const std::size_t size = to->struct_size;
  std::memcpy(to, &own, std::min(size, sizeof own));
  to->struct_size = size;
}

// Zeros, and the size; then the defaults, of which an older caller's structure takes what it has.
template <class T, class Defaults>
void init(T* to, std::size_t size, const Defaults& defaults) {
  if (to == nullptr || size < sizeof(std::size_t)) return;
  T own;
  std::memset(static_cast<void*>(&own), 0, sizeof own);
  defaults(own);
  std::memset(static_cast<void*>(to), 0, size);
  std::memcpy(static_cast<void*>(to), &own, std::min(size, sizeof own));
  to->struct_size = size;
}

template <class T>
void require(const T* pointer, const char* name) {
  if (pointer == nullptr) MRISR_FAIL(MRISR_ERROR_ARGUMENT, name << ": is NULL");
}

const auto no_defaults = [](auto&) {};

}  // namespace

extern "C" {

MRISR_API const char* mrisr_version(void) { return MRISR_VERSION; }

MRISR_API uint32_t mrisr_abi_version(void) { return MRISR_ABI_VERSION; }

MRISR_API const char* mrisr_builtin_engine(void) {
  try {
    return mrisr::runtime::builtin_engine();
  } catch (...) { return nullptr; }
}

MRISR_API const char* mrisr_build_info(void) {
  static thread_local char text[256];
  const char* engine = mrisr_builtin_engine();
  std::snprintf(text, sizeof text, "mrisr %s, ABI %d, built-in engine: %s, %s", MRISR_VERSION, MRISR_ABI_VERSION,
                engine != nullptr ? engine : "none (built without OpenVINO)", mrisr::isa_name());
  return text;
}

MRISR_API const char* mrisr_last_error(void) { return last_error; }

MRISR_API const char* mrisr_status_name(mrisr_status status) {
  switch (status) {
    case MRISR_OK:
      return "MRISR_OK";
    case MRISR_ERROR_ARGUMENT:
      return "MRISR_ERROR_ARGUMENT";
    case MRISR_ERROR_INPUT:
      return "MRISR_ERROR_INPUT";
    case MRISR_ERROR_GEOMETRY:
      return "MRISR_ERROR_GEOMETRY";
    case MRISR_ERROR_MODEL:
      return "MRISR_ERROR_MODEL";
    case MRISR_ERROR_MEMORY:
      return "MRISR_ERROR_MEMORY";
    case MRISR_ERROR_ENGINE:
      return "MRISR_ERROR_ENGINE";
    case MRISR_ERROR_CANCELLED:
      return "MRISR_ERROR_CANCELLED";
    case MRISR_ERROR_INTERNAL:
      return "MRISR_ERROR_INTERNAL";
  }
  return "an unknown status";
}

MRISR_API void mrisr_engine_vtable_init(mrisr_engine_vtable* engine, size_t size) { init(engine, size, no_defaults); }

MRISR_API void mrisr_open_options_init(mrisr_open_options* options, size_t size) { init(options, size, no_defaults); }

MRISR_API void mrisr_model_info_init(mrisr_model_info* info, size_t size) { init(info, size, no_defaults); }

MRISR_API void mrisr_geometry_init(mrisr_geometry* geometry, size_t size) { init(geometry, size, no_defaults); }

MRISR_API void mrisr_run_options_init(mrisr_run_options* options, size_t size) { init(options, size, no_defaults); }

MRISR_API void mrisr_run_info_init(mrisr_run_info* info, size_t size) {
  init(info, size, [](mrisr_run_info& own) {
    own.noise = -1;
    own.chi2_before = own.chi2_after = -1;
  });
}

MRISR_API void mrisr_plan_options_init(mrisr_plan_options* options, size_t size) {
  init(options, size, [](mrisr_plan_options& own) {
    for (int d = 0; d < 4; ++d) own.affine[5 * d] = 1;
    for (mrisr_axis_psf& psf : own.psf) psf.kind = MRISR_PSF_UNKNOWN;
    own.steps = own.samples = 1;
  });
}

MRISR_API mrisr_status mrisr_open(const char* bundle, const mrisr_open_options* options, mrisr_model** model) {
  return guarded([&] {
    require(model, "model");
    *model = nullptr;
    require(bundle, "bundle");
    const mrisr_open_options how = copy_of(options, "options", mrisr_open_options_init);
    auto result = std::make_shared<mrisr::runtime::Model>();
    result->config = mrisr::runtime::read_bundle(bundle, how.skip_checksums == 0);
    result->log = how.log;
    result->log_user = how.log_user;
    result->folder = bundle;
    result->cache = how.cache != nullptr ? how.cache : "";
    result->onnxruntime = how.onnxruntime != nullptr ? how.onnxruntime : "";
    *model = new mrisr_model{std::move(result)};
  });
}

MRISR_API void mrisr_close(mrisr_model* model) { delete model; }

MRISR_API mrisr_status mrisr_model_describe(const mrisr_model* model, mrisr_model_info* info) {
  return guarded([&] {
    require(model, "model");
    require(info, "info");
    const mrisr::runtime::Config& config = model->model->config;
    mrisr_model_info own{};
    own.name = config.name.c_str();
    own.preset = config.preset.c_str();
    own.sha256 = config.file(config.graphs.front().file)->sha256.c_str();
    own.sigma_data = config.diffusion.sigma_data;
    own.multiple = static_cast<int32_t>(config.network.multiple);
    given_back(info, own, "info");
  });
}

MRISR_API mrisr_status mrisr_plan(mrisr_model* model, const mrisr_plan_options* options, mrisr_job** job) {
  return guarded([&] {
    require(job, "job");
    *job = nullptr;
    require(model, "model");
    require(options, "options");
    mrisr_plan_options how = copy_of(options, "options", mrisr_plan_options_init);
    mrisr_engine_vtable engine{};
    if (how.engine != nullptr) {
      engine = copy_of(how.engine, "engine", mrisr_engine_vtable_init);
      how.engine = &engine;
    }
    auto result = std::make_unique<mrisr_job>();
    result->job = mrisr::runtime::plan_job(model->model, how);
    *job = result.release();
  });
}

MRISR_API void mrisr_job_close(mrisr_job* job) { delete job; }

MRISR_API mrisr_status mrisr_job_geometry(const mrisr_job* handle, mrisr_geometry* geometry) {
  return guarded([&] {
    require(handle, "job");
    require(geometry, "geometry");
    const mrisr::runtime::Job& job = *handle->job;
    mrisr_geometry own{};
    std::copy_n(job.target.shape.begin(), 3, own.shape);
    std::copy_n(job.target.affine.begin(), 16, own.affine);
    std::copy_n(job.target.voxel.begin(), 3, own.voxel_size);
    for (int d = 0; d < 3; ++d) own.psf[d] = {job.psf[d].kind, job.psf[d].window, job.psf[d].width};
    own.psf_certain = job.psf_certain ? 1 : 0;
    own.threads = job.threads;
    own.workspace_bytes = job.workspace;
    own.expected_bytes = static_cast<uint64_t>(job.need.peak(job.largest_tile));
    own.budget_bytes = job.budget;
    own.largest_tile_voxels = job.largest_tile;
    own.precision = job.precision.value;
    own.precision_why = job.precision.why.c_str();
    given_back(geometry, own, "geometry");
  });
}

MRISR_API mrisr_status mrisr_run(mrisr_job* job, const mrisr_run_options* options, mrisr_run_info* info) {
  return guarded([&] {
    require(job, "job");
    require(options, "options");
    const mrisr_run_options how = copy_of(options, "options", mrisr_run_options_init);
    mrisr_run_info own;
    mrisr_run_info_init(&own, sizeof own);
    if (info != nullptr) given_back(info, own, "info");
    mrisr::runtime::run_job(*job->job, how, own);
    if (info != nullptr) given_back(info, own, "info");
  });
}

}  // extern "C"
