"""What `mrisr.physics.wiener.noise_level` would find in heads cut to coarser voxels, did it not know of anatomy.

    python experiments/noise_floor.py --data SCANS HEADS [--hold-out P ...]

The noise that a cut leaves falls with the voxel, anatomy grows, so the least of many heads is what anatomy has.
HEADS: without noise, by `experiments/synthetic_heads.py`. Writes noise_floor.json: the level by cut, as a part of the
intensity scale, beside `anatomy`, whose two numbers and whose rule for slices were read off it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import record

from mrisr.data.sources import find_scans
from mrisr.evaluate.cases import Case, make_trial
from mrisr.evaluate.protocol import load_subjects
from mrisr.physics.intensity import robust_scale
from mrisr.physics.wiener import anatomy, noise_bands, noise_level

CUT, SLICES, SHARP = (("kspace", "kspace", last) for last in ("kspace", "gaussian", "supergaussian"))
CASES = [Case(f"cut {f:g}", (f,) * 3, CUT) for f in (1.0, 1.5, 2.0, 3.0)]
CASES += [Case(f"slices {f[0]:g} x {f[2]:g}", f, SLICES) for f in ((1.0, 1.0, 4.0), (1.0, 1.0, 6.0), (1.5, 1.5, 4.5))]
CASES += [Case("sharp slices 1.3 x 5", (1.3, 1.3, 5.0), SHARP)]


def rows(paths: list[Path], crop: int) -> list[dict]:
    """A row per head and cut; level None: too little foreground."""
    found = []
    for path in paths:
        subject = load_subjects(path, crop)[0]
        for case in CASES:
            trial = make_trial(subject, case)
            scale, of_axes = robust_scale(trial.scan), (trial.psf, trial.coarse.voxel_size)
            level = noise_level((trial.scan - scale.offset) / scale.scale, noise_bands(*of_axes))
            row = {"subject": subject.name, "case": case.name, "voxel_mm": [round(float(v), 3) for v in of_axes[1]]}
            row |= {"level": level if level is None else round(level, 5), "anatomy": round(anatomy(*of_axes), 5)}
            found.append(row)
            print(*row.values(), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--hold-out", nargs="+", default=[], help="beginnings of the names of people to leave out")
    parser.add_argument("--crop", type=int, default=128)
    record.add_place(parser)
    args = parser.parse_args()
    paths = [p for source in args.data for p in find_scans(source)]
    if args.hold_out:
        paths = [p for p in paths if not p.name.startswith(tuple(args.hold_out))]
    content = {"command": "python experiments/noise_floor.py --data SCANS HEADS --hold-out ...", "crop": args.crop}
    record.write("noise_floor", content | {"rows": rows(paths, args.crop)}, args.results)


if __name__ == "__main__":
    main()
