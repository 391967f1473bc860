#include "foreground.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "isa.h"
#include "parallel.h"

namespace mrisr::cpu {
namespace {

constexpr std::uint8_t kClosed = 0, kOpen = 1, kReached = 2;
constexpr int kBins = 256;

// Rows of a volume, and which of them are neighbours; beyond an end the end itself.
struct Box {
  Index n[3];
  Index count() const { return n[0] * n[1] * n[2]; }
  Index row(Index i, Index j) const {
    return (std::clamp<Index>(i, 0, n[0] - 1) * n[1] + std::clamp<Index>(j, 0, n[1] - 1)) * n[2];
  }
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

// From every reached voxel through open ones that share a face with it, a run along the last axis at a time. queue holds
// one entry per voxel.
void spread(std::uint8_t* state, const Box& b, std::uint32_t* queue) {
  const Index length = b.n[2];
  Index filled = 0;
  const auto find = [](std::uint8_t* from, std::uint8_t* end, std::uint8_t what) {
    return static_cast<std::uint8_t*>(std::memchr(from, what, static_cast<std::size_t>(end - from)));
  };
  // Of a reached run: the open voxels on both sides, and the first of every open run beside it, to come back to.
  const auto reach = [&](Index i, Index j, Index k, Index last) {
    std::uint8_t* const row = state + (i * b.n[1] + j) * length;
    while (k > 0 && row[k - 1] == kOpen) row[--k] = kReached;
    while (last + 1 < length && row[last + 1] == kOpen) row[++last] = kReached;
    const auto beside = [&](bool there, Index away) {
      if (!there) return;
      std::uint8_t *const end = row + away + last + 1, *at = row + away + k;
      while (at < end && (at = find(at, end, kOpen)) != nullptr) {
        queue[filled++] = static_cast<std::uint32_t>(at - state);
        *at++ = kReached;
        while (at < end && *at == kOpen) ++at;
      }
    };
    beside(i > 0, -b.n[1] * length);
    beside(i + 1 < b.n[0], b.n[1] * length);
    beside(j > 0, -length);
    beside(j + 1 < b.n[1], length);
  };
  const auto width = static_cast<std::uint32_t>(length), lines = static_cast<std::uint32_t>(b.n[1]);
  for (Index i = 0; i < b.n[0]; ++i)
    for (Index j = 0; j < b.n[1]; ++j) {
      std::uint8_t *const row = state + (i * b.n[1] + j) * length, *const end = row + length;
      for (std::uint8_t* at = row; at < end && (at = find(at, end, kReached)) != nullptr;) {
        std::uint8_t* const first = at;
        while (at < end && *at == kReached) ++at;
        reach(i, j, first - row, at - row - 1);
        while (filled > 0) {
          const std::uint32_t next = queue[--filled], line = next / width, k = next % width;
          reach(line / lines, line % lines, k, k);
        }
      }
    }
}

constexpr Index kColumns = 256;  // of a row, at a time: what stands around them fits the L1 cache

// Means over 3^3 voxels; beyond an end the end itself is repeated.
MRISR_INLINE void mean_row_body(float* __restrict__ to, const float* const rows[9], Index n) {
  float column[kColumns + 2];  // sums over the nine rows, with those of a neighbour on both sides
  for (Index k0 = 0; k0 < n; k0 += kColumns) {
    const Index count = std::min(kColumns, n - k0), first = k0 == 0 ? 0 : k0 - 1;
    const Index from = first - k0 + 1, many = std::min(n, k0 + count + 1) - first;
    const float *const a = rows[0] + first, *const b = rows[1] + first, *const c = rows[2] + first;
    const float *const d = rows[3] + first, *const e = rows[4] + first, *const f = rows[5] + first;
    const float *const g = rows[6] + first, *const h = rows[7] + first, *const l = rows[8] + first;
    for (Index k = 0; k < many; ++k) column[from + k] = a[k] + b[k] + c[k] + d[k] + e[k] + f[k] + g[k] + h[k] + l[k];
    if (k0 == 0) column[0] = column[1];
    if (k0 + count == n) column[count + 1] = column[count];
    for (Index k = 0; k < count; ++k) to[k0 + k] = (column[k] + column[k + 1] + column[k + 2]) * (1.0f / 27.0f);
  }
}
MRISR_VARIANTS(mean_row, mean_row_body, (float* __restrict__ to, const float* const rows[9], Index n), (to, rows, n))

void local_means(float* mean, const float* v, const Box& b, int threads) {
  parallel_for(b.n[0] * b.n[1], 16, threads, [&](Index begin, Index end) {
    for (Index line = begin; line < end; ++line) {
      const Index i = line / b.n[1], j = line % b.n[1];
      const float* rows[9];
      for (int r = 0; r < 9; ++r) rows[r] = v + b.row(i + r / 3 - 1, j + r % 3 - 1);
      mean_row(mean + line * b.n[2], rows, b.n[2]);
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
MRISR_INLINE void grow_row_body(std::uint8_t* __restrict__ to, const std::uint8_t* const rows[9], std::uint8_t air,
                                Index n) {
  std::uint8_t column[kColumns + 2];  // whether one of nine is not air, with a neighbour on both sides
  for (Index k0 = 0; k0 < n; k0 += kColumns) {
    const Index count = std::min(kColumns, n - k0), first = k0 == 0 ? 0 : k0 - 1;
    const Index from = first - k0 + 1, many = std::min(n, k0 + count + 1) - first;
    column[0] = column[count + 1] = 0;
    const std::uint8_t *const a = rows[0] + first, *const b = rows[1] + first, *const c = rows[2] + first;
    const std::uint8_t *const d = rows[3] + first, *const e = rows[4] + first, *const f = rows[5] + first;
    const std::uint8_t *const g = rows[6] + first, *const h = rows[7] + first, *const l = rows[8] + first;
    for (Index k = 0; k < many; ++k)
      column[from + k] = (a[k] != air) | (b[k] != air) | (c[k] != air) | (d[k] != air) | (e[k] != air) | (f[k] != air) |
                         (g[k] != air) | (h[k] != air) | (l[k] != air);
    for (Index k = 0; k < count; ++k) to[k0 + k] = column[k] | column[k + 1] | column[k + 2];
  }
}
MRISR_VARIANTS(grow_row, grow_row_body,
               (std::uint8_t* __restrict__ to, const std::uint8_t* const rows[9], std::uint8_t air, Index n),
               (to, rows, air, n))

// What of a row of means is tissue for certain, may be, or is air. Whether any is.
MRISR_INLINE void sort_row_body(std::uint8_t* __restrict__ to, const float* __restrict__ mean, float level,
                                float certain, Index n, bool& any) {
  static_assert(kClosed == 0 && kOpen == 1 && kReached == 2);
  int most = 0;
  for (Index k = 0; k < n; ++k) {
    const int state = (mean[k] > level ? 1 : 0) + (mean[k] > certain ? 1 : 0);  // the level is no higher
    to[k] = static_cast<std::uint8_t>(state);
    most = std::max(most, state);
  }
  any = any || most == kReached;
}
MRISR_VARIANTS(sort_row, sort_row_body,
               (std::uint8_t* __restrict__ to, const float* __restrict__ mean, float level, float certain, Index n,
                bool& any),
               (to, mean, level, certain, n, any))

// Closed where a row was reached, else open.
MRISR_INLINE void invert_row_body(std::uint8_t* row, Index n) {
  for (Index k = 0; k < n; ++k) row[k] = row[k] != kReached;
}
MRISR_VARIANTS(invert_row, invert_row_body, (std::uint8_t* row, Index n), (row, n))

void grow(std::uint8_t* out, const std::uint8_t* state, std::uint8_t air, const Box& b, int threads) {
  parallel_for(b.n[0] * b.n[1], 16, threads, [&](Index begin, Index end) {
    for (Index line = begin; line < end; ++line) {
      const Index i = line / b.n[1], j = line % b.n[1];
      const std::uint8_t* rows[9];
      for (int r = 0; r < 9; ++r) rows[r] = state + b.row(i + r / 3 - 1, j + r % 3 - 1);
      grow_row(out + line * b.n[2], rows, air, b.n[2]);
    }
  });
}

// Reach what is not closed in a row where all 27 voxels at and around are not; beyond an end nothing is asked.
MRISR_INLINE void seed_row_body(std::uint8_t* row, const std::uint8_t* const rows[9], Index n) {
  std::uint8_t column[kColumns + 2];  // whether none of nine is closed, with a neighbour on both sides
  for (Index k0 = 0; k0 < n; k0 += kColumns) {
    const Index count = std::min(kColumns, n - k0), first = k0 == 0 ? 0 : k0 - 1;
    const Index from = first - k0 + 1, many = std::min(n, k0 + count + 1) - first;
    column[0] = column[count + 1] = 1;
    for (Index c = 0; c < many; ++c) column[from + c] = 1;
    for (int r = 0; r < 9; ++r)
      for (Index c = 0; c < many; ++c) column[from + c] &= static_cast<std::uint8_t>(rows[r][first + c] != kClosed);
    for (Index k = 0; k < count; ++k) row[k0 + k] = column[k] & column[k + 1] & column[k + 2] ? kReached : row[k0 + k];
  }
}
MRISR_VARIANTS(seed_row, seed_row_body, (std::uint8_t* row, const std::uint8_t* const rows[9], Index n), (row, rows, n))

// Reached voxels of rows[0], into `all`, and those whose six neighbours are too, into `within`; rows: it and the four
// beside it.
MRISR_INLINE void count_row_body(Index& all, Index& within, const std::uint8_t* const rows[5], Index n) {
  for (Index k0 = 0; k0 < n; k0 += kColumns) {
    const Index count = std::min(kColumns, n - k0);
    std::uint8_t marked[kColumns];
    int here = 0, deep = 0;
    for (Index k = 0; k < count; ++k) here += rows[0][k0 + k] == kReached;
    for (Index k = 0; k < count; ++k) marked[k] = rows[1][k0 + k] == kReached;
    for (int r = 2; r < 5; ++r)
      for (Index k = 0; k < count; ++k) marked[k] &= static_cast<std::uint8_t>(rows[r][k0 + k] == kReached);
    for (Index k = 0; k < count; ++k) {
      const std::uint8_t before = rows[0][std::max<Index>(0, k0 + k - 1)], after = rows[0][std::min(n - 1, k0 + k + 1)];
      deep += marked[k] && rows[0][k0 + k] == kReached && before == kReached && after == kReached;
    }
    all += here;
    within += deep;
  }
}
MRISR_VARIANTS(count_row, count_row_body, (Index & all, Index& within, const std::uint8_t* const rows[5], Index n),
               (all, within, rows, n))

template <class Call>
void each_row(const Box& b, const Call& call) {
  for (Index i = 0; i < b.n[0]; ++i)
    for (Index j = 0; j < b.n[1]; ++j) call(i, j);
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
  Background background;
  for (Index i = 0; i < b.count(); ++i) state[i] = v[i] == value ? kOpen : kClosed;
  each_row(b, [&](Index i, Index j) {
    const std::uint8_t* rows[9];
    for (int r = 0; r < 9; ++r) rows[r] = state + b.row(i + r / 3 - 1, j + r % 3 - 1);
    seed_row(state + b.row(i, j), rows, b.n[2]);
  });
  spread(state, b, queue);
  Index within = 0;
  bool around = false;
  each_row(b, [&](Index i, Index j) {
    const std::uint8_t* const row = state + b.row(i, j);
    const std::uint8_t* const rows[5] = {row, state + b.row(i - 1, j), state + b.row(i + 1, j), state + b.row(i, j - 1),
                                         state + b.row(i, j + 1)};
    Index here = 0;
    count_row(here, within, rows, b.n[2]);
    if (here == 0) return;
    if (background.voxels == 0) background.first = std::find(row, row + b.n[2], kReached) - state;
    background.voxels += here;
    around = around || i == 0 || j == 0 || i == b.n[0] - 1 || j == b.n[1] - 1 || row[0] == kReached ||
             row[b.n[2] - 1] == kReached;
  });
  const auto all = static_cast<double>(b.count()), marked = static_cast<double>(background.voxels);
  const bool good = around && marked >= rule.share * all && static_cast<double>(within) >= rule.solid * marked;
  return good && background.voxels < b.count() ? background : Background{};
}

// Whether the bricks of one row of them hold tissue, from the sums and the largest of their columns.
MRISR_INLINE void brick_row_body(std::uint8_t* to, const float* v, const Box& b, Index i, Index j,
                                 const BrickRule& rule) {
  const Index size = rule.size, width = kColumns - kColumns % size;
  const auto voxels = static_cast<double>(size * size * size);
  for (Index k0 = 0; k0 < b.n[2]; k0 += width) {
    const Index count = std::min(width, b.n[2] - k0);
    double sum[kColumns];
    float most[kColumns];
    std::fill_n(sum, kColumns, 0.0);
    std::fill_n(most, kColumns, -std::numeric_limits<float>::infinity());
    for (Index x = 0; x < size; ++x)
      for (Index y = 0; y < size; ++y) {
        const float* const row = v + b.row(i * size + x, j * size + y) + k0;
        for (Index c = 0; c < count; ++c) {
          sum[c] += row[c];
          most[c] = row[c] > most[c] ? row[c] : most[c];
        }
      }
    for (Index c0 = 0; c0 < count; c0 += size) {
      double total = 0;
      float largest = -std::numeric_limits<float>::infinity();
      for (Index c = c0; c < c0 + size; ++c) {
        const Index at = std::min(c, count - 1);  // beyond the volume its last voxel is repeated
        total += sum[at];
        largest = std::max(largest, most[at]);
      }
      to[(k0 + c0) / size] = static_cast<float>(total / voxels) > rule.air || largest > rule.bright;
    }
  }
}
MRISR_VARIANTS(brick_row, brick_row_body,
               (std::uint8_t* to, const float* v, const Box& b, Index i, Index j, const BrickRule& rule),
               (to, v, b, i, j, rule))

// How many of the 27 bricks at and around one are marked.
int around(const std::uint8_t* marked, const Box& b, Index i, Index j, Index k) {
  int count = 0;
  for (Index x = std::max<Index>(0, i - 1); x <= std::min(b.n[0] - 1, i + 1); ++x)
    for (Index y = std::max<Index>(0, j - 1); y <= std::min(b.n[1] - 1, j + 1); ++y)
      for (Index z = std::max<Index>(0, k - 1); z <= std::min(b.n[2] - 1, k + 1); ++z)
        count += marked[(x * b.n[1] + y) * b.n[2] + z];
  return count;
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

void tissue(std::uint8_t* out, const float* v, const Index n[3], const bool open[3], const TissueRule& rule,
            float* mean, std::uint8_t* spare, int threads) {
  const Box b{{n[0], n[1], n[2]}};
  local_means(mean, v, b, threads);
  const float level = level_of(mean, b, open, rule), certain = static_cast<float>(rule.certain);
  bool any = false;
  sort_row(spare, mean, level, certain, b.count(), any);
  if (!any) {
    std::fill_n(out, b.count(), std::uint8_t{1});
    return;
  }
  auto* const queue = reinterpret_cast<std::uint32_t*>(mean);  // the means have done their work
  spread(spare, b, queue);
  invert_row(spare, b.count());
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
  Background background = mark(out, v, b, 0.0f, rule, queue);
  float value = 0;
  if (background.voxels == 0 && constant_faces(v, b, value) && value != 0)
    background = mark(out, v, b, value, rule, queue);
  for (Index i = 0; i < b.count(); ++i) out[i] = background.voxels > 0 && out[i] == kReached ? 1 : 0;
  return background;
}

void bricks(std::uint8_t* out, std::uint8_t* spare, const float* v, const Index n[3], const BrickRule& rule,
            int threads) {
  MRISR_CHECK(rule.size > 0 && rule.size <= kColumns,
              "bricks: size must lie in [1, " << kColumns << "]; it is " << rule.size);
  const Box b{{n[0], n[1], n[2]}};
  Box coarse{};
  for (int d = 0; d < 3; ++d) coarse.n[d] = (n[d] + rule.size - 1) / rule.size;
  parallel_for(coarse.n[0] * coarse.n[1], 1, threads, [&](Index begin, Index end) {
    for (Index row = begin; row < end; ++row)
      brick_row(out + row * coarse.n[2], v, b, row / coarse.n[1], row % coarse.n[1], rule);
  });
  each(coarse, [&](Index i, Index j, Index k, Index at) {
    spare[at] = out[at] && around(out, coarse, i, j, k) > rule.fewest ? 1 : 0;
  });
  each(coarse, [&](Index i, Index j, Index k, Index at) { out[at] = around(spare, coarse, i, j, k) > 0 ? 1 : 0; });
}

}  // namespace mrisr::cpu
