// How a job of libmrisr behaves: what memory it takes, that it can be stopped, that two run at once, what it says.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <thread>

#include "bench.h"

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

// Every array lies in the workspace, is written before it is read, and nothing is allocated beside it.
void test_workspace(const Bench& bench, bool filters) {
  for (const int threads : {1, 3}) {
    const Job job(bench, [&](mrisr_plan_options& how) {
      how.threads = threads;
      if (filters)
        how.denoise = 1;
      else
        how.samples = 2, how.steps = 2;
      state_kspace(how, MRISR_WINDOW_HANN);
      set_all(how.tile, 48);
    });
    const auto bytes = static_cast<std::size_t>(geometry_of(job.job).workspace_bytes);
    constexpr std::size_t guard = 256;
    std::vector<unsigned char> memory(bytes + 2 * guard);
    unsigned char* const block = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64);
    const auto filled = [&](unsigned char fill) {
      std::memset(memory.data(), fill, memory.size());
      long before = 0;
      const Result result = job.run([&](mrisr_run_options& o, Result&) {
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
    EXPECT(zeros.out == job.run().out);
  }
}

void test_cancel(const Bench& bench) {
  Job job(bench, [](mrisr_plan_options& how) { set_all(how.tile, 48); });
  Fake& fake = job.fake;
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
    return job.run([&](mrisr_run_options& o, Result&) { o.progress = ask, o.progress_user = &stop; });
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
}

void test_two_threads(const Bench& bench) {
  Result results[2];
  const auto work = [&](int i) {
    const Job job(bench, [&](mrisr_plan_options& how) {
      how.threads = 2;
      how.voxel_size[0] = i == 0 ? 0.7 : 0.8;
    });
    for (int k = 0; k < 2; ++k) results[i] = job.run();
    if (i == 0) bench.refuses(MRISR_ERROR_ARGUMENT, "steps: ", [](auto& how, auto&) { how.steps = 0; });
    EXPECT(i == 0 || std::string(mrisr_last_error()).empty());  // of the other thread
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
  struct {
    mrisr_run_options options;
    char beyond[64];
  } old;
  std::memset(&old, 0x5a, sizeof old);
  const std::size_t size = offsetof(mrisr_run_options, spread);
  mrisr_run_options_init(&old.options, size);
  EXPECT(old.options.struct_size == size && reinterpret_cast<char*>(&old)[size] == 0x5a);
  const Job job(bench);
  Volume out(now.out.size());
  old.options.input = job.input.data();
  old.options.output = out.data();
  EXPECT(mrisr_run(job.job, &old.options, nullptr) == MRISR_OK);
  EXPECT(out == now.out);
}

void test_log(const Bench& bench) {
  std::string text;
  mrisr_open_options options;
  mrisr_open_options_init(&options, sizeof options);
  options.log_user = &text;
  options.log = [](void* user, int32_t level, const char* line) {
    *static_cast<std::string*>(user) +=
        (level == MRISR_LOG_WARNING ? "warning: " : "info: ") + std::string(line) + "\n";
  };
  mrisr_model* model = nullptr;
  EXPECT(mrisr_open(bench.files.folder.c_str(), &options, &model) == MRISR_OK);
  Fake fake;
  const mrisr_engine_vtable engine = engine_of(fake);
  mrisr_plan_options how = plan_options(engine);
  how.voxel_size[0] = 3, how.voxel_size[2] = 0.2;
  mrisr_job* job = nullptr;
  EXPECT(mrisr_plan(model, &how, &job) == MRISR_OK);
  EXPECT_TEXT(text,
              "info: plan: 36 x 40 x 28 voxels of 1.4 x 1.4 x 1.4 mm to 17 x 80 x 196 voxels of 3 x 0.7 x 0.2 mm; "
              "engine fake, made in");
  EXPECT_TEXT(text, "warning: axis 0: the input (1.4 mm) is already finer than the target (3 mm)");
  EXPECT_TEXT(text, "axis 2: 1.4 mm acquired to 0.2 mm is 7x finer, and base was trained on 1x to 4x");
  mrisr_close(model);  // the job keeps what it needs
  EXPECT(run(job, scan()).status == MRISR_OK);
  EXPECT_TEXT(text, "info: engine: fake compiled for tiles of ");
  text.clear();
  EXPECT(run(job, scan()).status == MRISR_OK);
  EXPECT(text.empty());  // the second volume of a size compiles nothing
  mrisr_job_close(job);
}

}  // namespace

int main() {
  const Bench bench;
  test_workspace(bench, false);
  test_workspace(bench, true);
  test_cancel(bench);
  test_two_threads(bench);
  test_budget(bench);
  test_older_structures(bench);
  test_log(bench);
  return check::result("jobs");
}
