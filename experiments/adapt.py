"""Whether a scan of thick slices has something to teach `base`: `mrisr.upscale(..., adapt=SECONDS)`, on and off.

    python experiments/adapt.py --data SCANS [--people P ...] [--cases C ...] [--seconds S] [--pictures] [--record]

Every person is scanned whole; PSNR is of the whole head, and `gain_inside` of what lies 15 mm and more within it: the
bright rim of fat and scalp, which weighs most in a PSNR, is left out. Slices of 3, 4 and 5 voxels, the last also with
2 % noise and the sharper profile (slices5). With --pictures a plane across the slices, beside `base` and the truth.

Rows of the recipes that lost, measured by earlier forms of this script, stay in the file: `native` (the slices lie as
densely as their pixels: a squeezed head), `network` (what `base` has made up across the slices is learnt, too) and
`network-muon`. `network-measured` is what the package does (`mrisr.adapt`): nothing is learnt but what the scan has
measured. Writes adapt.json; with --record into benchmarks/results, row by row.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import numpy as np
import record
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt

import mrisr
from mrisr.adapt.seconds import STEPS, STEPS_PER_SECOND
from mrisr.evaluate import metrics
from mrisr.evaluate.baselines import BASELINES
from mrisr.evaluate.cases import CASES, Case, Trial, make_trial, subject_of
from mrisr.io import nifti
from mrisr.preview import save
from mrisr.volume import Volume

PEOPLE = ("t1w_0p9mm_b", "flair_1mm_p26", "t1w_1mm_uih_a")
_IN_PLANE = ("kspace", "kspace")
SLICES = {
    "thick3": Case("thick3", (1, 1, 3), (*_IN_PLANE, "gaussian")),
    "thick4": CASES["thick4"],
    "thick5": Case("thick5", (1, 1, 5), (*_IN_PLANE, "gaussian")),
    "slices5": Case("slices5", (1, 1, 5), (*_IN_PLANE, "supergaussian"), noise=0.02),
}
RECIPE = "network-measured"
RIM = 15.0  # mm


class Clock:
    """Seconds and processor seconds of a stage, as a progress callback."""

    def __init__(self, stage: str):
        self.stage, self.began, self.spent = stage, None, (0.0, 0.0)

    def __call__(self, stage: str, fraction: float) -> None:
        if stage != self.stage:
            return
        now = time.process_time(), time.perf_counter()
        self.began = self.began or now
        self.spent = now[0] - self.began[0], now[1] - self.began[1]


def answer(trial: Trial, threads: int, **options):
    """(what mrisr makes of the scan, the account)."""
    scan = Volume(trial.scan, trial.coarse.affine, name=trial.subject)
    how = dict(voxel_size=trial.fine.voxel_size, threads=threads, return_info=True)
    result, info = mrisr.upscale(scan, **how, **options)
    return result.data, info


def psnr(trial: Trial, image: np.ndarray, mask: np.ndarray | None = None) -> float:
    mask = trial.mask if mask is None else mask
    return metrics.psnr(trial.reference, image, mask, metrics.data_range(trial.reference))


def inside(trial: Trial) -> np.ndarray:
    """The head without its rim: bool [X, Y, Z]."""
    return distance_transform_edt(trial.mask, sampling=trial.fine.voxel_size) >= RIM


def one(trial: Trial, seconds: float, seed: int, threads: int) -> tuple[dict, dict[str, np.ndarray]]:
    """(a row of the table, the images by name)."""
    images = {"cubic": BASELINES["cubic"](trial.scan, trial.coarse, trial.fine)}
    images["base"] = answer(trial, threads)[0]
    clock = Clock("adapt")
    images["adapted"], info = answer(trial, threads, adapt=seconds, seed=seed, progress=clock)
    row = {"person": trial.subject, "case": trial.case.name, "recipe": RECIPE, "steps": info.adapt.steps, "seed": seed}
    row |= {name: round(psnr(trial, image), 3) for name, image in images.items()}
    row["gain"] = round(row["adapted"] - row["base"], 3)
    before, after = (psnr(trial, images[name], inside(trial)) for name in ("base", "adapted"))
    row["gain_inside"] = round(after - before, 3)
    row["held_back_gain"] = round(info.adapt.gain_db, 3)
    row["used"] = info.adapt.used
    row["loss"] = [round(v, 4) for v in info.adapt.loss]
    row["cpu_seconds"], row["seconds"] = (round(s, 1) for s in clock.spent)
    return row, images


def picture(trial: Trial, images: dict[str, np.ndarray], path: Path) -> None:
    """A plane across the slices: truth, cubic, base, adapted, and what adapting has changed (grey: nothing)."""
    thick = int(np.argmax(trial.coarse.voxel_size))
    through = 0 if thick else 1
    high = np.percentile(trial.reference, 99.5)
    planes = [trial.reference, *images.values()]
    planes = [np.take(v, v.shape[through] // 2, axis=through).T[::-1] / high for v in planes]
    planes.append(0.5 + 4 * (planes[-1] - planes[-2]))
    row = (255 * np.clip(np.concatenate(planes, axis=1), 0, 1)).astype(np.uint8)
    save(Image.fromarray(row), path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="SCANS", help="folder that holds the people")
    parser.add_argument("--people", nargs="+", default=list(PEOPLE))
    parser.add_argument("--cases", nargs="+", choices=SLICES, default=["thick3", "thick4", "thick5"])
    parser.add_argument("--seconds", type=float, default=3600.0, help=f"from {STEPS / STEPS_PER_SECOND:g} on all steps")
    parser.add_argument("--crop", type=int, help="voxels along the middle of the head; default: all of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", action="store_true", help="a PNG of each beside the results")
    record.add_place(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    same = {"crop": args.crop, "model": mrisr.load_model("base").sha256}
    for person in args.people:
        head = nifti.read(args.data / f"{person}.nii.gz")
        subject = subject_of(person, head.data, head.grid, args.crop)
        for case in args.cases:
            trial = make_trial(subject, SLICES[case])
            row, images = one(trial, args.seconds, args.seed, args.threads)
            print(row, flush=True)
            rows = record.merged("adapt", [row], ("person", "case", "recipe", "steps", "seed"), args.results, same)
            command = "python experiments/adapt.py --data SCANS --record"
            record.write("adapt", {"command": command, **same, "rows": rows}, args.results)
            if args.pictures:
                picture(trial, images, args.results / f"adapt_{person}_{case}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
