"""How long a training step waits for its pairs, on one core and with `prefetch` on a second one; and what of it is
convolutions.

    python experiments/pair_wait.py --data SCANS LABELS [--steps 60] [--record]

`student` learns as `base` does (`mrisr.train`), with one thread for its operators. Without `prefetch` the process is
held to one core, and a step makes its pairs before it begins; with it the process has a second core, on which a thread
makes the pairs of the next step meanwhile. Both are trained by turns, so that what else the machine does falls on both;
what is drawn once for many pairs is drawn before. Some steps more run under PyTorch's profiler, for the share of a
step's seconds that convolutions take, forward and backward. Writes pair_wait.json, or with --name another.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import record
import synthetic_share as study
import torch

from mrisr import third_party
from mrisr.data.labels import LabelVolume
from mrisr.train import teacher
from mrisr.train.config import TrainConfig
from mrisr.train.run import Run

SHARE = 0.2  # of the pairs from label maps, as `base` has
TURNS, PROFILED = 4, 6
CORES = {False: 1, True: 2}  # prefetch -> cores


def configuration(data: tuple[str, ...], prefetch: bool) -> TrainConfig:
    return TrainConfig(
        data=data, hold_out=tuple(study.HELD_OUT), weights=study.WEIGHTS, synthetic_share=SHARE, steps=10**6,
        prefetch=prefetch,
    )  # fmt: skip


class Timed(Run):
    """A run whose steps are timed in blocks, between which nothing of it runs."""

    def block(self, steps: int) -> tuple[float, float]:
        """(seconds, those of waiting for pairs) of some steps, after one that is not counted: its pairs are there."""
        self.advance()
        self.progress()
        for _ in range(steps):
            self.advance()
        if self._ahead is not None:
            self._ahead[1].result()
        return self.seconds["step"], self.seconds["data"]


def convolutions(run: Timed, steps: int) -> tuple[float, float]:
    """The share of the seconds of `steps` steps that convolutions take: (forward, backward)."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        seconds, _ = run.block(steps)
    of_kind = {"backward": 0.0, "forward": 0.0}
    for event in found.key_averages():
        if "conv" in event.key and event.key.startswith("aten::"):
            of_kind["backward" if "backward" in event.key else "forward"] += event.self_cpu_time_total / 1e6
    # The step before the timed ones, which `block` makes and does not count, is in the profile too.
    return tuple(of_kind[kind] / seconds * steps / (steps + 1) for kind in ("forward", "backward"))


def started(config: TrainConfig, cores: list[int]) -> Timed:
    """A run after its first step, with every whole head drawn that it will draw from."""
    hold(cores)
    run = Timed(config, record.UNRECORDED / "pair_wait", study.accelerator(config))
    run.block(0)
    for volume in run.train:
        if isinstance(volume, LabelVolume):
            volume.head(config.seed, 0)
    return run


def measured(data: tuple[str, ...], steps: int, cores: list[int]) -> list[dict]:
    """A row without and one with `prefetch`."""
    runs = {ahead: started(configuration(data, ahead), cores[: CORES[ahead]]) for ahead in CORES}
    total = {ahead: [0.0, 0.0, 0.0] for ahead in CORES}
    for _ in range(TURNS):
        for ahead, run in runs.items():
            hold(cores[: CORES[ahead]])
            began = time.process_time()
            spent = (*run.block(steps // TURNS), time.process_time() - began)
            total[ahead] = [a + b for a, b in zip(total[ahead], spent)]
    count, shares = TURNS * (steps // TURNS), {}
    for ahead, run in runs.items():
        hold(cores[: CORES[ahead]])
        shares[ahead] = convolutions(run, PROFILED)
    return [
        {
            "prefetch": ahead,
            "cores": CORES[ahead],
            "steps": count,
            "seconds_per_step": round(seconds / count, 4),
            "waiting_share": round(waiting / seconds, 4),
            "cpu_seconds_per_step": round(cpu / (count + TURNS), 4),
            "precision": "bf16" if runs[ahead].config.bfloat16_on(runs[ahead].accelerator.device) else "fp32",
            "convolutions_forward": round(shares[ahead][0], 4),
            "convolutions_backward": round(shares[ahead][1], 4),
        }
        for ahead, (seconds, waiting, cpu) in total.items()
    ]


def hold(cores: list[int]) -> None:
    """All threads of this process to some cores."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, nargs="+", metavar="PATH", help="scans and label maps, or packs")
    parser.add_argument("--steps", type=int, default=60, help=f"of each, in {TURNS} turns (default: 60)")
    parser.add_argument("--name", default="pair_wait", help="of the file (default: pair_wait)")
    record.add_place(parser, "--out")
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or args.steps < TURNS:
        parser.error(f"expected two cores and {TURNS} steps or more, found {len(cores)} and {args.steps}")
    torch.set_num_threads(1)
    teacher.PROBES = study.PROBES
    study.read_once()
    with third_party.nothing_compiled():
        rows = measured(tuple(args.data), args.steps, cores)
    content = {
        "command": f"python experiments/pair_wait.py --data SCANS LABELS --steps {args.steps} --name {args.name}",
        "preset": "student",
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    record.write(args.name, content, args.results)
    for row in rows:
        print(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
