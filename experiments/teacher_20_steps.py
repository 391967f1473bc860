"""Twenty steps of the real teacher, on a CPU: it trains, it is saved, and it goes on bit for bit.

    python experiments/teacher_20_steps.py [--out DIR]

The preset `teacher-large` (20 to 30 M parameters) learns one batch of two synthetic patches of 24^3 by heart, in both
modes, so that minutes suffice and the loss has to fall; the last steps twice, once in one piece and once from the
checkpoint.
Writes teacher_20_steps.json and fails where a promise is not kept. Training it for real needs a GPU.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import record
import torch
from accelerate import Accelerator

from mrisr.nn.vector import MEAN
from mrisr.train import teacher
from mrisr.train.config import CONFIGS
from mrisr.train.run import Run
from mrisr.weights import registry

STEPS, AGAIN = 20, 3
PARAMETERS = (20e6, 30e6)


def config():
    """The preset, as small as it gets in everything but the network."""
    small = dict(batch=2, patch=24, synthetic=1, warmup=3, accumulate=2, precision="fp32", prefetch=False)
    return replace(CONFIGS["teacher-large"], steps=STEPS, mean_fraction=0.6, gradnl=0.0, bias=0.0, **small)


def fixed_loss(run: Run, batch) -> float:
    """The loss of the posterior mean on a batch: comparable between steps, unlike those of two modes."""
    with torch.no_grad():
        return float(run.loss_of(batch, None, MEAN)[1])


def measure(folder: Path) -> dict:
    """Do it, and say what was seen."""
    teacher.PROBES = 32
    run = Run(config(), folder, Accelerator(cpu=True))
    batch = run.sampler.batch(0, 2, 24)
    run.sampler.batch = lambda *where, **rank: batch
    before, began = fixed_loss(run, batch), time.perf_counter()
    losses = [run.advance() for _ in range(STEPS - AGAIN)]
    print(losses, flush=True)
    run.save()
    resumed = Run(config(), folder, Accelerator(cpu=True))
    resumed.sampler.batch = run.sampler.batch
    losses += [run.advance() for _ in range(AGAIN)]
    seconds = (time.perf_counter() - began) / STEPS
    again = [resumed.advance() for _ in range(AGAIN)]
    equal = all(torch.equal(a, b) for a, b in zip(run.net.parameters(), resumed.net.parameters()))
    run.save()
    found = {
        "parameters": sum(p.numel() for p in run.net.parameters()),
        "losses": [[name, round(value, 4)] for name, value in losses],
        "fixed_batch_before": round(before, 4),
        "fixed_batch_after": round(fixed_loss(run, batch), 4),
        "resumed_bit_equal": equal and again == losses[-AGAIN:],
        "seconds_per_step": round(seconds, 2),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "loads": registry.load(folder).meta["preset"] == "teacher-large",
    }
    promises = {
        "20 to 30 M parameters": PARAMETERS[0] <= found["parameters"] <= PARAMETERS[1],
        "the loss falls by a tenth at least": found["fixed_batch_after"] < 0.9 * found["fixed_batch_before"],
        "a resumed run is bit-equal": found["resumed_bit_equal"],
        "the weights load": found["loads"],
    }
    return {**found, "promises": promises, "failures": [name for name, kept in promises.items() if not kept]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    record.add_place(parser, "--out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    path = record.write(
        "teacher_20_steps", {"command": "python experiments/teacher_20_steps.py", **found}, options.results
    )
    print(f"{path}: {found['failures'] or 'every promise kept'}")
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
