"""Writes shared.h: the numbers that Python and libmrisr both need and that no bundle holds, from where Python has them.

    python csrc/runtime/shared.py [--check]

What depends on the model or on a rule that may be tuned travels in config.json of a bundle (mrisr/export/describe.py).
--check writes nothing and fails where shared.h is not what would be written; a test asks that, too.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import mrisr.grid
import mrisr.infer.back_projection
import mrisr.infer.engines.openvino
import mrisr.infer.engines.precision
import mrisr.infer.memory
import mrisr.infer.tiles
import mrisr.nn.vector
import mrisr.ops.arrays
import mrisr.physics.consistency
import mrisr.physics.intensity
import mrisr.physics.wiener
import mrisr.volume

HEADER = Path(__file__).with_name("shared.h")
HEAD = """\
// Numbers that Python and libmrisr share, beside those in a bundle's config.json. Written by csrc/runtime/shared.py
// from the modules named here: change them there.
#pragma once

#include <cstdint>

namespace mrisr::runtime::shared {
"""


def numbers() -> dict[str, dict[str, float | int]]:
    """Module -> name in C++ -> value."""
    grid, volume, memory = mrisr.grid, mrisr.volume, mrisr.infer.memory
    consistency, intensity, wiener = mrisr.physics.consistency, mrisr.physics.intensity, mrisr.physics.wiener
    openvino, precision = mrisr.infer.engines.openvino, mrisr.infer.engines.precision
    stored, target = precision.EXAMPLE_VOXELS
    return {
        "mrisr/grid.py": {
            "kSmallestVoxel": grid.SMALLEST_VOXEL,
            "kSmallestDeterminant": grid.SMALLEST_DETERMINANT,
            "kHeaderRounding": grid.HEADER_ROUNDING,
        },
        "mrisr/volume.py": {
            "kFewestVoxels": volume.FEWEST_VOXELS,
            "kLargestVoxel": volume.LARGEST_VOXEL_MM,
            "kLargestView": volume.LARGEST_VIEW_MM,
        },
        "mrisr/infer/back_projection.py": {"kBackAssumed": mrisr.infer.back_projection.ASSUMED},
        "mrisr/infer/tiles.py": {"kOverlap": mrisr.infer.tiles.OVERLAP},
        "mrisr/nn/vector.py": {
            "kTukeyApodisation": mrisr.nn.vector.APODISATION["tukey"],
            "kHannApodisation": mrisr.nn.vector.APODISATION["hann"],
        },
        "mrisr/ops/arrays.py": {"kDrop": mrisr.ops.arrays.DROP},
        "mrisr/physics/intensity.py": {"kNormalMad": intensity.NORMAL_MAD},
        "mrisr/physics/consistency.py": {
            "kNull": consistency.NULL,
            "kStrongest": consistency.STRONGEST,
            "kBisections": consistency.BISECTIONS,
        },
        "mrisr/physics/wiener.py": {
            "kMostBlocks": wiener.MOST_BLOCKS,
            "kFewestBlocks": wiener.FEWEST_BLOCKS,
            "kHighest": wiener.HIGHEST,
            "kQuiet": wiener.QUIET,
            "kQuietEnergy": wiener.QUIET_ENERGY,
            "kAnatomy": wiener.ANATOMY,
            "kGrowth": wiener.GROWTH,
            "kHeld": wiener.HELD,
            "kAlike": wiener.ALIKE,
            "kSecond": wiener.SECOND,
        },
        "mrisr/infer/memory.py": {
            "kShareOfFree": memory.SHARE_OF_FREE,
            "kOpenVinoFixed": float(memory.COSTS["openvino"].fixed),
            "kOpenVinoMaps": memory.COSTS["openvino"].maps,
            "kWeightCopies": memory.WEIGHT_COPIES,
            "kPieceBytes": float(memory.PIECE_BYTES),
            "kTargetCopies": memory.TARGET_COPIES,
            "kStepCopies": memory.STEP_COPIES,
            "kSeveralCopies": memory.SEVERAL_COPIES,
            "kCorrectionCopies": memory.CORRECTION_COPIES,
            "kSourceCopies": memory.SOURCE_COPIES,
        },
        "mrisr/infer/engines/precision.py": {
            "kTolerance": precision.TOLERANCE,
            "kTile": precision.TILE,
            "kTileSigmaRatio": precision.EXAMPLE_SIGMA_RATIO,
            "kTileWidth": math.log2(stored / target),
            "kTileNoise": precision.EXAMPLE_NOISE,
        },
        "mrisr/infer/engines/openvino.py": {"kKeepShapes": openvino.KEEP_SHAPES, "kWaitMs": openvino.WAIT_MS},
    }


def text() -> str:
    lines = [HEAD]
    for module, values in numbers().items():
        lines.append(f"// {module}")
        for name, value in values.items():
            kind = "std::int64_t" if isinstance(value, int) else "double"
            lines.append(f"constexpr {kind} {name} = {value!r};")
        lines.append("")
    return "\n".join([*lines, "}  // namespace mrisr::runtime::shared", ""])


def main() -> int:
    new = text()
    if "--check" not in sys.argv[1:]:
        HEADER.write_text(new, encoding="utf-8")
        return 0
    if HEADER.read_text(encoding="utf-8") == new:
        return 0
    print("csrc/runtime/shared.h is not what Python has: run python csrc/runtime/shared.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
