// Fork-join over an index range. The thread count is an argument, never a hidden global: results may not depend on it.
#pragma once

#include <functional>

#include "tensor.h"

namespace mrisr {

// Calls work(begin, end) on disjoint ranges that cover [0, n), at most `threads` at a time, the caller among them;
// `grain` is the smallest range worth handing out. Returns when all are done; the first exception is rethrown.
// Which thread gets which range is open, so work() must write only what its own range owns.
// Safe after fork() (the child makes its own workers) and from several threads at once (they take turns).
void parallel_for(Index n, Index grain, int threads, const std::function<void(Index, Index)>& work);

}  // namespace mrisr
