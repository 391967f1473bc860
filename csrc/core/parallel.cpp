#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace mrisr {
namespace {

struct Job {
  const std::function<void(Index, Index)>* work;
  Index n, step;
  std::atomic<Index> next{0};
  std::exception_ptr error;
  std::mutex error_lock;

  void drain() {
    for (;;) {
      const Index begin = next.fetch_add(step);
      if (begin >= n) return;
      try {
        (*work)(begin, std::min(n, begin + step));
      } catch (...) {
        next = n;
        std::lock_guard<std::mutex> hold(error_lock);
        if (!error) error = std::current_exception();
      }
    }
  }
};

thread_local bool inside = false;  // this thread is running a piece of some job

class Pool {
 public:
  // Workers are started when first needed and kept; they sleep between jobs.
  void run(Job& job, int helpers) {
    std::lock_guard<std::mutex> one_job_at_a_time(turn_);
    {
      std::lock_guard<std::mutex> hold(lock_);
      while (static_cast<int>(workers_.size()) < helpers) {
        const int id = static_cast<int>(workers_.size());
        workers_.emplace_back([this, id] { serve(id); });
      }
      job_ = &job;
      helpers_ = helpers;
      running_ = helpers;
      ++generation_;
    }
    wake_.notify_all();
    job.drain();
    std::unique_lock<std::mutex> hold(lock_);
    done_.wait(hold, [this] { return running_ == 0; });
    job_ = nullptr;
  }

 private:
  void serve(int id) {
    inside = true;
    std::uint64_t seen = 0;
    for (;;) {
      Job* job;
      {
        std::unique_lock<std::mutex> hold(lock_);
        // A worker born inside a generation joins it: `seen` starts behind.
        wake_.wait(hold, [&] { return generation_ != seen; });
        seen = generation_;
        if (id >= helpers_ || job_ == nullptr) continue;
        job = job_;
      }
      job->drain();
      std::lock_guard<std::mutex> hold(lock_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_, lock_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Job* job_ = nullptr;
  int helpers_ = 0, running_ = 0;
  std::uint64_t generation_ = 0;
};

Pool* pool_ = nullptr;
std::mutex* pool_lock_ = new std::mutex;

// Threads do not survive fork(). The child drops (leaks) the parent's pool, locks included, and starts afresh.
void forget_in_child() {
  pool_ = nullptr;
  pool_lock_ = new std::mutex;
}

Pool& pool() {
  std::lock_guard<std::mutex> hold(*pool_lock_);
  if (pool_ == nullptr) {
    pool_ = new Pool;  // never destroyed: workers may outlive static destructors
#if defined(__unix__) || defined(__APPLE__)
    static const bool registered = (pthread_atfork(nullptr, nullptr, forget_in_child), true);
    (void)registered;
#endif
  }
  return *pool_;
}

}  // namespace

void parallel_for(Index n, Index grain, int threads, const std::function<void(Index, Index)>& work) {
  MRISR_CHECK(threads >= 1, "threads must be at least 1; it is " << threads);
  MRISR_CHECK(grain >= 1, "grain must be at least 1; it is " << grain);
  if (n <= 0) return;
  const Index pieces = (n + grain - 1) / grain;
  const int used = static_cast<int>(std::min<Index>(threads, pieces));
  if (used == 1 || inside) return work(0, n);  // nested calls run where they are
  Job job;
  job.work = &work;
  job.n = n;
  // Four pieces a thread even out uneven cores; fewer where the grain says so.
  job.step = std::max<Index>(grain, (n + 4 * used - 1) / (4 * used));
  inside = true;
  pool().run(job, used - 1);
  inside = false;
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace mrisr
