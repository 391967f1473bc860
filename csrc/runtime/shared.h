// Numbers that Python and libmrisr share, beside those in a bundle's config.json. Written by csrc/runtime/shared.py
// from the modules named here: change them there.
#pragma once

#include <cstdint>

namespace mrisr::runtime::shared {

// mrisr/grid.py
constexpr double kSmallestVoxel = 1e-06;
constexpr double kSmallestDeterminant = 0.0001;
constexpr double kHeaderRounding = 0.0001;

// mrisr/volume.py
constexpr std::int64_t kFewestVoxels = 2;
constexpr double kLargestVoxel = 100.0;
constexpr double kLargestView = 5000.0;

// mrisr/infer/back_projection.py
constexpr double kBackAssumed = 0.5;

// mrisr/infer/tiles.py
constexpr std::int64_t kOverlap = 24;

// mrisr/nn/vector.py
constexpr double kTukeyApodisation = 0.5;
constexpr double kHannApodisation = 1.0;

// mrisr/ops/arrays.py
constexpr double kDrop = 1e-09;

// mrisr/physics/intensity.py
constexpr double kNormalMad = 1.4826;

// mrisr/physics/consistency.py
constexpr double kNull = 1e-13;
constexpr double kStrongest = 1000000.0;
constexpr std::int64_t kBisections = 24;

// mrisr/physics/wiener.py
constexpr std::int64_t kMostBlocks = 40000;
constexpr std::int64_t kFewestBlocks = 64;
constexpr std::int64_t kHighest = 10;
constexpr double kQuiet = 0.1;
constexpr double kQuietEnergy = 0.486518;
constexpr double kAnatomy = 0.006;
constexpr double kGrowth = 1.3;
constexpr double kHeld = 0.5;
constexpr double kAlike = 0.999;
constexpr double kSecond = 0.9;

// mrisr/infer/memory.py
constexpr double kShareOfFree = 0.6;
constexpr double kOpenVinoFixed = 120000000.0;
constexpr double kOpenVinoMaps = 4.0;
constexpr double kWeightCopies = 2.0;
constexpr double kPieceBytes = 32.0;
constexpr double kTargetCopies = 5.0;
constexpr double kStepCopies = 2.0;
constexpr double kSeveralCopies = 3.0;
constexpr double kCorrectionCopies = 2.0;
constexpr double kSourceCopies = 6.0;

// mrisr/infer/engines/precision.py
constexpr double kTolerance = 0.025;
constexpr std::int64_t kTile = 32;
constexpr double kTileSigmaRatio = 20.0;
constexpr double kTileWidth = 0.5145731728297582;
constexpr double kTileNoise = 0.02;

// mrisr/infer/engines/openvino.py
constexpr std::int64_t kKeepShapes = 3;
constexpr std::int64_t kWaitMs = 50;

}  // namespace mrisr::runtime::shared
