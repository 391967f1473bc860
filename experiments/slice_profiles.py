"""Whether the spectrum tells the profile of thick slices, and what it is worth to know it.

    python experiments/slice_profiles.py --data SCANS --hold-out t1w_0p9mm_b flair_1mm_p26 t1w_1mm_uih_a \
        --out benchmarks/results/slice_profiles.json

Every scan is cut into slices of each profile, along each of its axes, with noise; `slice_profile` is asked which it
was. Then, on the people that were held out, the PSNR of the network's answer told each profile where each is true.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from mrisr.api import upscale
from mrisr.data.sources import find_scans
from mrisr.evaluate import metrics
from mrisr.evaluate.cases import Case, Trial, make_trial
from mrisr.evaluate.protocol import load_subjects
from mrisr.io.atomic import replacing
from mrisr.physics.acquired import slice_profile, slice_tilt

KINDS = ("gaussian", "supergaussian", "kspace")
THICK = (2.0, 3.0, 5.0)
CUTS = {"1 x 1 x 4": ((1, 1, 4), 0.0), "1.3 x 1.3 x 5, 2 % noise": ((1.3, 1.3, 5), 0.02)}


def sliced(axis: int, factor: float, kind: str, noise: float) -> Case:
    factors, profile = [1.0] * 3, ["kspace"] * 3
    factors[axis], profile[axis] = factor, kind
    return Case("slices", tuple(factors), tuple(profile), noise=noise)


def told_apart(paths) -> dict:
    answers: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    tilts: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for path in paths:
        subject = load_subjects(path, None)[0]
        for axis in range(3):
            for factor in THICK:
                for kind in KINDS:
                    trial = make_trial(subject, sliced(axis, factor, kind, 0.02))
                    size = trial.coarse.voxel_size
                    answers[kind][str(slice_profile(trial.scan, size, axis))] += 1
                    known = [slice_tilt(trial.scan, size, axis, b) for b in range(3) if b != axis]
                    known = [tilt for tilt in known if tilt is not None]
                    tilts[kind] += [float(np.mean(known))] if known else []
        print(path.name, {kind: dict(found) for kind, found in answers.items()}, flush=True)
    return {
        kind: {
            "answers": dict(answers[kind]),
            "tilt_db": round(float(np.mean(tilts[kind])), 2),
            "tilt_std_db": round(float(np.std(tilts[kind])), 2),
        }
        for kind in KINDS
    }


def answered(trial: Trial, psf) -> float:
    size = tuple(float(v) for v in trial.fine.voxel_size)
    answer = upscale(trial.scan, affine=trial.coarse.affine, voxel_size=size, psf=psf, consistency="off", threads=1)
    return metrics.psnr(trial.reference, answer, trial.mask, metrics.data_range(trial.reference))


def worth(paths) -> dict:
    """cut -> true profile -> told (or "auto") -> dB against being told the truth, mean of the people."""
    rows: dict = {}
    for name, (factors, noise) in CUTS.items():
        for true in KINDS:
            lost: dict[str, list[float]] = {told: [] for told in (*KINDS, "auto")}
            for path in paths:
                case = Case("slices", factors, ("kspace", "kspace", true), noise=noise)
                trial = make_trial(load_subjects(path, 112)[0], case)
                size = [float(v) for v in trial.coarse.voxel_size]
                stated = {told: [("kspace", size[0]), ("kspace", size[1]), (told, size[2])] for told in KINDS}
                found = {told: answered(trial, psf) for told, psf in (stated | {"auto": "auto"}).items()}
                for told, value in found.items():
                    lost[told].append(value - found[true])
            rows.setdefault(name, {})[true] = {told: round(float(np.mean(v)), 2) for told, v in lost.items()}
            print(name, true, rows[name][true], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="isotropic scans")
    parser.add_argument("--hold-out", nargs="+", required=True, help="beginnings of the names of the people")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    paths = [p for source in args.data for p in find_scans(source)]
    held_out = [p for p in paths if p.name.startswith(tuple(args.hold_out))]
    record = {
        "what": "answers of slice_profile by true profile; dB that being told another profile than the true one costs",
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "scans": [p.name for p in paths],
        "thickness": THICK,
        "told_apart": told_apart(paths),
        "held_out": [p.name for p in held_out],
        "worth_db": worth(held_out),
    }
    with replacing(args.out, force=True) as beside:
        Path(beside).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
