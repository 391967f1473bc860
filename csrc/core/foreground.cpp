#include "foreground.h"

#include <algorithm>
#include <cmath>

#include "parallel.h"

namespace mrisr::cpu {
namespace {

constexpr std::uint8_t kClosed = 0, kOpen = 1, kReached = 2;
constexpr int kBins = 256;

// Rows of a volume, and which of them are neighbours; beyond an end the end itself.
struct Box {
  Index n[3];
  Index count() const { return n[0] * n[1] * n[2]; }
  Index row(Index i, Index j) const { return (std::clamp<Index>(i, 0, n[0] - 1) * n[1] + std::clamp<Index>(j, 0, n[1] - 1)) * n[2]; }
};

// call(offset) of every voxel on the two faces across an axis; a corner counts once per face.
template <class Call>
void each_on_faces(const Box& b, int axis, const Call& call) {
  const Index stride[3] = {b.n[1] * b.n[2], b.n[2], 1};
  const int p = axis == 0 ? 1 : 0, q = axis == 2 ? 1 : 2;
  for (const Index end : {Index{0}, b.n[axis] - 1})
    for (Index i = 0; i < b.n[p]; ++i)
      for (Index j = 0; j < b.n[q]; ++j) call(end * stride[axis] + i * stride[p] + j * stride[q]);
}

// From every reached voxel through open ones that share a face with it. queue holds one entry per voxel.
void spread(std::uint8_t* state, const Box& b, std::uint32_t* queue) {
  const Index stride[3] = {b.n[1] * b.n[2], b.n[2], 1};
  Index filled = 0;
  const auto reach = [&](Index at) {
    const Index place[3] = {at / stride[0], at / stride[1] % b.n[1], at % b.n[2]};
    for (int axis = 0; axis < 3; ++axis)
      for (const Index way : {Index{-1}, Index{1}}) {
        if (place[axis] + way < 0 || place[axis] + way >= b.n[axis]) continue;
        const Index next = at + way * stride[axis];
        if (state[next] != kOpen) continue;
        state[next] = kReached;
        queue[filled++] = static_cast<std::uint32_t>(next);
      }
  };
  for (Index at = 0; at < b.count(); ++at)
    if (state[at] == kReached) {
      reach(at);
      while (filled > 0) reach(queue[--filled]);
    }
}

// Means over 3^3 voxels; beyond an end the end itself is repeated.
void local_means(float* mean, const float* v, const Box& b, int threads) {
  parallel_for(b.n[0] * b.n[1], 16, threads, [&](Index begin, Index end) {
    for (Index line = begin; line < end; ++line) {
      const Index i = line / b.n[1], j = line % b.n[1];
      const float* rows[9];
      for (int r = 0; r < 9; ++r) rows[r] = v + b.row(i + r / 3 - 1, j + r % 3 - 1);
      const auto sum = [&](Index k) {
        float total = 0;
        for (const float* r : rows) total += r[k];
        return total;
      };
      float* const to = mean + line * b.n[2];
      float before = sum(0), here = before;
      for (Index k = 0; k < b.n[2]; ++k) {
        const float after = k + 1 < b.n[2] ? sum(k + 1) : here;
        to[k] = (before + here + after) * (1.0f / 27.0f);
        before = here;
        here = after;
      }
    }
  });
}

// The level above which a local mean, where it is connected to what is certain, is tissue.
float level_of(const float* mean, const Box& b, const bool open[3], const TissueRule& rule) {
  Index count[kBins] = {}, total = 0;
  const double bin = kBins / rule.certain;
  for (int axis = 0; axis < 3; ++axis)
    if (open[axis])
      each_on_faces(b, axis, [&](Index at) {
        if (mean[at] < 0 || mean[at] >= static_cast<float>(rule.certain)) return;
        ++count[std::min<int>(kBins - 1, static_cast<int>(static_cast<double>(mean[at]) * bin))];
        ++total;
      });
  Index below = 0;
  int middle = 0;
  while (middle < kBins - 1 && 2 * (below += count[middle]) < total) ++middle;
  const double air = total > 0 ? (middle + 0.5) / bin : 0.0;
  return static_cast<float>(std::clamp(rule.over_air * air, rule.darkest, rule.certain));
}

// 1 at and around every voxel that is not `air`.
void grow(std::uint8_t* out, const std::uint8_t* state, std::uint8_t air, const Box& b, int threads) {
  parallel_for(b.n[0] * b.n[1], 16, threads, [&](Index begin, Index end) {
    for (Index line = begin; line < end; ++line) {
      const Index i = line / b.n[1], j = line % b.n[1];
      std::uint8_t* const to = out + line * b.n[2];
      std::fill_n(to, b.n[2], std::uint8_t{0});
      for (int r = 0; r < 9; ++r) {
        const std::uint8_t* const from = state + b.row(i + r / 3 - 1, j + r % 3 - 1);
        for (Index k = 0; k < b.n[2]; ++k)
          if (from[k] != air) to[std::max<Index>(0, k - 1)] = to[k] = to[std::min(b.n[2] - 1, k + 1)] = 1;
      }
    }
  });
}

// Whether all 27 voxels at and around one are marked; beyond an end the end itself counts.
bool solid(const std::uint8_t* state, const Box& b, Index i, Index j, Index k) {
  const Index from = std::max<Index>(0, k - 1), to = std::min(b.n[2] - 1, k + 1);
  for (int r = 0; r < 9; ++r) {
    const std::uint8_t* const row = state + b.row(i + r / 3 - 1, j + r % 3 - 1);
    for (Index m = from; m <= to; ++m)
      if (row[m] == kClosed) return false;
  }
  return true;
}

bool inside(const std::uint8_t* state, const Box& b, Index i, Index j, Index k) {
  const auto marked = [&](Index x, Index y, Index z) {
    return state[b.row(x, y) + std::clamp<Index>(z, 0, b.n[2] - 1)] == kReached;
  };
  return marked(i - 1, j, k) && marked(i + 1, j, k) && marked(i, j - 1, k) && marked(i, j + 1, k) && marked(i, j, k - 1) &&
         marked(i, j, k + 1);
}

template <class Call>
void each(const Box& b, const Call& call) {
  for (Index i = 0; i < b.n[0]; ++i)
    for (Index j = 0; j < b.n[1]; ++j)
      for (Index k = 0; k < b.n[2]; ++k) call(i, j, k, (i * b.n[1] + j) * b.n[2] + k);
}

// Mark what holds `value` and is connected to a solid part of it. How much that is, 0 where it is no background.
Background mark(std::uint8_t* state, const float* v, const Box& b, float value, const BackgroundRule& rule,
                std::uint32_t* queue) {
  Background found;
  for (Index i = 0; i < b.count(); ++i) state[i] = v[i] == value ? kOpen : kClosed;
  each(b, [&](Index i, Index j, Index k, Index at) {
    if (state[at] != kClosed && solid(state, b, i, j, k)) state[at] = kReached;
  });
  spread(state, b, queue);
  Index within = 0;
  bool around = false;
  each(b, [&](Index i, Index j, Index k, Index at) {
    if (state[at] != kReached) return;
    if (found.voxels++ == 0) found.first = at;
    if (inside(state, b, i, j, k)) ++within;
    around = around || i == 0 || j == 0 || k == 0 || i == b.n[0] - 1 || j == b.n[1] - 1 || k == b.n[2] - 1;
  });
  const auto all = static_cast<double>(b.count()), marked = static_cast<double>(found.voxels);
  const bool good = around && marked >= rule.share * all && static_cast<double>(within) >= rule.solid * marked;
  return good && found.voxels < b.count() ? found : Background{};
}

// The value that most voxels of the faces have, by a majority vote and a count.
bool constant_faces(const float* v, const Box& b, float& value) {
  Index votes = 0, same = 0, all = 0;
  for (int axis = 0; axis < 3; ++axis)
    each_on_faces(b, axis, [&](Index at) {
      if (votes == 0) value = v[at];
      votes += v[at] == value ? 1 : -1;
    });
  for (int axis = 0; axis < 3; ++axis)
    each_on_faces(b, axis, [&](Index at) {
      same += v[at] == value ? 1 : 0;
      ++all;
    });
  return 2 * same > all;
}

}  // namespace

void tissue(std::uint8_t* out, const float* v, const Index n[3], const bool open[3], const TissueRule& rule, float* mean,
            std::uint8_t* spare, int threads) {
  const Box b{{n[0], n[1], n[2]}};
  local_means(mean, v, b, threads);
  const float level = level_of(mean, b, open, rule), certain = static_cast<float>(rule.certain);
  bool any = false;
  for (Index i = 0; i < b.count(); ++i) {
    spare[i] = mean[i] > certain ? kReached : mean[i] > level ? kOpen : kClosed;
    any = any || spare[i] == kReached;
  }
  if (!any) {
    std::fill_n(out, b.count(), std::uint8_t{1});
    return;
  }
  auto* const queue = reinterpret_cast<std::uint32_t*>(mean);  // the means have done their work
  spread(spare, b, queue);
  for (Index i = 0; i < b.count(); ++i) spare[i] = spare[i] == kReached ? kClosed : kOpen;
  for (int axis = 0; axis < 3; ++axis)
    if (open[axis])
      each_on_faces(b, axis, [&](Index at) {
        if (spare[at] == kOpen) spare[at] = kReached;
      });
  spread(spare, b, queue);
  grow(out, spare, kReached, b, threads);
}

Background masked_background(std::uint8_t* out, const float* v, const Index n[3], const BackgroundRule& rule,
                             std::uint32_t* queue) {
  const Box b{{n[0], n[1], n[2]}};
  Background found = mark(out, v, b, 0.0f, rule, queue);
  float value = 0;
  if (found.voxels == 0 && constant_faces(v, b, value) && value != 0) found = mark(out, v, b, value, rule, queue);
  for (Index i = 0; i < b.count(); ++i) out[i] = found.voxels > 0 && out[i] == kReached ? 1 : 0;
  return found;
}

}  // namespace mrisr::cpu
