// Fork-join over an index range. The thread count is an argument, never a hidden global: results may not depend on it.
#pragma once

#include <type_traits>

#include "tensor.h"

namespace mrisr {

using RangeWork = void (*)(const void* work, Index begin, Index end, int worker);
void run_ranges(Index n, Index grain, int threads, RangeWork call, const void* work);

// Calls work(begin, end) on disjoint ranges that cover [0, n), at most `threads` at a time, the caller among them;
// `grain` is the smallest range worth handing out. Returns when all are done; the first exception is rethrown.
// Which thread gets which range is open, so work() must write only what its own range owns. work(begin, end, worker) is
// told which of the threads it is on, 0 <= worker < threads, so that each can have scratch memory of its own.
// Allocates nothing once its workers run. Safe after fork() (the child makes its own workers) and from several threads
// at once (they take turns).
template <class Work>
void parallel_for(Index n, Index grain, int threads, const Work& work) {
  run_ranges(
      n, grain, threads,
      [](const void* erased, Index begin, Index end, int worker) {
        const Work& run = *static_cast<const Work*>(erased);
        if constexpr (std::is_invocable_v<const Work&, Index, Index, int>) {
          run(begin, end, worker);
        } else {
          (void)worker;
          run(begin, end);
        }
      },
      &work);
}

class Pool;

// Worker threads of one owner, in place of the process's own: `threads` - 1 of them, joined by the destructor.
class Workers {
 public:
  explicit Workers(int threads);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  // While it lives, parallel_for of this thread runs on those workers (and on no more than there are).
  class Scope {
   public:
    explicit Scope(Workers& workers);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Workers* before_;
  };

 private:
  friend void run_ranges(Index, Index, int, RangeWork, const void*);
  Pool* pool_;
  int threads_;
};

}  // namespace mrisr
