// Every allocation of libmrisr fails once, one after the other, and then all from one on: each time the caller gets
// MRISR_ERROR_MEMORY and a text (or the call manages without), and nothing is left behind.
//
// What goes through operator new is reached; the C library's own memory (realpath, fopen, thread stacks) is not.
#include <mrisr.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "bundle_files.h"
#include "check.h"

namespace {

std::atomic<long> made{0}, live{0}, refused{0};
std::atomic<long> fail_from{-1};  // number of the allocation that fails; -1: none
std::atomic<bool> stay_failed{false};

void* provide(std::size_t bytes, std::size_t align) noexcept {
  const long number = made++, from = fail_from;
  if (from >= 0 && (stay_failed ? number >= from : number == from)) {
    ++refused;
    return nullptr;
  }
  if (bytes == 0) bytes = 1;
  void* p = align == 0 ? std::malloc(bytes) : std::aligned_alloc(align, (bytes + align - 1) / align * align);
  if (p != nullptr) ++live;
  return p;
}

void give_back(void* p) noexcept {
  if (p == nullptr) return;
  --live;
  std::free(p);
}

void* or_throw(void* p) {
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

}  // namespace

void* operator new(std::size_t n) { return or_throw(provide(n, 0)); }
void* operator new[](std::size_t n) { return or_throw(provide(n, 0)); }
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return provide(n, 0); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept { return provide(n, 0); }
void* operator new(std::size_t n, std::align_val_t a) { return or_throw(provide(n, static_cast<std::size_t>(a))); }
void* operator new[](std::size_t n, std::align_val_t a) { return or_throw(provide(n, static_cast<std::size_t>(a))); }
void* operator new(std::size_t n, std::align_val_t a, const std::nothrow_t&) noexcept {
  return provide(n, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { give_back(p); }
void operator delete[](void* p) noexcept { give_back(p); }
void operator delete(void* p, std::size_t) noexcept { give_back(p); }
void operator delete[](void* p, std::size_t) noexcept { give_back(p); }
void operator delete(void* p, std::align_val_t) noexcept { give_back(p); }
void operator delete[](void* p, std::align_val_t) noexcept { give_back(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { give_back(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { give_back(p); }

namespace {

int engine_run(void*, const mrisr_tile* tile) {
  const int64_t n = tile->size[0] * tile->size[1] * tile->size[2];
  for (int64_t i = 0; i < n; ++i) tile->f[i] = 0.3f * tile->y[i] - 0.1f * tile->x[i];
  return 0;
}

const int64_t kShape[3] = {14, 12, 10};
std::vector<float> scan, output, spread;

mrisr_status open_and_close(const std::string& folder) {
  mrisr_model* model = nullptr;
  const mrisr_status status = mrisr_open(folder.c_str(), nullptr, &model);
  if (status != MRISR_OK && model != nullptr) check::fail(__FILE__, __LINE__, "a model in spite of an error");
  mrisr_close(model);
  return status;
}

// Everything that a job can do: slices, several steps and samples, tiles, consistency, two threads.
mrisr_status plan_and_run(mrisr_model* model) {
  mrisr_engine_vtable engine;
  mrisr_engine_vtable_init(&engine, sizeof engine);
  engine.run = engine_run;
  mrisr_plan_options how;
  mrisr_plan_options_init(&how, sizeof how);
  for (int d = 0; d < 3; ++d) {
    how.shape[d] = kShape[d];
    how.tile[d] = 48;
    how.psf[d] = {d == 2 ? MRISR_PSF_GAUSSIAN : MRISR_PSF_KSPACE, MRISR_WINDOW_BOX, 0};
    how.voxel_size[d] = 0.2;
  }
  how.psf_stated = 1;
  how.steps = how.samples = how.threads = 2;
  how.consistency = MRISR_CONSISTENCY_ON;
  how.engine = &engine;
  mrisr_job* job = nullptr;
  mrisr_status status = mrisr_plan(model, &how, &job);
  if (status == MRISR_OK) {
    mrisr_geometry geometry;
    mrisr_geometry_init(&geometry, sizeof geometry);
    status = mrisr_job_geometry(job, &geometry);
    const std::size_t n = static_cast<std::size_t>(geometry.shape[0] * geometry.shape[1] * geometry.shape[2]);
    if (output.empty()) {  // in the first run, which no failure disturbs
      output.resize(n);
      spread.resize(n);
    }
    mrisr_run_options run;
    mrisr_run_options_init(&run, sizeof run);
    run.input = scan.data();
    run.output = output.data();
    run.spread = spread.data();
    if (status == MRISR_OK) status = mrisr_run(job, &run, nullptr);
  } else if (job != nullptr) {
    check::fail(__FILE__, __LINE__, "a job in spite of an error");
  }
  mrisr_job_close(job);
  return status;
}

// Returns how many allocations the call makes.
template <class Call>
long fail_each(const char* name, Call&& call) {
  if (call() != MRISR_OK) {
    check::fail(__FILE__, __LINE__, std::string(name) + ": " + mrisr_last_error());
    return 0;
  }
  const long before = made;
  call();
  const long count = made - before;
  for (const bool stays : {false, true}) {
    for (long n = 0; n < count; ++n) {
      const long held = live, hit = refused;
      stay_failed = stays;
      fail_from = made + n;
      const mrisr_status status = call();
      const long left = live - held;
      fail_from = -1;
      const std::string where =
          std::string(name) + ", allocation " + std::to_string(n) + (stays ? " and all later" : "");
      if (status != MRISR_OK && status != MRISR_ERROR_MEMORY)
        check::fail(__FILE__, __LINE__, where + ": " + mrisr_status_name(status) + ": " + mrisr_last_error());
      if (status == MRISR_ERROR_MEMORY && std::string(mrisr_last_error()).find("memory") == std::string::npos)
        check::fail(__FILE__, __LINE__, where + ": says '" + mrisr_last_error() + "'");
      if (status == MRISR_OK && stays && refused > hit)
        check::fail(__FILE__, __LINE__, where + ": OK although nothing could be allocated");
      if (left != 0) check::fail(__FILE__, __LINE__, where + ": " + std::to_string(left) + " blocks left");
      if (check::failures > 20) return count;
    }
  }
  if (call() != MRISR_OK) check::fail(__FILE__, __LINE__, std::string(name) + " afterwards: " + mrisr_last_error());
  return count;
}

}  // namespace

int main() {
  const BundleFiles files;
  for (int64_t i = 0; i < kShape[0] * kShape[1] * kShape[2]; ++i)
    scan.push_back(500.0f + 300.0f * std::sin(0.7f * static_cast<float>(i)));
  const long opening = fail_each("open", [&] { return open_and_close(files.folder); });
  mrisr_model* model = nullptr;
  EXPECT(mrisr_open(files.folder.c_str(), nullptr, &model) == MRISR_OK);
  long running = 0;
  if (model != nullptr) running = fail_each("plan and run", [&] { return plan_and_run(model); });
  mrisr_close(model);
  std::printf("%ld allocations in open, %ld in plan and run: each failed once, and with all later ones\n", opening,
              running);
  EXPECT(opening > 100 && running > 10);
  return check::result("fail_allocations");
}
