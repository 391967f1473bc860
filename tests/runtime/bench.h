// libmrisr through its C interface, with an engine of the test's own: a smooth function of its inputs, so that whatever
// reaches it shows in the result.
#pragma once

#include <mrisr.h>

#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "bundle_files.h"
#include "check.h"

using Volume = std::vector<float>;

struct Fake {
  int runs = 0, prepared = 0, copies = 0, fail_at = -1;
  float gain = 1;
  mrisr_job* reentered = nullptr;  // run again from inside of the engine
  mrisr_status reentry = MRISR_OK;
};

inline int fake_prepare(void* user, const int64_t* size) {
  ++static_cast<Fake*>(user)->prepared;
  return size[0] % 8 != 0 || size[1] % 8 != 0 || size[2] % 8 != 0;
}

inline int fake_run(void* user, const mrisr_tile* tile) {
  auto& fake = *static_cast<Fake*>(user);
  if (fake.runs++ == fake.fail_at) return 7;
  if (fake.reentered != nullptr) {
    mrisr_run_options options;
    mrisr_run_options_init(&options, sizeof options);
    fake.reentry = mrisr_run(fake.reentered, &options, nullptr);
  }
  const int64_t n = tile->size[0] * tile->size[1] * tile->size[2];
  float condition = 0, guidance = 0;
  for (int i = 0; i < 24; ++i) condition += tile->vector[i] * static_cast<float>(i + 1);
  for (int64_t i = 0; i < 8 * (n / 512); ++i) guidance += std::fabs(tile->guidance[i]);
  for (int64_t i = 0; i < n; ++i)
    tile->f[i] = fake.gain * (0.3f * std::sin(5 * tile->y[i]) + 0.1f * tile->x[i] + 1e-3f * condition + guidance);
  return 0;
}

// "Device" memory: the pointers that the library sees are off by a page, so that using them unasked would crash.
constexpr std::size_t kHidden = 4096;
inline void* fake_allocate(void*, std::size_t bytes) {
  return static_cast<char*>(std::malloc(bytes + 2 * kHidden)) + kHidden;
}
inline void fake_deallocate(void*, void* p) { std::free(static_cast<char*>(p) - kHidden); }
inline int fake_copy_in(void* user, void* to, const void* from, std::size_t bytes, void* stream) {
  ++static_cast<Fake*>(user)->copies;
  std::memcpy(to, from, bytes);
  return stream != user;
}
inline int fake_copy_out(void* user, void* to, const void* from, std::size_t bytes, void* stream) {
  return fake_copy_in(user, to, from, bytes, stream);
}
inline int fake_wait(void*, void*) { return 0; }
inline const char* fake_error(void*) { return "as it was told to"; }

inline mrisr_engine_vtable engine_of(Fake& fake, bool device = false) {
  mrisr_engine_vtable engine;
  mrisr_engine_vtable_init(&engine, sizeof engine);
  engine.user = &fake;
  engine.name = "fake";
  engine.prepare = fake_prepare;
  engine.run = fake_run;
  engine.error_text = fake_error;
  if (device) {
    engine.memory = MRISR_MEMORY_DEVICE;
    engine.stream = &fake;
    engine.allocate = fake_allocate;
    engine.deallocate = fake_deallocate;
    engine.copy_in = fake_copy_in;
    engine.copy_out = fake_copy_out;
    engine.wait = fake_wait;
  }
  return engine;
}

constexpr int64_t kShape[3] = {36, 40, 28};

// A ball with folds in air.
inline Volume scan() {
  Volume v;
  for (int64_t i = 0; i < kShape[0]; ++i)
    for (int64_t j = 0; j < kShape[1]; ++j)
      for (int64_t k = 0; k < kShape[2]; ++k) {
        const double x = (i + 0.5) / kShape[0] - 0.5, y = (j + 0.5) / kShape[1] - 0.5, z = (k + 0.5) / kShape[2] - 0.5;
        const double r = std::sqrt(x * x + y * y + z * z), noise = ((i * 7919 + j * 104729 + k * 1299709) % 97) / 97.0;
        v.push_back(static_cast<float>(
            std::floor((r < 0.33 ? 500 + 200 * std::sin(25 * x) * std::cos(21 * y) : 0) + 8 * noise)));
      }
  return v;
}

inline mrisr_plan_options plan_options(const mrisr_engine_vtable& engine) {
  mrisr_plan_options how;
  mrisr_plan_options_init(&how, sizeof how);
  for (int d = 0; d < 3; ++d) {
    how.shape[d] = kShape[d];
    how.affine[5 * d] = 1.4;
  }
  how.threads = 1;
  how.engine = &engine;
  return how;
}

struct Result {
  mrisr_status status = MRISR_OK;
  std::string text;
  Volume out, spread;
  mrisr_run_info info{};
  mrisr_geometry geometry{};
};

inline mrisr_geometry geometry_of(const mrisr_job* job) {
  mrisr_geometry geometry;
  mrisr_geometry_init(&geometry, sizeof geometry);
  EXPECT(mrisr_job_geometry(job, &geometry) == MRISR_OK);
  return geometry;
}

template <class Change>
Result run(mrisr_job* job, const Volume& input, const Change& change) {
  Result result;
  result.geometry = geometry_of(job);
  const int64_t* n = result.geometry.shape;
  result.out.assign(static_cast<std::size_t>(n[0] * n[1] * n[2]), NAN);
  mrisr_run_options options;
  mrisr_run_options_init(&options, sizeof options);
  options.input = input.data();
  options.output = result.out.data();
  change(options, result);
  mrisr_run_info_init(&result.info, sizeof result.info);
  result.status = mrisr_run(job, &options, &result.info);
  if (result.status != MRISR_OK) result.text = mrisr_last_error();
  return result;
}

inline Result run(mrisr_job* job, const Volume& input) {
  return run(job, input, [](auto&, auto&) {});
}

class Bench {
 public:
  Bench() { EXPECT(mrisr_open(files.folder.c_str(), nullptr, &model) == MRISR_OK); }
  ~Bench() { mrisr_close(model); }

  mrisr_job* plan(const mrisr_plan_options& how) const {
    mrisr_job* job = nullptr;
    const mrisr_status status = mrisr_plan(model, &how, &job);
    if (status != MRISR_OK) check::fail(__FILE__, __LINE__, std::string("plan: ") + mrisr_last_error());
    return job;
  }

  template <class Change>
  Result once(Fake& fake, const Change& change, bool device = false) const {
    const mrisr_engine_vtable engine = engine_of(fake, device);
    mrisr_plan_options how = plan_options(engine);
    change(how);
    mrisr_job* job = plan(how);
    const Result result = run(job, scan());
    if (result.status != MRISR_OK) check::fail(__FILE__, __LINE__, "run: " + result.text);
    mrisr_job_close(job);
    return result;
  }

  template <class Change>
  void refuses(mrisr_status status, const char* text, const Change& change) const {
    Fake fake;
    mrisr_engine_vtable engine = engine_of(fake);
    mrisr_plan_options how = plan_options(engine);
    change(how, engine);
    mrisr_job* job = reinterpret_cast<mrisr_job*>(&fake);
    EXPECT(mrisr_plan(model, &how, &job) == status);
    EXPECT(job == nullptr);
    EXPECT_TEXT(mrisr_last_error(), text);
  }

  BundleFiles files;
  mrisr_model* model = nullptr;
};

inline const auto as_it_is = [](auto&) {};

template <class Three>
void set_all(Three& axes, double value) {
  for (auto& axis : axes) axis = static_cast<std::decay_t<decltype(axis)>>(value);
}

// The point spread of a cut of k-space, stated.
inline void state_kspace(mrisr_plan_options& how, std::int32_t window = MRISR_WINDOW_BOX) {
  how.psf_stated = 1;
  for (auto& psf : how.psf) psf.kind = MRISR_PSF_KSPACE, psf.window = window;
}

// A job with an engine of its own, and the scan.
class Job {
 public:
  template <class Change>
  Job(const Bench& bench, const Change& change) {
    mrisr_plan_options how = plan_options(engine);
    change(how);
    job = bench.plan(how);
  }
  explicit Job(const Bench& bench) : Job(bench, as_it_is) {}
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;
  ~Job() { mrisr_job_close(job); }

  Result run() const { return ::run(job, input); }
  template <class Change>
  Result run(const Change& change) const {
    return ::run(job, input, change);
  }

  Fake fake;
  const mrisr_engine_vtable engine = engine_of(fake);
  const Volume input = scan();
  mrisr_job* job = nullptr;
};
