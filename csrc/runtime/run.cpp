// mrisr_run: one volume through the stages, in order: mrisr/infer/run.py.
#include <limits>
#include <new>

#include "denoise.h"
#include "error.h"
#include "finish.h"
#include "start.h"
#include "strided.h"

namespace mrisr::runtime {
namespace {

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
      MRISR_FAIL(MRISR_ERROR_MEMORY, "workspace: " << options.workspace_size << " bytes, this job needs "
                                                   << job.workspace << " (mrisr_geometry.workspace_bytes)");
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

void check_options(const Job& job, const mrisr_run_options& options) {
  if (options.input == nullptr) MRISR_FAIL(MRISR_ERROR_ARGUMENT, "input: is NULL");
  if (options.output == nullptr && options.output_int16 == nullptr)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "output: is NULL, and so is output_int16");
  if (!(options.output_int16_scale >= 0 && options.output_int16_scale <= std::numeric_limits<float>::max()))
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "output_int16_scale: expected 0 or more, found " << options.output_int16_scale);
  if (options.input_element != MRISR_FLOAT32 && options.input_element != MRISR_INT16)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT,
               "input_element: expected a mrisr_element (0 or 1), found " << options.input_element);
  if (options.nonnegative != 0 && options.nonnegative != 1)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "nonnegative: expected 0 or 1, found " << options.nonnegative);
  if (options.spread != nullptr && job.samples < 2)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "spread: one sample has none; plan with samples of 2 or more");
}

// No array of a call lies on another.
void check_arrays(const Job& job, const mrisr_run_options& options) {
  const Triple &coarse = job.source.shape, &fine = job.target.shape;
  const Strides in = strides_of(options.input_stride, coarse, "input_stride"),
                out = strides_of(options.output_stride, fine, "output_stride");
  const auto input = bytes_of(options.input, in, coarse, options.input_element == MRISR_INT16 ? 2 : sizeof(float));
  const struct {
    const void* start;
    std::size_t element;
    const char* name;
  } results[] = {{options.output, sizeof(float), "output"},
                 {options.output_int16, sizeof(std::int16_t), "output_int16"},
                 {options.spread, sizeof(float), "spread"}};
  for (int i = 0; i < 3; ++i) {
    if (results[i].start == nullptr) continue;
    const auto bytes = bytes_of(results[i].start, out, fine, results[i].element);
    check_apart(input, bytes, "input", results[i].name);
    for (int j = 0; j < i; ++j)
      if (results[j].start != nullptr)
        check_apart(bytes_of(results[j].start, out, fine, results[j].element), bytes, results[j].name, results[i].name);
  }
}

void run_stages(Job& job, const mrisr_run_options& options, const Workspace& w, mrisr_run_info& info) {
  Progress progress(options.progress, options.progress_user);
  progress.at(0);
  const Frame frame = start(job, w, options, progress);
  info.offset = frame.scale.offset, info.scale = frame.scale.scale, info.noise = frame.noise,
  info.outliers = frame.scale.outliers;
  info.background = frame.background ? 1 : 0, info.background_value = frame.background_value;
  denoise(job, w, frame.noise, options.seed, progress, info);
  job.engine->release();  // what follows needs memory of its own
  progress.at(kDenoised);
  finish(job, w, options, frame, info);
  progress.at(1);
}

class Busy {
 public:
  explicit Busy(Job& job) : job_(job) {
    if (job.busy.exchange(true))
      MRISR_FAIL(MRISR_ERROR_ARGUMENT, "job: runs in another thread already; a job is for one thread at a time");
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
  check_arrays(job, options);
  const Workers::Scope own_threads(*job.workers);
  const Block block(job, options);
  run_stages(job, options, lay_out(job, block.get()), info);
}

}  // namespace mrisr::runtime
