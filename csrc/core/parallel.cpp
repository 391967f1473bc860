#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace mrisr {
namespace {

struct Job {
  RangeWork call;
  const void* work;
  Index n, step;
  std::atomic<Index> next{0};
  std::exception_ptr error;
  std::mutex error_lock;

  void drain(int worker) {
    for (;;) {
      const Index begin = next.fetch_add(step);
      if (begin >= n) return;
      try {
        call(work, begin, std::min(n, begin + step), worker);
      } catch (...) {
        next = n;
        std::lock_guard<std::mutex> hold(error_lock);
        if (!error) error = std::current_exception();
      }
    }
  }
};

thread_local bool inside = false;         // this thread is running a piece of some job
thread_local Workers* current = nullptr;  // of the innermost Workers::Scope

}  // namespace

class Pool {
 public:
  Pool() = default;
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  ~Pool() {
    {
      std::lock_guard<std::mutex> hold(lock_);
      stop_ = true;
      ++generation_;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  void start(int helpers) {
    std::lock_guard<std::mutex> hold(lock_);
    while (static_cast<int>(workers_.size()) < helpers) {
      const int id = static_cast<int>(workers_.size());
      workers_.emplace_back([this, id] { serve(id); });
    }
  }

  // Workers are started when first needed and kept; they sleep between jobs.
  void run(Job& job, int helpers) {
    std::lock_guard<std::mutex> one_job_at_a_time(turn_);
    start(helpers);
    {
      std::lock_guard<std::mutex> hold(lock_);
      job_ = &job;
      helpers_ = helpers;
      running_ = helpers;
      ++generation_;
    }
    wake_.notify_all();
    job.drain(0);
    std::unique_lock<std::mutex> hold(lock_);
    done_.wait(hold, [this] { return running_ == 0; });
    job_ = nullptr;
  }

 private:
  void serve(int id) {
    inside = true;
    std::uint64_t last = 0;
    for (;;) {
      Job* job;
      {
        std::unique_lock<std::mutex> hold(lock_);
        // A worker born inside a generation joins it: `last` starts behind.
        wake_.wait(hold, [&] { return generation_ != last; });
        last = generation_;
        if (stop_) return;
        if (id >= helpers_ || job_ == nullptr) continue;
        job = job_;
      }
      job->drain(id + 1);
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
  bool stop_ = false;
};

namespace {

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

Workers::Workers(int threads) : pool_(nullptr), threads_(threads) {
  MRISR_CHECK(threads >= 1, "threads must be at least 1; it is " << threads);
  auto pool = std::make_unique<Pool>();
  pool->start(threads - 1);
  pool_ = pool.release();
}

Workers::~Workers() { delete pool_; }

Workers::Scope::Scope(Workers& workers) : before_(current) { current = &workers; }

Workers::Scope::~Scope() { current = before_; }

void run_ranges(Index n, Index grain, int threads, RangeWork call, const void* work) {
  MRISR_CHECK(threads >= 1, "threads must be at least 1; it is " << threads);
  MRISR_CHECK(grain >= 1, "grain must be at least 1; it is " << grain);
  if (n <= 0) return;
  const Index pieces = (n + grain - 1) / grain;
  const int most = current == nullptr ? threads : std::min(threads, current->threads_);
  const int used = static_cast<int>(std::min<Index>(most, pieces));
  if (used == 1 || inside) return call(work, 0, n, 0);  // nested calls run where they are
  Job job;
  job.call = call;
  job.work = work;
  job.n = n;
  // Four pieces a thread even out uneven cores; fewer where the grain says so.
  job.step = std::max<Index>(grain, (n + 4 * used - 1) / (4 * used));
  struct Inside {
    Inside() { inside = true; }
    ~Inside() { inside = false; }
  };
  {
    const Inside mark;
    (current == nullptr ? pool() : *current->pool_).run(job, used - 1);
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace mrisr
