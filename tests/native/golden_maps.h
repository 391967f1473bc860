// Feature maps [N, C, D, H, W] as the norms take them: dense in one of two layouts.
#pragma once

#include "activation.h"
#include "golden.h"

namespace mrisr::test {

struct Map {
  explicit Map(const Item& given)
      : item(given.contiguous() || given.channels_last() ? given : given.in_rows()),
        n(item.size[0]),
        channels(item.size[1]),
        voxels(item.size[2] * item.size[3] * item.size[4]),
        last(!item.contiguous()) {}

  Item item;
  Index n, channels, voxels;
  bool last;

  Index stride(int axis) const { return item.stride[static_cast<std::size_t>(axis)]; }

  // Another contiguous item of this shape, in this layout.
  Buffer<float> like(const Item& other, const Setting& s) const {
    auto rows = s.given<float>(other.in_rows());
    auto laid = s.fresh(item.count());
    for (Index i = 0; i < item.count(); ++i) {
      Index rest = i, offset = 0;
      for (std::size_t d = 5; d-- > 0; rest /= item.size[d]) offset += rest % item.size[d] * item.stride[d];
      laid.data()[offset] = rows[i];
    }
    laid.freeze();
    return laid;
  }

  std::vector<double> values(const Buffer<float>& map) const { return logical(map.data(), item.size, item.stride); }
};

inline Buffer<float> optional(const Case& c, const Setting& s, const char* name) {
  const Item* item = c.find(name);
  return item ? s.given<float>(*item) : s.fresh(0);
}

inline Act act_of(const Case& c) { return c.is("act", "silu") ? Act::silu : Act::none; }

}  // namespace mrisr::test
