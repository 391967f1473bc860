"""What `mrisr.physics.wiener.noise_level` would find in heads cut to coarser voxels, did it not know of anatomy.

    python experiments/noise_floor.py --data SCANS HEADS [--hold-out P ...]

The noise that a cut leaves falls with the voxel, anatomy grows, so the least of many heads is what anatomy has.
HEADS: without noise, by `experiments/synthetic_heads.py`. Prints the level by voxel, as a part of the intensity scale,
beside `anatomy`, whose two numbers were read off it.
"""

from __future__ import annotations

import argparse

import numpy as np

from mrisr.data.sources import find_scans
from mrisr.evaluate.cases import Case, make_trial
from mrisr.evaluate.protocol import load_subjects
from mrisr.physics.intensity import robust_scale
from mrisr.physics.wiener import anatomy, noise_level

WHITE = (0.5, 0.5, 0.5)
SMALL = (1e-3, 1e-3, 1e-3)  # mm: no anatomy is told from noise
FACTORS = (1.0, 1.5, 2.0, 3.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--hold-out", nargs="+", default=[], help="beginnings of the names of people to leave out")
    parser.add_argument("--crop", type=int, default=128)
    args = parser.parse_args()
    paths = [p for source in args.data for p in find_scans(source)]
    for path in paths:
        if args.hold_out and path.name.startswith(tuple(args.hold_out)):
            continue
        subject = load_subjects(path, args.crop)[0]
        for factor in FACTORS:
            trial = make_trial(subject, Case(f"cut{factor:g}", (factor,) * 3, ("kspace",) * 3))
            scale, size = robust_scale(trial.scan), trial.coarse.voxel_size
            level = noise_level((trial.scan - scale.offset) / scale.scale, SMALL, WHITE)
            found = "too little foreground" if level is None else f"{level:.4f}"
            print(
                f"{subject.name} {np.prod(size) ** (1 / 3):.2f} mm: {found}, anatomy {anatomy(size, WHITE):.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
