"""What holding the result to the values that a scan can have costs, by how near to no signal it may come.

    python experiments/limits.py --data SCANS --hold-out t1w_0p9mm_b flair_1mm_p26 t1w_1mm_uih_a

Each trial of the protocol is answered once, without limits; then limits are put on that answer
(`mrisr.infer.fade.Limits`, by its LEAST). PSNR inside the head against the answer without any, and the share of the
head's voxels that are moved.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from mrisr.data.sources import find_scans
from mrisr.evaluate import metrics
from mrisr.evaluate.cases import CASES, PROTOCOL, make_trial
from mrisr.evaluate.methods import Network
from mrisr.evaluate.protocol import load_subjects
from mrisr.infer import fade, finish
from mrisr.ops.resample import apply_axes
from mrisr.physics.psf import parse_psf

LEAST = (0.0, 0.1, 0.2, 0.4)


FREE = fade.Limits(-1e30, 1e30)  # no limits


def limited(answer: np.ndarray, trial, limits) -> np.ndarray:
    psf, _, _ = parse_psf("auto", trial.coarse.voxel_size, {})
    scan = torch.from_numpy(trial.scan)
    plain = apply_axes(scan, fade.Fade.between(trial.coarse, trial.fine, psf).cubic)
    return limits.of(scan, 0.0).hold(torch.from_numpy(answer.copy()), plain).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--hold-out", nargs="+", required=True, help="beginnings of the names of the people")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(PROTOCOL))
    parser.add_argument("--crop", type=int, default=96)
    args = parser.parse_args()
    limits, network = fade.Limits, Network(threads=1)
    finish.Limits = type("Free", (), {"of": staticmethod(lambda scan, zero: FREE)})
    paths = [p for source in args.data for p in find_scans(source) if p.name.startswith(tuple(args.hold_out))]
    print("| scan | case | lowest | " + " | ".join(f"{f:g}" for f in LEAST) + " |")
    print("|---|---|" + "---|" * (1 + len(LEAST)))
    for path in paths:
        for case in args.cases:
            trial = make_trial(load_subjects(path, args.crop)[0], CASES[case])
            answer, span = network(trial), metrics.data_range(trial.reference)
            plain = metrics.psnr(trial.reference, answer, trial.mask, span)
            cells = [f"{100 * answer[trial.mask].min() / trial.scan.max():.1f} %"]
            for fade.LEAST in LEAST:
                found = limited(answer, trial, limits)
                change = metrics.psnr(trial.reference, found, trial.mask, span) - plain
                cells.append(f"{change:+.4f} dB, {100 * (found != answer)[trial.mask].mean():.3f} %")
            print(f"| {trial.subject} | {case} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
