// The whole of libmrisr through its C interface, with an engine of the test's own: a smooth function of its inputs, so that
// whatever reaches it shows in the result.
#include <mrisr.h>

#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <thread>
#include <vector>

#include "bundle_files.h"
#include "check.h"

namespace {
std::atomic<long> allocations{0};
}

void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes == 0 ? 1 : bytes)) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t bytes, std::align_val_t align) {
  ++allocations;
  const auto unit = static_cast<std::size_t>(align);
  if (void* p = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit)) return p;
  throw std::bad_alloc();
}
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  ++allocations;
  return std::malloc(bytes == 0 ? 1 : bytes);
}
void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace {

using Volume = std::vector<float>;

struct Fake {
  int runs = 0, prepared = 0, copies = 0, fail_at = -1;
  float gain = 1;
  mrisr_job* reentered = nullptr;  // run again from inside of the engine
  mrisr_status reentry = MRISR_OK;
};

int fake_prepare(void* user, const int64_t* size) {
  ++static_cast<Fake*>(user)->prepared;
  return size[0] % 8 != 0 || size[1] % 8 != 0 || size[2] % 8 != 0;
}

int fake_run(void* user, const mrisr_tile* tile) {
  auto& fake = *static_cast<Fake*>(user);
  if (fake.runs++ == fake.fail_at) return 7;
  if (fake.reentered != nullptr) {
    mrisr_run_options options;
    mrisr_run_options_init(&options, sizeof options);
    fake.reentry = mrisr_run(fake.reentered, &options, nullptr);
  }
  const int64_t n = tile->size[0] * tile->size[1] * tile->size[2];
  float told = 0, guided = 0;
  for (int i = 0; i < 24; ++i) told += tile->vector[i] * static_cast<float>(i + 1);
  for (int64_t i = 0; i < 8 * (n / 512); ++i) guided += std::fabs(tile->guidance[i]);
  for (int64_t i = 0; i < n; ++i)
    tile->f[i] = fake.gain * (0.3f * std::sin(5 * tile->y[i]) + 0.1f * tile->x[i] + 1e-3f * told + guided);
  return 0;
}

// "Device" memory: the pointers that the library sees are off by a page, so that using them unasked would crash.
constexpr std::size_t kHidden = 4096;
void* fake_allocate(void*, std::size_t bytes) { return static_cast<char*>(std::malloc(bytes + 2 * kHidden)) + kHidden; }
void fake_deallocate(void*, void* p) { std::free(static_cast<char*>(p) - kHidden); }
int fake_copy_in(void* user, void* to, const void* from, std::size_t bytes, void* stream) {
  ++static_cast<Fake*>(user)->copies;
  std::memcpy(to, from, bytes);
  return stream != user;
}
int fake_copy_out(void* user, void* to, const void* from, std::size_t bytes, void* stream) {
  return fake_copy_in(user, to, from, bytes, stream);
}
int fake_wait(void*, void*) { return 0; }
const char* fake_error(void*) { return "as it was told to"; }

mrisr_engine_vtable engine_of(Fake& fake, bool device = false) {
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
Volume scan() {
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

mrisr_plan_options plan_options(const mrisr_engine_vtable& engine) {
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

mrisr_geometry geometry_of(const mrisr_job* job) {
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

Result run(mrisr_job* job, const Volume& input) {
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

const auto as_it_is = [](auto&) {};

void test_plan_errors(const Bench& bench) {
  using How = mrisr_plan_options;
  using Engine = mrisr_engine_vtable;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto argument = [&](const char* text, auto change) {
    bench.refuses(MRISR_ERROR_ARGUMENT, text, [&](How& how, Engine& engine) { change(how, engine); });
  };
  argument("options: struct_size is 0; call its _init function first", [](How& how, Engine&) { how.struct_size = 0; });
  argument("engine: struct_size is 0", [](How&, Engine& engine) { engine.struct_size = 0; });
  argument("shape: expected at least 2 voxels along every axis, found 36 x 1 x 28",
           [](How& how, Engine&) { how.shape[1] = 1; });
  argument("shape: expected at most 16384 voxels along axis 0", [](How& how, Engine&) { how.shape[0] = 20000; });
  argument("shape: expected at most 2^31 voxels",
           [](How& how, Engine&) { how.shape[0] = how.shape[1] = how.shape[2] = 2000; });
  argument("voxel_size: expected three positive numbers, found 0.7, -1, 0.7",
           [](How& how, Engine&) { how.voxel_size[0] = how.voxel_size[2] = 0.7, how.voxel_size[1] = -1; });
  argument("voxel_size: the output would have", [](How& how, Engine&) { how.voxel_size[1] = 1e-6; });
  argument("factor: expected three positive numbers, found 2, 0, 0", [](How& how, Engine&) { how.factor[0] = 2; });
  argument("psf_stated: expected 0 to 1, found 2", [](How& how, Engine&) { how.psf_stated = 2; });
  argument("psf[2].kind: expected a mrisr_psf_kind",
           [](How& how, Engine&) { how.psf_stated = 1, how.psf[2].kind = 9; });
  argument("psf[0].window: expected a mrisr_psf_window",
           [](How& how, Engine&) { how.psf_stated = 1, how.psf[0].window = -1; });
  argument("psf[1].width: expected mm above 0", [&](How& how, Engine&) { how.psf_stated = 1, how.psf[1].width = nan; });
  argument("mode: expected 0 to 2, found 3", [](How& how, Engine&) { how.mode = 3; });
  argument("mode: mean is one noiseless step, found steps=4",
           [](How& how, Engine&) { how.mode = MRISR_MODE_MEAN, how.steps = 4; });
  argument("steps: expected 1 to 1000, found 0", [](How& how, Engine&) { how.steps = 0; });
  argument("samples: expected 1 to 100000, found 0", [](How& how, Engine&) { how.samples = 0; });
  argument("consistency: expected 0 to 2, found 5", [](How& how, Engine&) { how.consistency = 5; });
  argument("threads: expected 0 to 1024, found -1", [](How& how, Engine&) { how.threads = -1; });
  argument("tile: expected 0, or at least 48 voxels",
           [](How& how, Engine&) { how.tile[0] = how.tile[1] = how.tile[2] = 40; });
  argument("tile: expected 0, or at least 48 voxels", [](How& how, Engine&) { how.tile[0] = 64; });
  argument("tile_fixed: expected 0 to 1, found 2", [](How& how, Engine&) { how.tile_fixed = 2; });
  argument("denoise: expected a number from 0 to 1, found 1.5", [](How& how, Engine&) { how.denoise = 1.5; });
  argument("denoise: expected a number from 0 to 1", [&](How& how, Engine&) { how.denoise = nan; });
  argument("tile_fixed: needs a tile", [](How& how, Engine&) { how.tile_fixed = 1; });
  argument("runtime: expected 0 to 3, found 4", [](How& how, Engine&) { how.runtime = 4; });
  argument("runtime: is of the library's own engines", [](How& how, Engine&) { how.runtime = MRISR_RUNTIME_ONNX_CPU; });
  argument("engine.run: is NULL", [](How&, Engine& engine) { engine.run = nullptr; });
  argument("engine.memory: expected a mrisr_memory_kind", [](How&, Engine& engine) { engine.memory = 2; });
  argument("engine.bytes_per_voxel: expected 0 to 1e9", [&](How&, Engine& engine) { engine.bytes_per_voxel = nan; });
  argument("device memory needs allocate", [](How&, Engine& engine) { engine.memory = MRISR_MEMORY_DEVICE; });
  const auto geometry = [&](const char* text, int entry, double value) {
    bench.refuses(MRISR_ERROR_GEOMETRY, text, [&](How& how, Engine&) { how.affine[entry] = value; });
  };
  geometry("affine: it has NaN or infinite entries", 3, nan);
  geometry("affine: the last row must be 0 0 0 1, found 0 0 0 2", 15, 2);
  geometry("mm has a zero; set the true voxel size", 5, 0);
  bench.refuses(MRISR_ERROR_GEOMETRY, "affine: it is not invertible",
                [](How& how, Engine&) { how.affine[4] = how.affine[1] = 1.4; });
  bench.refuses(MRISR_ERROR_MEMORY, "a budget of 1MB is too small for this job; the smallest that works is",
                [](How& how, Engine&) { how.memory = 1000000; });
  mrisr_job* job = nullptr;
  EXPECT(mrisr_plan(nullptr, nullptr, &job) == MRISR_ERROR_ARGUMENT);
  EXPECT_TEXT(mrisr_last_error(), "model: is NULL");
  EXPECT(mrisr_plan(bench.model, nullptr, &job) == MRISR_ERROR_ARGUMENT);
  EXPECT_TEXT(mrisr_last_error(), "options: is NULL");
  EXPECT(mrisr_plan(bench.model, nullptr, nullptr) == MRISR_ERROR_ARGUMENT);
  EXPECT_TEXT(mrisr_last_error(), "job: is NULL");
  if (mrisr_builtin_engine() == nullptr)
    bench.refuses(MRISR_ERROR_ENGINE, "built without OpenVINO; give mrisr_plan_options.engine",
                  [](How& how, Engine&) { how.engine = nullptr; });
}

void test_run_errors(const Bench& bench) {
  Fake fake;
  const mrisr_engine_vtable engine = engine_of(fake);
  mrisr_job* job = bench.plan(plan_options(engine));
  const Volume input = scan();
  const auto refused = [&](mrisr_status status, const char* text, auto change) {
    const Result result = run(job, input, change);
    EXPECT(result.status == status);
    EXPECT_TEXT(result.text, text);
  };
  using Options = mrisr_run_options;
  const std::vector<char> block(1 << 20);
  void* const memory = const_cast<char*>(block.data());
  Volume broken = input, flat(input.size(), 3.0f);
  broken[5] = NAN, broken[6] = INFINITY;
  refused(MRISR_ERROR_ARGUMENT, "options: struct_size is 0", [](Options& o, auto&) { o.struct_size = 0; });
  refused(MRISR_ERROR_ARGUMENT, "input: is NULL", [](Options& o, auto&) { o.input = nullptr; });
  refused(MRISR_ERROR_ARGUMENT, "output: is NULL, and so is output_int16",
          [](Options& o, auto&) { o.output = nullptr; });
  refused(MRISR_ERROR_ARGUMENT, "output_int16_scale: expected 0 or more, found -2",
          [](Options& o, auto&) { o.output_int16_scale = -2; });
  refused(MRISR_ERROR_ARGUMENT, "output_int16_scale: expected 0 or more, found nan",
          [](Options& o, auto&) { o.output_int16_scale = NAN; });
  refused(MRISR_ERROR_ARGUMENT, "output and output_int16: must not overlap",
          [](Options& o, Result& r) { o.output_int16 = reinterpret_cast<int16_t*>(r.out.data()) + 1; });
  refused(MRISR_ERROR_ARGUMENT, "input and output: must not overlap",
          [](Options& o, Result& r) { o.input = r.out.data() + 7; });
  refused(MRISR_ERROR_ARGUMENT, "input_element: expected a mrisr_element",
          [](Options& o, auto&) { o.input_element = 4; });
  refused(MRISR_ERROR_ARGUMENT, "input_stride: expected three strides",
          [](Options& o, auto&) { o.input_stride[0] = 1; });
  refused(MRISR_ERROR_ARGUMENT, "output_stride: expected three strides",
          [](Options& o, auto&) { o.output_stride[1] = 1; });
  refused(MRISR_ERROR_ARGUMENT, "spread: one sample has none", [](Options& o, Result& r) { o.spread = r.out.data(); });
  refused(MRISR_ERROR_MEMORY, "workspace: 100 bytes, this job needs",
          [&](Options& o, auto&) { o.workspace = memory, o.workspace_size = 100; });
  refused(MRISR_ERROR_ARGUMENT, "workspace: must be aligned to 64 bytes", [&](Options& o, auto&) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    o.workspace = reinterpret_cast<void*>((address + 63) / 64 * 64 + 8), o.workspace_size = std::uint64_t{1} << 40;
  });
  refused(MRISR_ERROR_INPUT, "input: 2 NaN or infinite voxels of 40320",
          [&](Options& o, auto&) { o.input = broken.data(); });
  refused(MRISR_ERROR_INPUT, "input: the volume is constant (every voxel 3)",
          [&](Options& o, auto&) { o.input = flat.data(); });
  fake.fail_at = fake.runs;
  refused(MRISR_ERROR_ENGINE, "fake: run returned 7: as it was told to", [](auto&, auto&) {});
  EXPECT(mrisr_run(nullptr, nullptr, nullptr) == MRISR_ERROR_ARGUMENT);
  EXPECT(mrisr_run(job, nullptr, nullptr) == MRISR_ERROR_ARGUMENT);
  fake.reentered = job;
  EXPECT(run(job, input).status == MRISR_OK);  // after all of that
  EXPECT(fake.reentry == MRISR_ERROR_ARGUMENT);
  EXPECT_TEXT(mrisr_last_error(), "a job is for one thread at a time");
  mrisr_job_close(job);
}

void test_silent_network_is_interpolation(const Bench& bench) {
  Fake fake;
  fake.gain = 0;
  const Volume input = scan();
  const Result same = bench.once(fake, [](auto& how) { how.factor[0] = how.factor[1] = how.factor[2] = 1; });
  float worst = 0;
  for (std::size_t i = 0; i < input.size(); ++i) worst = std::max(worst, std::fabs(same.out[i] - input[i]));
  EXPECT(same.out.size() == input.size() && worst < 1e-3f);
  EXPECT(same.geometry.affine[0] == 1.4 && same.geometry.affine[3] == 0);
}

void test_same_bytes(const Bench& bench) {
  for (const int64_t tile : {int64_t{0}, int64_t{48}}) {
    for (const bool sample : {false, true}) {
      Fake fake, device;
      const auto how = [&](int threads) {
        return [=](mrisr_plan_options& o) {
          o.threads = threads;
          o.tile[0] = o.tile[1] = o.tile[2] = tile;
          o.steps = sample ? 3 : 1;
          o.psf_stated = 1;
          for (auto& psf : o.psf) psf.kind = MRISR_PSF_KSPACE;
        };
      };
      const Result one = bench.once(fake, how(1)), again = bench.once(fake, how(1)), three = bench.once(fake, how(3));
      EXPECT(one.out == again.out);
      EXPECT(one.out == three.out);  // the library's own loops do not depend on the thread count
      EXPECT(one.out == bench.once(device, how(2), true).out);
      EXPECT(device.copies > 0 && device.prepared == 1 && fake.prepared == 3);
      EXPECT((one.info.tiles_run > 1) == (tile != 0));
      for (float v : one.out) EXPECT(std::isfinite(v));
    }
  }
}

void test_seeds(const Bench& bench) {
  Fake fake;
  const mrisr_engine_vtable engine = engine_of(fake);
  mrisr_plan_options how = plan_options(engine);
  how.samples = 3;
  mrisr_job* job = bench.plan(how);
  const Volume input = scan();
  const auto seeded = [&](std::uint64_t seed) {
    return run(job, input, [&](mrisr_run_options& o, Result& r) {
      r.spread.assign(r.out.size(), NAN);
      o.spread = r.spread.data();
      o.seed = seed;
    });
  };
  const Result a = seeded(1), b = seeded(1), c = seeded(~std::uint64_t{0});
  EXPECT(a.out == b.out && a.spread == b.spread && a.out != c.out);
  bool some = false;
  for (float v : a.spread) {
    EXPECT(v >= 0);
    some = some || v > 0;
  }
  EXPECT(some);
  mrisr_job_close(job);
}

void test_elements_and_strides(const Bench& bench) {
  Fake fake;
  const mrisr_engine_vtable engine = engine_of(fake);
  mrisr_job* job = bench.plan(plan_options(engine));
  const Volume input = scan();
  const Result plain = run(job, input);
  std::vector<std::int16_t> whole(input.begin(), input.end());
  const Result narrow =
      run(job, input, [&](mrisr_run_options& o, Result&) { o.input = whole.data(), o.input_element = MRISR_INT16; });
  EXPECT(plain.out == narrow.out);
  Volume turned(input.size());  // first axis fastest
  for (int64_t i = 0; i < kShape[0]; ++i)
    for (int64_t j = 0; j < kShape[1]; ++j)
      for (int64_t k = 0; k < kShape[2]; ++k)
        turned[(k * kShape[1] + j) * kShape[0] + i] = input[(i * kShape[1] + j) * kShape[2] + k];
  const Result strided = run(job, input, [&](mrisr_run_options& o, Result& r) {
    const int64_t* n = r.geometry.shape;
    o.input = turned.data();
    o.input_stride[0] = 1, o.input_stride[1] = kShape[0], o.input_stride[2] = kShape[0] * kShape[1];
    o.output_stride[0] = 1, o.output_stride[1] = n[0], o.output_stride[2] = n[0] * n[1];
  });
  const int64_t* n = plain.geometry.shape;
  bool same = strided.status == MRISR_OK;
  for (int64_t i = 0; i < n[0]; ++i)
    for (int64_t j = 0; j < n[1]; ++j)
      for (int64_t k = 0; k < n[2]; ++k)
        same = same && strided.out[(k * n[1] + j) * n[0] + i] == plain.out[(i * n[1] + j) * n[2] + k];
  EXPECT(same);
  mrisr_job_close(job);
}

// Every array lies in the workspace, is written before it is read, and nothing is allocated beside it.
void test_workspace(const Bench& bench) {
  for (const int threads : {1, 3}) {
    Fake fake;
    const mrisr_engine_vtable engine = engine_of(fake);
    mrisr_plan_options how = plan_options(engine);
    how.threads = threads;
    how.samples = 2, how.steps = 2;
    how.psf_stated = 1;
    for (auto& psf : how.psf) psf.kind = MRISR_PSF_KSPACE, psf.window = MRISR_WINDOW_HANN;
    for (int64_t& t : how.tile) t = 48;
    mrisr_job* job = bench.plan(how);
    const auto bytes = static_cast<std::size_t>(geometry_of(job).workspace_bytes);
    constexpr std::size_t guard = 256;
    std::vector<unsigned char> memory(bytes + 2 * guard);
    unsigned char* const block = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64);
    const Volume input = scan();
    const auto filled = [&](unsigned char fill) {
      std::memset(memory.data(), fill, memory.size());
      long before = 0;
      Result result = run(job, input, [&](mrisr_run_options& o, Result&) {
        o.workspace = block, o.workspace_size = bytes;
        before = allocations.load();
      });
      EXPECT(allocations.load() - before == (result.text.empty() ? 0 : 1));
      EXPECT(result.status == MRISR_OK && result.info.corrected == 1);
      for (std::size_t i = 0; i < guard / 2; ++i) EXPECT(block[bytes + i] == fill);
      return result;
    };
    const Result zeros = filled(0), nans = filled(0xff);
    EXPECT(zeros.out == nans.out);
    EXPECT(zeros.out == run(job, input).out);
    mrisr_job_close(job);
  }
}

void test_cancel(const Bench& bench) {
  Fake fake;
  const mrisr_engine_vtable engine = engine_of(fake);
  mrisr_plan_options how = plan_options(engine);
  for (int64_t& t : how.tile) t = 48;
  mrisr_job* job = bench.plan(how);
  const Volume input = scan();
  struct Stop {
    const Fake& fake;
    int after;
    double last = 0;
  } stop{fake, 2};
  const mrisr_progress_callback ask = [](void* user, double fraction) -> int {
    auto& s = *static_cast<Stop*>(user);
    EXPECT(fraction >= s.last && fraction <= 1);
    s.last = fraction;
    return s.fake.runs >= s.after;
  };
  const auto watched = [&] {
    fake.runs = 0;
    stop.last = 0;
    return run(job, input, [&](mrisr_run_options& o, Result&) { o.progress = ask, o.progress_user = &stop; });
  };
  for (const int after : {0, 1, 2}) {
    stop.after = after;
    const Result stopped = watched();
    EXPECT(stopped.status == MRISR_ERROR_CANCELLED && fake.runs == after);
    EXPECT_TEXT(stopped.text, "cancelled by the caller");
  }
  stop.after = 1000000;
  const Result whole = watched();
  EXPECT(whole.status == MRISR_OK && stop.last == 1 && fake.runs == whole.info.tiles_run && fake.runs > 2);
  mrisr_job_close(job);
}

void test_two_threads(const Bench& bench) {
  const Volume input = scan();
  Fake fakes[2];
  Result results[2];
  const auto work = [&](int i) {
    const mrisr_engine_vtable engine = engine_of(fakes[i]);
    mrisr_plan_options how = plan_options(engine);
    how.threads = 2;
    how.voxel_size[0] = i == 0 ? 0.7 : 0.8;
    mrisr_job* job = bench.plan(how);
    for (int k = 0; k < 2; ++k) results[i] = run(job, input);
    how.steps = 0;
    mrisr_job* none = nullptr;
    if (i == 0) EXPECT(mrisr_plan(bench.model, &how, &none) == MRISR_ERROR_ARGUMENT);
    EXPECT(i == 0 || std::string(mrisr_last_error()).empty());  // of the other thread
    mrisr_job_close(job);
  };
  std::thread other([&] { work(1); });
  std::thread one([&] { work(0); });
  one.join();
  other.join();
  Fake alone;
  EXPECT(results[0].out == bench.once(alone, [](auto& how) { how.voxel_size[0] = 0.7; }).out);
  EXPECT(results[1].out == bench.once(alone, [](auto& how) { how.voxel_size[0] = 0.8; }).out);
}

void test_budget(const Bench& bench) {
  Fake fake;
  const auto costly = [](std::uint64_t budget) {
    return [=](mrisr_plan_options& how) {
      auto& engine = const_cast<mrisr_engine_vtable&>(*how.engine);
      engine.bytes_per_voxel = 5000;
      how.memory = budget;
    };
  };
  const Result large = bench.once(fake, costly(std::uint64_t{1} << 40));
  EXPECT(large.info.tiles == 1);
  const std::uint64_t less = large.geometry.expected_bytes * 2 / 3;
  const Result small = bench.once(fake, costly(less));
  EXPECT(small.info.tiles > 1 && small.geometry.expected_bytes <= less && small.geometry.budget_bytes == less);
  EXPECT(small.geometry.largest_tile_voxels >= small.info.tile[0] * small.info.tile[1] * small.info.tile[2]);
}

// A program compiled against a header whose structures ended earlier.
void test_older_structures(const Bench& bench) {
  Fake fake;
  const Result now = bench.once(fake, as_it_is);
  const mrisr_engine_vtable engine = engine_of(fake);
  struct {
    mrisr_run_options options;
    char beyond[64];
  } old;
  std::memset(&old, 0x5a, sizeof old);
  const std::size_t size = offsetof(mrisr_run_options, spread);
  mrisr_run_options_init(&old.options, size);
  EXPECT(old.options.struct_size == size && reinterpret_cast<char*>(&old)[size] == 0x5a);
  mrisr_job* job = bench.plan(plan_options(engine));
  Volume out(now.out.size());
  const Volume input = scan();
  old.options.input = input.data();
  old.options.output = out.data();
  EXPECT(mrisr_run(job, &old.options, nullptr) == MRISR_OK);
  EXPECT(out == now.out);
  mrisr_job_close(job);
}

// The result as whole numbers is the float result divided by the scale, rounded, and what does not fit is counted.
void test_whole_numbers(const Bench& bench) {
  Fake fake;
  const mrisr_engine_vtable engine = engine_of(fake);
  mrisr_job* job = bench.plan(plan_options(engine));
  const Volume input = scan();
  const std::vector<int16_t> shorts(input.begin(), input.end());
  const auto wanted = [&](double scale, bool whole_input, bool alone) {
    std::vector<int16_t> found;
    Result result = run(job, input, [&](mrisr_run_options& o, Result& r) {
      found.assign(r.out.size(), 12345);
      o.output_int16 = found.data(), o.output_int16_scale = scale;
      if (whole_input) o.input = shorts.data(), o.input_element = MRISR_INT16;
      if (alone) o.output = nullptr;
    });
    EXPECT(result.status == MRISR_OK);
    return std::make_pair(result, found);
  };
  const Volume plain = run(job, input).out;
  const auto agrees = [&](const std::pair<Result, std::vector<int16_t>>& got, double scale, std::int64_t clipped) {
    EXPECT(got.first.info.output_int16_scale == scale && got.first.info.output_int16_clipped == clipped);
    std::int64_t differing = 0;
    for (std::size_t i = 0; i < plain.size(); ++i) {
      const double whole = std::max(-32768.0, std::min(32767.0, std::nearbyint(plain[i] / scale)));
      differing += got.second[i] != static_cast<int16_t>(whole);
    }
    EXPECT(differing == 0);
  };
  double largest = 0;
  std::int64_t beyond = 0;
  for (const float v : plain) {
    largest = std::max(largest, std::fabs(static_cast<double>(v)));
    beyond += std::nearbyint(v / 0.01) > 32767;
  }
  EXPECT(beyond > 0);
  agrees(wanted(0, false, false), largest / 32767, 0);
  agrees(wanted(0, true, true), 1, 0);
  agrees(wanted(2.5, false, true), 2.5, 0);
  agrees(wanted(0.01, false, false), 0.01, beyond);
  EXPECT(wanted(0, false, false).first.out == plain);
  mrisr_job_close(job);
}

// One size of tile whatever comes, inside the volume as far as it can be; nothing else is prepared.
void test_fixed_tile(const Bench& bench) {
  struct Seen {
    Fake fake;
    std::vector<std::vector<int64_t>> sizes;
  } seen;
  const auto fixed = [&](mrisr_plan_options& how) {
    auto& engine = const_cast<mrisr_engine_vtable&>(*how.engine);
    engine.prepare = [](void* user, const int64_t* size) {
      auto& s = *reinterpret_cast<Seen*>(user);
      s.sizes.push_back({size, size + 3});
      return 0;
    };
    how.tile[0] = how.tile[1] = how.tile[2] = 64;
    how.tile_fixed = 1;
  };
  const Result all = bench.once(seen.fake, fixed);
  EXPECT(all.info.tile[0] == 64 && all.info.tile[1] == 64 && all.info.tile[2] == 64);
  const Result coarse = bench.once(seen.fake, [&](auto& how) {
    fixed(how);
    how.voxel_size[0] = how.voxel_size[1] = how.voxel_size[2] = 1.2;  // smaller than a tile along every axis
  });
  EXPECT(coarse.info.tiles == 1 && coarse.info.box_start[0] == 0 && coarse.info.box_stop[0] == 64);
  for (const float v : coarse.out) EXPECT(std::isfinite(v));
  for (const auto& size : seen.sizes) EXPECT(size == std::vector<int64_t>({64, 64, 64}));
  EXPECT(seen.sizes.size() == 2);  // one per job
  // Where the scan is larger than a tile it is the tiling that is there without it.
  const auto plain = [](auto& how) {
    how.voxel_size[0] = how.voxel_size[1] = how.voxel_size[2] = 0.5;
    how.tile[0] = how.tile[1] = how.tile[2] = 48;
  };
  Fake fake;
  const Result tiled = bench.once(fake, plain),
               again = bench.once(fake, [&](auto& how) { plain(how), how.tile_fixed = 1; });
  EXPECT(tiled.info.tile[2] == 48 && tiled.out == again.out);
  bench.refuses(MRISR_ERROR_MEMORY, "fixed tile", [](mrisr_plan_options& how, mrisr_engine_vtable& engine) {
    how.tile[0] = how.tile[1] = how.tile[2] = 512, how.tile_fixed = 1;
    how.memory = 2000000000;
    engine.bytes_per_voxel = 100;
  });
}

void test_open_errors(const Bench& bench) {
  mrisr_model* model = nullptr;
  EXPECT(mrisr_open(nullptr, nullptr, &model) == MRISR_ERROR_ARGUMENT);
  EXPECT(mrisr_open("x", nullptr, nullptr) == MRISR_ERROR_ARGUMENT);
  EXPECT(mrisr_open(bench.files.folder.c_str(), nullptr, &model) == MRISR_OK);
  mrisr_model_info info;
  mrisr_model_info_init(&info, sizeof info);
  EXPECT(mrisr_model_describe(model, &info) == MRISR_OK && std::string(info.name) == "base" && info.multiple == 8);
  EXPECT(std::strlen(info.sha256) == 64);
  mrisr_close(model);
  bench.files.change("\"format_version\": 2", "\"format_version\": 7");
  EXPECT(mrisr_open(bench.files.folder.c_str(), nullptr, &model) == MRISR_ERROR_MODEL && model == nullptr);
  EXPECT_TEXT(mrisr_last_error(), "format version 7, and this library reads up to 2");
  bench.files.restore();
}

// A bundle whose weights never learnt to take noise out.
void test_denoise_unlearnt(const Bench& bench) {
  bench.files.change("\"denoise\": true", "\"denoise\": false");
  mrisr_model* model = nullptr;
  mrisr_job* job = nullptr;
  EXPECT(mrisr_open(bench.files.folder.c_str(), nullptr, &model) == MRISR_OK);
  Fake fake;
  const mrisr_engine_vtable engine = engine_of(fake);
  mrisr_plan_options how = plan_options(engine);
  how.denoise = 0.5;
  EXPECT(mrisr_plan(model, &how, &job) == MRISR_ERROR_ARGUMENT && job == nullptr);
  EXPECT_TEXT(mrisr_last_error(), "has not learnt to remove noise");
  mrisr_close(model);
  bench.files.restore();
}

void test_log(const Bench& bench) {
  std::string said;
  mrisr_open_options options;
  mrisr_open_options_init(&options, sizeof options);
  options.log_user = &said;
  options.log = [](void* user, int32_t level, const char* text) {
    *static_cast<std::string*>(user) +=
        (level == MRISR_LOG_WARNING ? "warning: " : "info: ") + std::string(text) + "\n";
  };
  mrisr_model* model = nullptr;
  EXPECT(mrisr_open(bench.files.folder.c_str(), &options, &model) == MRISR_OK);
  Fake fake;
  const mrisr_engine_vtable engine = engine_of(fake);
  mrisr_plan_options how = plan_options(engine);
  how.voxel_size[0] = 3, how.voxel_size[2] = 0.2;
  mrisr_job* job = nullptr;
  EXPECT(mrisr_plan(model, &how, &job) == MRISR_OK);
  EXPECT_TEXT(said,
              "info: plan: 36 x 40 x 28 voxels of 1.4 x 1.4 x 1.4 mm to 17 x 80 x 196 voxels of 3 x 0.7 x 0.2 mm; "
              "engine fake, made in");
  EXPECT_TEXT(said, "warning: axis 0: the input (1.4 mm) is already finer than the target (3 mm)");
  EXPECT_TEXT(said, "axis 2: 1.4 mm acquired to 0.2 mm is 7x finer, and base was trained on 1x to 4x");
  mrisr_close(model);  // the job keeps what it needs
  EXPECT(run(job, scan()).status == MRISR_OK);
  EXPECT_TEXT(said, "info: engine: fake compiled for tiles of ");
  said.clear();
  EXPECT(run(job, scan()).status == MRISR_OK);
  EXPECT(said.empty());  // the second volume of a size compiles nothing
  mrisr_job_close(job);
}

}  // namespace

int main() {
  const Bench bench;
  test_open_errors(bench);
  test_denoise_unlearnt(bench);
  test_plan_errors(bench);
  test_run_errors(bench);
  test_silent_network_is_interpolation(bench);
  test_same_bytes(bench);
  test_seeds(bench);
  test_elements_and_strides(bench);
  test_workspace(bench);
  test_cancel(bench);
  test_two_threads(bench);
  test_budget(bench);
  test_older_structures(bench);
  test_log(bench);
  test_whole_numbers(bench);
  test_fixed_tile(bench);
  return check::result("pipeline");
}
