"""Which size of network learns most in equal time on one core: three sizes from scratch.

    python experiments/size_race.py --data SCANS LABELS [--minutes 20] [--sizes third student large] [--record]

The student as it is shipped, a third of it, and one of 8 M parameters, all of the student's make, learn mode `mean`
from the same pairs (same seed) for as many minutes of one core, and are validated as training validates, on people who
are in none of the pairs. The clock is the processor's, so that what else the machine does counts little; how many steps
it will allow is reckoned again at every checkpoint, so that every run has its whole decay of the learning rate. What is
drawn once for many pairs is drawn before the clock starts. GFLOP/s are those of the network, forward and backward, over
the whole time of a step.

Writes size_race.json after every size; the same command again goes on, also within a size.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import cases
import checkout  # noqa: F401
import record
import synthetic_share as study
import torch
from torch.utils.flop_counter import FlopCounterMode

from mrisr import third_party
from mrisr.data.labels import LabelVolume
from mrisr.nn import presets
from mrisr.nn.unet import UNetConfig
from mrisr.train import teacher, volumes
from mrisr.train.config import TrainConfig
from mrisr.train.run import Run
from mrisr.train.validate import validation_cases

DEPTH = dict(encoder=(2, 1), middle=2, decoder=(2, 2))  # the student's
SIZES = {
    "third": UNetConfig(widths=(16, 40, 72), **DEPTH),
    "student": presets.PRESETS["student"],
    "large": UNetConfig(widths=(56, 104, 208), **DEPTH),
}
RUNS = record.UNRECORDED / "size_race"  # where a size is kept until it has ended
SHARE = 0.2  # of the pairs from label maps, as `base` has
SAVE_SECONDS = 60.0
PASSES = 3  # forward, and twice as much backward
FIRST = 10  # steps before the first checkpoint, within the warm-up


def preset(size: str) -> str:
    return f"race-{size}"


def configuration(data: tuple[str, ...], size: str, seed: int) -> TrainConfig:
    """A run of `mean` alone; `trained` reckons its steps."""
    return TrainConfig(
        preset=preset(size), data=data, hold_out=tuple(study.HELD_OUT), weights=study.WEIGHTS, synthetic_share=SHARE,
        synthetic=0, steps=10**6, batch=8, patch=48, warmup=30, ema=0.998, mean_fraction=1.0, seed=seed,
    )  # fmt: skip


class Race(Run):
    """A run that knows what it has spent, also of the legs before."""

    spent = wall = waited = 0.0  # seconds: of the processor, of the clock, and of that for pairs

    def extra_state(self) -> dict:
        return {"spent": self.spent, "wall": self.wall, "waited": self.waited}

    def restore(self, state: dict) -> None:
        self.spent, self.wall, self.waited = (float(state[name]) for name in ("spent", "wall", "waited"))

    def steps(self, until: int) -> None:
        """Train on to step `until`, on the clock."""
        cpu, wall = time.process_time(), time.perf_counter()
        self.progress()
        while self.step < until:
            self.advance()
        self.waited += self.seconds["data"]
        self.spent += time.process_time() - cpu
        self.wall += time.perf_counter() - wall


def started(config: TrainConfig, folder: Path) -> Race:
    """A run after its first step, or where it was left, with every whole head drawn that it will draw from."""
    run = Race(config, folder, study.accelerator(config))
    if run.step == 0:
        run.advance()  # whose mirrored half is of other heads
    for volume in run.train:
        if isinstance(volume, LabelVolume):
            volume.head(config.seed, 0)
    return run


def trained(config: TrainConfig, size: str, minutes: float, folder: Path, blocks) -> dict:
    """The row of one size; `folder` keeps the run until it has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    run, limit = started(config, folder), 60 * minutes
    while run.spent < limit:
        each = run.spent / run.step  # seconds a step
        run.steps(run.step + (max(1, int(min(SAVE_SECONDS, limit - run.spent) / each)) if each else FIRST))
        run.config = replace(config, steps=run.step + max(1, round((limit - run.spent) * run.step / run.spent)))
        run.save()
    gains = run.choose(blocks)
    kflop = flop_per_voxel(size) / 1e3
    row = {
        "size": size,
        "parameters": sum(p.numel() for p in run.net.parameters()),
        "kflop_per_voxel": round(kflop, 1),
        "steps": run.step,
        "cpu_seconds": round(run.spent, 1),
        "wall_seconds": round(run.wall, 1),
        "pairs_share": round(run.waited / run.wall, 3),
        "gflop_per_s": round(PASSES * kflop * config.batch * config.patch**3 * run.step / run.spent / 1e6, 1),
        "average": run.chosen,
        "contrasts": {name: round(value, 4) for name, value in study.by_contrast(gains).items()},
        "gains": {name: round(value, 4) for name, value in gains.items()},
    }
    shutil.rmtree(folder)
    return row


def flop_per_voxel(size: str, edge: int = 48) -> float:
    """Of the forward pass, 2 per multiply-add."""
    net = presets.build(preset(size)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*cases.network_inputs((edge,) * 3))
    return counter.get_total_flops() / edge**3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, nargs="+", metavar="PATH", help="scans and label maps, or packs")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--minutes", type=float, default=20.0, help="of one core, a size (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    record.add_place(parser, "--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    presets.PRESETS.update({preset(size): config for size, config in SIZES.items()})
    teacher.PROBES = study.PROBES
    study.read_once()
    data = tuple(args.data)
    earlier = record.previous("size_race", args.results)[0]
    for name in ("minutes", "seed"):
        if earlier and earlier[name] != getattr(args, name):
            parser.error(f"{args.results}: holds a race of {name} {earlier[name]:g}; delete it or give another folder")
    rows = earlier.get("rows", [])
    runs = RUNS / f"{args.minutes:g}min-seed{args.seed}"
    with third_party.nothing_compiled():
        about = {
            "command": f"python experiments/size_race.py --data SCANS LABELS --minutes {args.minutes:g} "
            f"--seed {args.seed}",
            "minutes": args.minutes,
            "seed": args.seed,
            "threads": 1,
            "people": study.HELD_OUT,
        }
        blocks = validation_cases(volumes.gather_volumes(configuration(data, args.sizes[0], args.seed))[2])
        for size in args.sizes:
            if any(row["size"] == size for row in rows):
                continue
            rows.append(trained(configuration(data, size, args.seed), size, args.minutes, runs / size, blocks))
            record.write("size_race", {**about, "rows": rows}, args.results)
            print({k: v for k, v in rows[-1].items() if k != "gains"}, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
