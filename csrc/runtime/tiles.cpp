#include "tiles.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.h"
#include "foreground.h"
#include "shared.h"

namespace mrisr::runtime {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr int kMostCuts = 512;  // of one axis that are worth a look

double rise(double distance, double width) {
  const double s = std::sin(0.5 * kPi * std::clamp(distance / width, 0.0, 1.0));
  return s * s;
}

// Voxels that neighbouring tiles of `size` share: mrisr/infer/tiles.py.
std::int64_t overlap_of(std::int64_t size, const Config::Tiling& t) {
  return std::min(t.overlap, std::max<std::int64_t>(shared::kOverlap, size / (2 * t.brick) * t.brick));
}

std::int64_t stride_of(std::int64_t size, const Config::Tiling& t) {
  return (size - overlap_of(size, t)) / t.align * t.align;
}

// Number of tiles of `size` along `length`.
std::int64_t tiles_along(std::int64_t length, std::int64_t size, const Config::Tiling& t) {
  if (size >= length) return 1;
  const std::int64_t stride = stride_of(size, t);
  if (stride < t.align)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "tile: " << size << " voxels are too few beside an overlap of "
                                              << overlap_of(size, t) << "; expected at least "
                                              << t.align + overlap_of(size, t));
  const std::int64_t last = round_up(length - size, t.align);
  return (last + stride - 1) / stride + 1;
}

// What a tile adds before the weights of an axis are divided by their sum: 0 on the trimmed part of a cut face.
double raw_weight(const TileAxis& axis, std::int64_t k, std::int64_t i, const Config::Tiling& t) {
  const double width = static_cast<double>(overlap_of(axis.size, t) - 2 * t.trim), at = static_cast<double>(i) + 0.5;
  const double up = k > 0 ? rise(at - static_cast<double>(t.trim), width) : 1.0;
  const double down =
      k < axis.count - 1 ? rise(static_cast<double>(axis.size) - at - static_cast<double>(t.trim), width) : 1.0;
  return up * down;
}

void cut_axis(TileAxis& axis, std::int64_t length, std::int64_t size, const Config::Tiling& t) {
  axis.size = std::min(size, length);
  axis.count = tiles_along(length, size, t);
  if (axis.count == 1) {
    axis.starts[0] = 0;
    std::fill_n(axis.weights, axis.size, 1.0f);
    return;
  }
  const std::int64_t stride = stride_of(size, t), last = round_up(length - size, t.align);
  for (std::int64_t k = 0; k < axis.count; ++k) axis.starts[k] = std::min(k * stride, last);
  for (std::int64_t k = 0; k < axis.count; ++k)
    for (std::int64_t i = 0; i < size; ++i) {
      const std::int64_t voxel = axis.starts[k] + i;
      double sum = 0;
      for (std::int64_t other = 0; other < axis.count; ++other) {
        const std::int64_t inside = voxel - axis.starts[other];
        if (inside >= 0 && inside < size) sum += raw_weight(axis, other, inside, t);
      }
      axis.weights[k * size + i] = static_cast<float>(raw_weight(axis, k, i, t) / sum);
    }
}

// Move an axis to the box, and let the residual fade where the box ends inside the volume.
void place(TileAxis& axis, std::int64_t start, std::int64_t stop, std::int64_t full, const Config::Tiling& t) {
  const auto fade = [&](std::int64_t i) {
    return static_cast<float>(rise(static_cast<double>(i) + 0.5, static_cast<double>(t.fade)));
  };
  float* const end = axis.weights + (axis.count - 1) * axis.size;
  for (std::int64_t i = 0; i < axis.size && start > 0; ++i) axis.weights[i] *= fade(i);
  for (std::int64_t i = 0; i < axis.size && stop < full; ++i) end[i] *= fade(axis.size - 1 - i);
  for (std::int64_t k = 0; k < axis.count; ++k) axis.starts[k] += start;
}

struct Cut {
  std::int64_t size, count;
};

// Every useful cut of an axis, one for each number of tiles: of several sizes the smallest is cheapest.
int useful_cuts(Cut* cuts, std::int64_t length, const Config& config) {
  int count_of_cuts = 0;
  cuts[count_of_cuts++] = {length, 1};
  for (std::int64_t size = smallest_tile(config); size < length; size += config.tiling.brick) {
    const std::int64_t count = tiles_along(length, size, config.tiling);
    Cut* same = std::find_if(cuts, cuts + count_of_cuts, [&](const Cut& c) { return c.count == count; });
    if (same != cuts + count_of_cuts)
      same->size = std::min(same->size, size);
    else if (count_of_cuts < kMostCuts)
      cuts[count_of_cuts++] = {size, count};
  }
  return count_of_cuts;
}

Triple cheapest_tile(const Triple& extent, std::int64_t most, const Config& config) {
  Cut cuts[3][kMostCuts];
  int count[3];
  Triple best{};
  for (int d = 0; d < 3; ++d) {
    count[d] = useful_cuts(cuts[d], extent[d], config);
    best[d] = std::min(smallest_tile(config), extent[d]);
  }
  double cheapest = std::numeric_limits<double>::infinity();
  for (int a = 0; a < count[0]; ++a)
    for (int b = 0; b < count[1]; ++b)
      for (int c = 0; c < count[2]; ++c) {
        const Cut cut[3] = {cuts[0][a], cuts[1][b], cuts[2][c]};
        const double voxels = static_cast<double>(cut[0].size) * cut[1].size * cut[2].size;
        const double cost = voxels * cut[0].count * cut[1].count * cut[2].count;
        if (cost < cheapest && voxels <= static_cast<double>(most)) {
          best = {cut[0].size, cut[1].size, cut[2].size};
          cheapest = cost;
        }
      }
  return best;
}

bool any(const std::uint8_t* bricks, const Triple& n) {
  return std::any_of(bricks, bricks + product(n), [](std::uint8_t b) { return b != 0; });
}

// First and last brick with foreground along an axis.
void foreground_range(const std::uint8_t* bricks, const Triple& n, int axis, std::int64_t& first, std::int64_t& last) {
  first = n[axis];
  last = -1;
  Triple at{};
  for (at[0] = 0; at[0] < n[0]; ++at[0])
    for (at[1] = 0; at[1] < n[1]; ++at[1])
      for (at[2] = 0; at[2] < n[2]; ++at[2])
        if (bricks[(at[0] * n[1] + at[1]) * n[2] + at[2]]) {
          first = std::min(first, at[axis]);
          last = std::max(last, at[axis]);
        }
}

void foreground_box(TilePlan& plan, const std::uint8_t* bricks, const Config& config) {
  const auto& t = config.tiling;
  const Triple n = brick_counts(plan.shape, config);
  const bool all = !any(bricks, n);
  for (int d = 0; d < 3; ++d) {
    plan.start[d] = 0;
    plan.stop[d] = round_up(plan.shape[d], t.brick);
    if (all) continue;
    std::int64_t first, last;
    foreground_range(bricks, n, d, first, last);
    plan.start[d] = std::max<std::int64_t>(0, first * t.brick - t.margin) / t.align * t.align;
    plan.stop[d] = std::min(plan.stop[d], (last + 1) * t.brick + t.margin);
  }
}

// The box holds a whole tile: as much of it as can be inside the volume, the rest beyond the volume's end.
void grow_box(TilePlan& plan, const Triple& size, const Config& config) {
  for (int d = 0; d < 3; ++d) {
    const std::int64_t inside = std::max<std::int64_t>(0, round_up(plan.shape[d], config.tiling.brick) - size[d]);
    if (plan.stop[d] - plan.start[d] >= size[d]) continue;
    plan.start[d] = std::min(plan.start[d], inside) / config.tiling.align * config.tiling.align;
    plan.stop[d] = plan.start[d] + size[d];
  }
}

}  // namespace

std::int64_t most_starts(std::int64_t n, const Config& config) {
  return round_up(n, config.tiling.brick) / config.tiling.align + 2;
}

std::int64_t most_weights(std::int64_t n, const Config& config) {
  // A tile has at least align + overlap voxels and moves on by at least half of what it has beyond the overlap.
  const std::int64_t whole = round_up(n, config.tiling.brick) + config.tiling.align;
  return std::max(whole, most_starts(n, config) * (2 * config.tiling.align + config.tiling.overlap) + 4 * whole);
}

Triple brick_counts(const Triple& shape, const Config& config) {
  Triple n{};
  for (int d = 0; d < 3; ++d) n[d] = round_up(shape[d], config.tiling.brick) / config.tiling.brick;
  return n;
}

std::int64_t smallest_tile(const Config& config) { return config.tiling.smallest; }

void foreground_bricks(const float* normalised, const Triple& shape, const Config& config, std::uint8_t* bricks,
                       std::uint8_t* spare, int threads) {
  const auto& t = config.tiling;
  const BrickRule rule{t.brick, static_cast<float>(t.air), static_cast<float>(t.bright * t.air),
                       static_cast<int>(t.fewest_neighbours)};
  cpu::bricks(bricks, spare, normalised, shape.data(), rule, threads);
}

void plan_tiles(TilePlan& plan, const Triple& shape, const std::uint8_t* bricks, const Triple& tile, bool fixed,
                std::int64_t most, const Config& config) {
  plan.shape = shape;
  foreground_box(plan, bricks, config);
  if (fixed) grow_box(plan, tile, config);
  const Triple extent = plan.extent();
  Triple sizes = extent;
  if (tile[0] != 0)
    for (int d = 0; d < 3; ++d) sizes[d] = std::min(round_up(tile[d], config.tiling.brick), extent[d]);
  else if (product(extent) > most)
    sizes = cheapest_tile(extent, most, config);
  for (int d = 0; d < 3; ++d) {
    cut_axis(plan.axes[d], extent[d], sizes[d], config.tiling);
    place(plan.axes[d], plan.start[d], plan.stop[d], shape[d], config.tiling);
  }
}

bool holds_foreground(const TilePlan& plan, const Triple& index, const std::uint8_t* bricks, const Config& config) {
  const auto& t = config.tiling;
  const Triple n = brick_counts(plan.shape, config);
  if (!any(bricks, n)) return true;
  std::int64_t low[3], high[3];
  for (int d = 0; d < 3; ++d) {
    const TileAxis& axis = plan.axes[d];
    const float* weights = axis.weights + index[d] * axis.size;
    std::int64_t first = 0, last = axis.size - 1;  // a trimmed rim does not reach the output
    while (first < last && weights[first] == 0) ++first;
    while (last > first && weights[last] == 0) --last;
    low[d] = std::max<std::int64_t>(0, axis.starts[index[d]] + first - t.margin) / t.brick;
    high[d] = std::min(n[d], (axis.starts[index[d]] + last + t.margin) / t.brick + 1);
  }
  for (std::int64_t i = low[0]; i < high[0]; ++i)
    for (std::int64_t j = low[1]; j < high[1]; ++j)
      for (std::int64_t k = low[2]; k < high[2]; ++k)
        if (bricks[(i * n[1] + j) * n[2] + k]) return true;
  return false;
}

}  // namespace mrisr::runtime
