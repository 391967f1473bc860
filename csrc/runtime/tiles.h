// Which part of a volume the network sees: mrisr/infer/tiles.py. All arrays are the caller's; nothing is allocated.
#pragma once

#include <cstdint>

#include "bundle.h"
#include "geometry.h"

namespace mrisr::runtime {

inline std::int64_t round_up(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Tiles along one axis: starts[k] in target voxels, weights[k * size + i] of voxel starts[k] + i.
struct TileAxis {
  std::int64_t size, count;
  std::int64_t* starts;
  float* weights;
};

struct TilePlan {
  Triple shape, start, stop;  // of the target; of the processed box, whose stop may pass the volume's end
  TileAxis axes[3];

  Triple tile() const { return {axes[0].size, axes[1].size, axes[2].size}; }
  std::int64_t count() const { return axes[0].count * axes[1].count * axes[2].count; }
  Triple extent() const { return {stop[0] - start[0], stop[1] - start[1], stop[2] - start[2]}; }
};

// Sizes of the arrays of one axis of n target voxels, whatever the box.
std::int64_t most_starts(std::int64_t n, const Config& config);
std::int64_t most_weights(std::int64_t n, const Config& config);

Triple brick_counts(const Triple& shape, const Config& config);
std::int64_t smallest_tile(const Config& config);

// bricks, spare [brick_counts]: 1 where tissue is.
void foreground_bricks(const float* normalised, const Triple& shape, const Config& config, std::uint8_t* bricks,
                       std::uint8_t* spare, int threads);

// given: voxels of a tile, all 0: the whole box where it has at most `most` voxels, else the cheapest tile that has.
// fixed: no tile is smaller than `given`; the box grows to it, beyond the volume's end where that is nearer.
// plan.axes[].starts and .weights point to arrays already.
void plan_tiles(TilePlan& plan, const Triple& shape, const std::uint8_t* bricks, const Triple& given, bool fixed,
                std::int64_t most, const Config& config);

// Whether tile (i, j, k) reaches any foreground.
bool holds_foreground(const TilePlan& plan, const Triple& index, const std::uint8_t* bricks, const Config& config);

}  // namespace mrisr::runtime
