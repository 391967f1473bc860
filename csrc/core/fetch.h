// Memory that is wanted soon, asked for while something else is computed. Runs of floats that are a page apart are
// followed by no prefetcher of the processor's.
#pragma once

#include "tensor.h"

namespace mrisr {
namespace cpu {

constexpr Index kCacheLine = 64;  // bytes

// `count` runs of `bytes`, `pitch` bytes apart, to be read soon, in `parts` parts.
struct Ahead {
  const void* from;
  Index count, pitch, bytes, parts;

  void part(Index i) const {
#if defined(__GNUC__) || defined(__clang__)
    for (Index run = count * i / parts; run < count * (i + 1) / parts; ++run)
      for (Index at = 0; at < bytes; at += kCacheLine)
        __builtin_prefetch(static_cast<const char*>(from) + run * pitch + at, 0, 2);
#else
    (void)i;
#endif
  }
};

// The same to be written soon: a store to a line that is not in the cache waits for it.
inline void fetch_to_write(const void* to, Index count, Index pitch, Index bytes) {
#if defined(__GNUC__) || defined(__clang__)
  for (Index run = 0; run < count; ++run)
    for (Index at = 0; at < bytes; at += kCacheLine)
      __builtin_prefetch(static_cast<const char*>(to) + run * pitch + at, 1, 3);
#else
  (void)to, (void)count, (void)pitch, (void)bytes;
#endif
}

// Runs to be read or written soon, a cache line at every call of one().
class LineByLine {
 public:
  LineByLine() = default;
  LineByLine(const void* from, Index count, Index pitch, Index bytes)
      : at_(static_cast<const char*>(from)), end_(at_ + bytes), runs_(count), pitch_(pitch), bytes_(bytes) {}

  __attribute__((always_inline)) void one() {
    if (runs_ <= 0) return;
    __builtin_prefetch(at_, 0, 2);
    at_ += kCacheLine;
    if (at_ < end_) return;
    at_ = end_ - bytes_ + pitch_;
    end_ += pitch_;
    --runs_;
  }

 private:
  const char *at_ = nullptr, *end_ = nullptr;
  Index runs_ = 0, pitch_ = 0, bytes_ = 0;
};

}  // namespace cpu
}  // namespace mrisr
