// What libmrisr refuses, in words, and that nothing is left half done.
#include <cstdint>
#include <limits>

#include "bench.h"

namespace {

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
  how.mode = MRISR_MODE_SAMPLE;
  EXPECT(mrisr_plan(model, &how, &job) == MRISR_ERROR_ARGUMENT && job == nullptr);
  EXPECT_TEXT(mrisr_last_error(), "has not learnt to remove noise");
  mrisr_close(model);
  bench.files.restore();
}

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
  argument("shape: expected at most 2^31 voxels", [](How& how, Engine&) { set_all(how.shape, 2000); });
  argument("voxel_size: expected three positive numbers, found 0.7, -1, 0.7",
           [](How& how, Engine&) { set_all(how.voxel_size, 0.7), how.voxel_size[1] = -1; });
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
  argument("tile: expected 0, or at least 48 voxels", [](How& how, Engine&) { set_all(how.tile, 40); });
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
  Job job(bench);
  const auto refused = [&](mrisr_status status, const char* text, auto change) {
    const Result result = job.run(change);
    EXPECT(result.status == status);
    EXPECT_TEXT(result.text, text);
  };
  const auto argument = [&](const char* text, auto change) { refused(MRISR_ERROR_ARGUMENT, text, change); };
  using Options = mrisr_run_options;
  const std::vector<char> block(1 << 20);
  void* const memory = const_cast<char*>(block.data());
  Volume broken = job.input, flat(job.input.size(), 3.0f);
  broken[5] = NAN, broken[6] = INFINITY;
  argument("options: struct_size is 0", [](Options& o, auto&) { o.struct_size = 0; });
  argument("input: is NULL", [](Options& o, auto&) { o.input = nullptr; });
  argument("output: is NULL, and so is output_int16", [](Options& o, auto&) { o.output = nullptr; });
  argument("output_int16_scale: expected 0 or more, found -2", [](Options& o, auto&) { o.output_int16_scale = -2; });
  argument("output_int16_scale: expected 0 or more, found nan", [](Options& o, auto&) { o.output_int16_scale = NAN; });
  argument("output and output_int16: must not overlap",
           [](Options& o, Result& r) { o.output_int16 = reinterpret_cast<int16_t*>(r.out.data()) + 1; });
  argument("input and output: must not overlap", [](Options& o, Result& r) { o.input = r.out.data() + 7; });
  argument("input_element: expected a mrisr_element", [](Options& o, auto&) { o.input_element = 4; });
  argument("input_stride: expected three strides", [](Options& o, auto&) { o.input_stride[0] = 1; });
  argument("output_stride: expected three strides", [](Options& o, auto&) { o.output_stride[1] = 1; });
  argument("spread: one sample has none", [](Options& o, Result& r) { o.spread = r.out.data(); });
  refused(MRISR_ERROR_MEMORY, "workspace: 100 bytes, this job needs",
          [&](Options& o, auto&) { o.workspace = memory, o.workspace_size = 100; });
  argument("workspace: must be aligned to 64 bytes", [&](Options& o, auto&) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    o.workspace = reinterpret_cast<void*>((address + 63) / 64 * 64 + 8), o.workspace_size = std::uint64_t{1} << 40;
  });
  refused(MRISR_ERROR_INPUT, "input: 2 NaN or infinite voxels of 40320",
          [&](Options& o, auto&) { o.input = broken.data(); });
  refused(MRISR_ERROR_INPUT, "input: the volume is constant (every voxel 3)",
          [&](Options& o, auto&) { o.input = flat.data(); });
  job.fake.fail_at = job.fake.runs;
  refused(MRISR_ERROR_ENGINE, "fake: run returned 7: as it was told to", [](auto&, auto&) {});
  EXPECT(mrisr_run(nullptr, nullptr, nullptr) == MRISR_ERROR_ARGUMENT);
  EXPECT(mrisr_run(job.job, nullptr, nullptr) == MRISR_ERROR_ARGUMENT);
  job.fake.reentered = job.job;
  EXPECT(job.run().status == MRISR_OK);  // after all of that
  EXPECT(job.fake.reentry == MRISR_ERROR_ARGUMENT);
  EXPECT_TEXT(mrisr_last_error(), "a job is for one thread at a time");
}

}  // namespace

int main() {
  const Bench bench;
  test_open_errors(bench);
  test_denoise_unlearnt(bench);
  test_plan_errors(bench);
  test_run_errors(bench);
  return check::result("refusals");
}
