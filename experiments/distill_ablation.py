"""What each ingredient of the distillation buys: every one left out once, two seeds, on people nobody trained on.

    python experiments/distill_ablation.py --data SCANS [--work DIR] [--seeds 0 1] [--steps 240]

A small teacher and a small student that has been trained a little, then the student distilled with everything, with
each ingredient left out, and trained on without a teacher for as many network passes; beside them a network of the
student's size with one step and an absolute loss (L1) for as many passes in all. Minutes a run on one core. The
same command again goes on; DIR (default out/distill_ablation) keeps the runs. Writes distill_ablation.json and .md into
benchmarks/results after every run.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import numpy as np
import record
import torch

from mrisr.data.sources import find_scans, load_volumes
from mrisr.evaluate import metrics
from mrisr.io.atomic import replacing
from mrisr.nn import presets
from mrisr.nn.unet import UNetConfig
from mrisr.train import loop, run, teacher, volumes
from mrisr.train.config import DistillConfig, TrainConfig
from mrisr.train.validate import SAMPLED, reconstructed, sample, validation_cases
from mrisr.weights import registry

HELD_OUT = ("t1w_0p9mm_b", "flair_1mm_p26", "t1w_1mm_uih_a")
SIZES = {
    "ablation-teacher": UNetConfig(
        widths=(24, 48, 96), encoder=(1, 1), middle=2, decoder=(1, 1), norm="group", attention=1, head_dim=32, embed=64
    ),
    "ablation-student": UNetConfig(widths=(16, 32, 64), encoder=(1, 1), middle=1, decoder=(1, 1), embed=64),
}
LEFT_OUT = ("halving", "ladder", "hints", "ground_truth", "teacher_mean")
DETERMINISTIC = "L1 network"
VARIANTS = ("full", *(f"no {name}" for name in LEFT_OUT), "no teacher", DETERMINISTIC)
COUNTS = ("mean", 1, 2, 4)
BLOCK = 64  # voxels along a measured block
PROBES = 96  # pairs that a run measures its residual on
DEARER = 1.5  # a distilling step, in the network passes of a plain one


def configurations(data: tuple[str, ...], seed: int, steps: int, work: Path) -> dict[str, TrainConfig]:
    """Every run of a seed by name; the first two are what the others begin with. One teacher serves all seeds."""
    small = dict(data=data, batch=4, patch=32, warmup=20, synthetic=2, seed=seed, gradnl=0.0, bias=0.0, ema=0.995,
                 validate_every=10**6, save_every=200)  # fmt: skip
    student = dict(small, preset="ablation-student", lr=2e-3)
    start, teacher = (str(work / name / "weights.safetensors") for name in (f"{seed}-start", "0-teacher"))
    full = DistillConfig(**student, init=start, teacher=teacher, steps=steps, mean_fraction=0.5)
    found = {
        "teacher": TrainConfig(
            **{**small, "seed": 0}, preset="ablation-teacher", lr=2e-3, steps=4 * steps, mean_fraction=0.4
        ),
        "start": TrainConfig(**student, steps=steps, mean_fraction=0.5),
        "full": full,
        **{f"no {name}": replace(full, **{name: 0.0}) for name in LEFT_OUT},
    }
    found["no teacher"] = TrainConfig(**student, init=start, steps=round(DEARER * steps), mean_fraction=0.5)
    found[DETERMINISTIC] = TrainConfig(**student, steps=steps + round(DEARER * steps), mean_fraction=1.0, loss="l1")
    return found


def read_once() -> None:
    """Let all runs of a seed share the volumes that they would all read."""
    teacher.PROBES = PROBES
    gathered = functools.cache(
        lambda data, seed, synthetic: volumes.gather_volumes(TrainConfig(data=data, seed=seed, synthetic=synthetic))
    )
    run.gather_volumes = lambda config: gathered(config.data, config.seed, config.synthetic)


def measure(weights: Path, cases, counts=COUNTS) -> dict:
    """Gain over cubic (dB), SSIM, and area of the Fourier shell correlation beyond the acquired band: mean over the
    cases, for the posterior mean and for 1, 2 and 4 steps."""
    model = registry.load(weights)
    few, rows = model.meta.get("few_steps", ()), {}
    for count in counts:
        values = []
        for case in cases:
            with torch.no_grad():
                found = (
                    reconstructed(model.denoiser, case) if count == "mean" else sample(model.denoiser, case, count, few)
                )
            reference, image = ((case.y + v)[0, 0].numpy() for v in (case.target, found))
            ssim = metrics.ssim3d(reference, image, case.mask[0, 0].numpy(), case.data_range)
            values.append((case.gain(found), ssim, case.beyond(found)[0]))
        rows[str(count)] = dict(zip(("gain", "ssim", "fsc"), np.mean(values, axis=0).tolist()))
    return rows


def summary(runs: dict) -> list[dict]:
    """Per variant: mean over the seeds and half their range, of every figure."""
    rows = []
    for name in ("teacher", "start", *VARIANTS):
        found = [entry["figures"] for key, entry in runs.items() if key.split("-", 1)[1] == name]
        if not found:
            continue
        row = {"variant": name, "seeds": len(found)}
        for count in map(str, COUNTS):
            for figure in ("gain", "ssim", "fsc") if count in found[0] else ():
                values = [f[count][figure] for f in found]
                row[f"{count}/{figure}"] = [float(np.mean(values)), (max(values) - min(values)) / 2]
        rows.append(row)
    return rows


def table(content: dict) -> str:
    """The summary in Markdown."""
    lines = [
        "# What each ingredient of the distillation buys",
        "",
        f"Held-out people {', '.join(HELD_OUT)}, cases {', '.join(SAMPLED)}, the middle {BLOCK}^3 voxels. Gain over",
        "cubic in dB, SSIM, and area of the Fourier shell correlation beyond the acquired band; mean of the students'",
        "seeds, +- half their range; one teacher for all. A difference below the spread says nothing. `no teacher` is",
        "plain training for as many passes; `start` is what every student began with; the teacher's row is its ODE;",
        f"`{DETERMINISTIC}` is of the student's size, one step, absolute loss, for as many passes from its own start.",
        "",
        "| variant | seeds | " + " | ".join(f"{c} {f}" for c in _headings() for f in ("dB", "SSIM", "FSC")) + " |",
        "|---|---|" + "---|" * (3 * len(COUNTS)),
    ]
    for row in content["summary"]:
        cells = []
        for count in map(str, COUNTS):
            for figure, digits in (("gain", 2), ("ssim", 4), ("fsc", 3)):
                if f"{count}/{figure}" not in row:
                    cells.append("-")
                    continue
                mean, spread = row[f"{count}/{figure}"]
                # One seed has no spread to state.
                cells.append(f"{mean:.{digits}f}" + (f" +- {spread:.{digits}f}" if row["seeds"] > 1 else ""))
        lines.append(f"| {row['variant']} | {row['seeds']} | " + " | ".join(cells) + " |")
    students = [row for row in content["summary"] if row["variant"] != "teacher"]
    if len(students) <= len(VARIANTS) or min(row["seeds"] for row in students) < 2:
        lines += ["", "Unfinished: variants or second seeds are missing, and no difference here is known to be one."]
    done = ", ".join(f"{name}: {c['steps']} steps" for name, c in content["configurations"].items())
    lines += ["", f"{done}. Command: `{content['command']}`; commit {content['commit']}, {content['date']}.", ""]
    return "\n".join(lines)


def _headings() -> list[str]:
    return ["mean" if c == "mean" else f"{c} step{'s' if c > 1 else ''}" for c in COUNTS]


def write(runs: dict, configured: dict, command: str, folder: Path) -> None:
    """Both result files."""
    plain = {name: {k: v for k, v in json.loads(c.to_json()).items() if k not in ("data", "init", "teacher", "seed")}
             for name, c in configured.items()}  # fmt: skip
    path = record.write(
        "distill_ablation",
        {"command": command, "configurations": plain, "summary": summary(runs), "runs": runs},
        folder,
    )
    with replacing(path.with_suffix(".md"), force=True) as beside:
        beside.write_text(table(json.loads(path.read_text())), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="SCANS", help="folder that holds the held-out people too")
    parser.add_argument("--work", type=Path, default=checkout.ROOT / "out" / "distill_ablation")
    record.add_place(parser, "--out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=240, help="of a distillation")
    options = parser.parse_args()
    presets.PRESETS.update(SIZES)
    paths = find_scans(options.data)
    data = tuple(str(p) for p in paths if not p.name.startswith(HELD_OUT))
    read_once()
    cases = validation_cases(load_volumes([p for p in paths if p.name.startswith(HELD_OUT)]), BLOCK)
    cases = [case for case in cases if case.name.rpartition("/")[2] in SAMPLED]
    command = f"python experiments/distill_ablation.py --data SCANS --steps {options.steps}"
    store = options.work / "runs.json"
    runs = json.loads(store.read_text()) if store.exists() else {}
    for seed in options.seeds:
        configured = configurations(data, seed, options.steps, options.work)
        for name, config in configured.items():
            key = "0-teacher" if name == "teacher" else f"{seed}-{name}"
            if key in runs:
                continue
            began, folder = time.process_time(), options.work / key.replace(" ", "-")
            loop.train(config, folder)
            figures = measure(folder / "weights.safetensors", cases, COUNTS[:1] if name == DETERMINISTIC else COUNTS)
            runs[key] = {"figures": figures, "cpu_seconds": round(time.process_time() - began, 1)}
            with replacing(store, force=True) as beside:
                beside.write_text(json.dumps(runs))
            write(runs, configured, command, options.results)
            print(key, runs[key]["cpu_seconds"], {c: round(f["gain"], 3) for c, f in figures.items()}, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
