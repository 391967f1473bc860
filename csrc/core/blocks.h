// Blocks of tensors as float32: all arithmetic is float32 whatever is stored.
//
// A kernel reads a block that fits the L1 cache through a Source and writes it through a Sink. float32 is read where it
// lies; float16 and bfloat16 are widened into a buffer first and rounded to nearest even on the way out, so that hot loops
// exist once. Large results that nobody reads soon go past the caches (non-temporal stores): that saves the read that an
// ordinary store makes of the line it overwrites.
#pragma once

#include "dtype.h"
#include "tensor.h"

namespace mrisr {

namespace cpu {

constexpr Index kBlock = 1024;  // floats: short enough that what is streamed out keeps up with what is read
constexpr Index kLongBlock =
    4096;  // of kernels that only read, and settle accounts once a block: the L1 cache holds two

class Source {
 public:
  Source(const void* data, Dtype dtype) : data_(data), dtype_(dtype) {}
  // Elements [at, at + count): where they lie, or widened into `buffer`.
  const float* read(Index at, Index count, float* buffer) const;

 private:
  const void* data_;
  Dtype dtype_;
};

class Sink {
 public:
  // `over`: the tensor that is read while this one is written. Where they are the same, or where the result may still be
  // in a cache when it is wanted, stores are ordinary ones.
  Sink(void* data, Dtype dtype, Index total, const void* over = nullptr);
  // Where to compute elements [at, ...): in place, or in `buffer`. Either way they are done with write().
  float* place(Index at, float* buffer) const;
  void write(Index at, Index count, const float* values) const;
  // What a reader of the tensor will find: `values` rounded as they are stored, in place.
  void round(float* values, Index count) const;
  // Call once per worker, after its last write().
  void finish() const;

 private:
  void* data_;
  Dtype dtype_;
  bool stream_;
};

}  // namespace cpu
}  // namespace mrisr
