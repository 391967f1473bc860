// Memory that catches a kernel which reads or writes where it must not: the buffer ends where an unreadable page begins,
// or begins where one ends, or is a heap block of its exact size (AddressSanitizer watches those).
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "tensor.h"

namespace mrisr::test {

enum class Placement { heap, guard_after, guard_before };

constexpr const char* name_of(Placement p) {
  return p == Placement::heap ? "heap" : p == Placement::guard_after ? "guard page after" : "guard page before";
}

// `count` elements. New memory is all one bits: NaN in float32 and float64, so that what a kernel forgets to write shows.
template <class T>
class Buffer {
 public:
  Buffer(Index count, Placement placement) : count_(count), bytes_(static_cast<std::size_t>(count) * sizeof(T)) {
    if (placement == Placement::heap) {
      data_ = static_cast<unsigned char*>(std::malloc(bytes_));
    } else {
      const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
      inner_ = (bytes_ + page - 1) / page * page;
      mapped_ = inner_ + 2 * page;
      base_ = static_cast<unsigned char*>(mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      if (base_ == MAP_FAILED || (inner_ && mprotect(base_ + page, inner_, PROT_READ | PROT_WRITE)))
        throw std::bad_alloc();
      data_ = base_ + page + (placement == Placement::guard_after ? inner_ - bytes_ : 0);
    }
    if (bytes_) std::memset(data_, 0xff, bytes_);
  }
  Buffer(const void* from, Index count, Placement placement) : Buffer(count, placement) {
    if (bytes_) std::memcpy(data_, from, bytes_);
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (base_)
      munmap(base_, mapped_);
    else
      std::free(data_);
  }

  // From here on a write is a crash (with guard pages; elsewhere nothing happens).
  Buffer& freeze() {
    if (base_ && inner_) mprotect(base_ + sysconf(_SC_PAGESIZE), inner_, PROT_READ);
    return *this;
  }

  T* data() { return count_ ? reinterpret_cast<T*>(data_) : nullptr; }
  const T* data() const { return count_ ? reinterpret_cast<const T*>(data_) : nullptr; }
  Index count() const { return count_; }
  T operator[](Index i) const { return data()[i]; }

 private:
  void swap(Buffer& other) {
    std::swap(count_, other.count_), std::swap(bytes_, other.bytes_), std::swap(inner_, other.inner_);
    std::swap(mapped_, other.mapped_), std::swap(base_, other.base_), std::swap(data_, other.data_);
  }
  Index count_ = 0;
  std::size_t bytes_ = 0, inner_ = 0, mapped_ = 0;
  unsigned char *base_ = nullptr, *data_ = nullptr;
};

}  // namespace mrisr::test
