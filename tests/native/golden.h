// Cases written by goldens.py (the format stands there), and the runners that put them to the core, one per family.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "memory.h"
#include "tensor.h"

namespace mrisr::test {

enum class Kind : std::uint8_t { f32 = 0, f64 = 1, i64 = 2, u8 = 3, text = 4 };

struct Item {
  Kind kind;
  std::vector<Index> size, stride;
  std::vector<unsigned char> bytes;  // in memory order, dense

  Index count() const;
  int rank() const { return static_cast<int>(size.size()); }
  bool contiguous() const;     // axes of size 1 have no say
  bool channels_last() const;  // [N, C, D, H, W] lying in memory as [N, D, H, W, C]
  Item in_rows() const;        // the same values, contiguous
  Index integer(Index at = 0) const;
  std::string text() const { return {bytes.begin(), bytes.end()}; }
};

// How one run is made: none of it may change a result.
struct Setting {
  Placement placement;
  int threads;

  // A copy of an item's memory, read-only; or NaN to be filled.
  template <class T>
  Buffer<T> given(const Item& item) const {
    Buffer<T> buffer(item.bytes.data(), item.count(), placement);
    buffer.freeze();
    return buffer;
  }
  template <class T = float>
  Buffer<T> fresh(Index count) const {
    return Buffer<T>(count, placement);
  }
};

struct Case {
  std::string name;
  double tolerance, gradient_tolerance;
  std::map<std::string, Item> items;

  const Item& at(const std::string& key) const;
  const Item* find(const std::string& key) const;
  bool is(const std::string& key, const char* text) const { return find(key) && find(key)->text() == text; }
};

// What a runner computed: item name ("expected", "d.x") -> values in the logical order of that item's axes.
using Found = std::map<std::string, std::vector<double>>;
using Runner = std::function<Found(const Case&, const Setting&)>;

// Each golden_<family>.cpp has one: `static const Register registered("noise", run);`
struct Register {
  Register(const char* family, Runner run);
};
std::map<std::string, Runner>& runners();

std::vector<Case> read_goldens(const std::string& path);

// Values that lie in memory with these strides, in logical order.
template <class T>
std::vector<double> logical(const T* data, const std::vector<Index>& size, const std::vector<Index>& stride) {
  Index count = 1;
  for (Index n : size) count *= n;
  std::vector<double> values(static_cast<std::size_t>(count));
  for (Index i = 0; i < count; ++i) {
    Index rest = i, offset = 0;
    for (std::size_t d = size.size(); d-- > 0; rest /= size[d]) offset += rest % size[d] * stride[d];
    values[static_cast<std::size_t>(i)] = static_cast<double>(data[offset]);
  }
  return values;
}

template <class T>
std::vector<double> logical(const Buffer<T>& buffer) {
  return {buffer.data(), buffer.data() + buffer.count()};
}

inline View<float, 3> view3(float* data, const Item& like) {
  return contiguous3(data, like.size[0], like.size[1], like.size[2]);
}
inline View<const float, 3> view3(const float* data, const Item& like) {
  return contiguous3(data, like.size[0], like.size[1], like.size[2]);
}

}  // namespace mrisr::test
