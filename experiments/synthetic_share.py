"""What each share of synthetic pairs buys, by contrast: equal processor time from the same start.

    python experiments/synthetic_share.py --data SCANS LABELS [--shares 0 0.25 0.5 1] [--seeds 0 1] [--minutes 6]

A small network learns from scratch for as many minutes of one core from each mixture of scans and of heads in random
colours made from label maps (`mrisr.data.synth`), and is validated on people who are in none of them: two T1w, one
FLAIR, one T2w. Of T2w the training scans hold two 2D scans and nothing else, so that it is the contrast that scans
teach least. What is drawn once for many pairs (a whole head from each label map) is drawn before the clock starts, for
a long run hardly notices it. Steps follow from the time that a step takes, measured in turns before the first run.
Writes synthetic_share.json and .md after every run; the same command again goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import numpy as np
import record
import torch
from accelerate import Accelerator

from mrisr import third_party
from mrisr.data.labels import LabelVolume
from mrisr.data.sources import load_volumes
from mrisr.io.atomic import replacing
from mrisr.nn import presets
from mrisr.nn.unet import UNetConfig
from mrisr.train import teacher, volumes
from mrisr.train.config import TrainConfig
from mrisr.train.run import Run
from mrisr.train.validate import validation_cases

# person -> contrast
HELD_OUT = {"t1w_0p9mm_b": "T1w", "t1w_1mm_uih_a": "T1w", "flair_1mm_p26": "FLAIR", "t2w_1mm_M2307": "T2w"}
CONTRASTS = ("T1w", "FLAIR", "T2w")
SIZE = "share-student"
NETWORK = UNetConfig(widths=(16, 32, 64), encoder=(1, 1), middle=1, decoder=(1, 1), embed=64)
# As `base` weighs them: of the many alike a few, of the rare more.
WEIGHTS = (("t1w_1p33mm", 0.35), ("t1w_1x1x2", 0.35), ("flair_1mm", 1.5), ("t1w_0p7mm", 1.5))
PROBES = 96  # pairs that a run measures its residual on
TURNS, TIMED = 2, 16  # of the measurement of a step's time, and steps of each


def configuration(data: tuple[str, ...], share: float, seed: int, steps: int) -> TrainConfig:
    """A run of `mean` alone, all of whose time goes into what is measured."""
    return TrainConfig(
        preset=SIZE, data=data, hold_out=tuple(HELD_OUT), weights=WEIGHTS, synthetic_share=share, synthetic=0,
        steps=steps, batch=8, patch=48, lr=2e-3, warmup=30, ema=0.998, mean_fraction=1.0, seed=seed,
    )  # fmt: skip


def read_once() -> None:
    """Let all runs share the volumes, and the heads drawn from them, that they would all read and draw."""
    read = functools.cache(lambda paths: load_volumes(list(paths)))
    volumes.load_volumes = lambda paths: read(tuple(paths))


def accelerator(config: TrainConfig) -> Accelerator:
    """Of the processor, in the precision that training takes there."""
    half = config.bfloat16_on(torch.device("cpu"))
    return Accelerator(mixed_precision="bf16" if half else "no", cpu=True)


def started(config: TrainConfig) -> Run:
    """A run after its first step, with every whole head drawn that it will draw from."""
    run = Run(config, record.UNRECORDED / "synthetic_share", accelerator(config))
    run.advance()  # whose mirrored half is of other heads
    for volume in run.train:
        if isinstance(volume, LabelVolume):
            volume.head(config.seed, 0)
    run.progress()  # which counts from here
    return run


def seconds_per_step(configs: dict[float, TrainConfig]) -> dict[float, float]:
    """Processor time of a step of each share, measured in turns so that what else the machine does falls on all."""
    runs = {share: started(config) for share, config in configs.items()}
    spent = dict.fromkeys(configs, 0.0)
    for _ in range(TURNS):
        for share, run in runs.items():
            run.advance()
            began = time.process_time()
            for _ in range(TIMED):
                run.advance()
            spent[share] += time.process_time() - began
    return {share: total / (TURNS * TIMED) for share, total in spent.items()}


def by_contrast(gains: dict[str, float]) -> dict[str, float]:
    """Mean gain of each contrast: of its people, each of whom is the mean of the cases."""
    people = {person: [v for name, v in gains.items() if name.startswith(f"{person}/")] for person in HELD_OUT}
    return {
        contrast: float(np.mean([np.mean(v) for person, v in people.items() if HELD_OUT[person] == contrast]))
        for contrast in CONTRASTS
    }


def trained(config: TrainConfig, cases) -> dict:
    """The row of one run."""
    run = started(config)
    began = time.process_time()
    while run.step < config.steps:
        run.advance()
    seconds, waiting = time.process_time() - began, run.progress()["data_share"]
    gains = run.choose(cases)
    return {
        "share": config.synthetic_share,
        "seed": config.seed,
        "steps": config.steps,
        "cpu_seconds": round(seconds, 1),
        "pairs_share": round(waiting, 3),
        "average": run.chosen,
        "contrasts": {name: round(value, 4) for name, value in by_contrast(gains).items()},
        "gains": {name: round(value, 4) for name, value in gains.items()},
    }


def summary(rows: list[dict]) -> list[dict]:
    """Per share: mean over the seeds and half their range, of every contrast and of the FSC beyond the band."""
    found = []
    for share in sorted({row["share"] for row in rows}):
        some = [row for row in rows if row["share"] == share]
        figures = [{**row["contrasts"], "fsc": row["gains"]["fsc"]} for row in some]
        values = {name: [f[name] for f in figures] for name in figures[0]}
        found.append({
            "share": share,
            "seeds": len(some),
            "steps": some[0]["steps"],
            "cpu_seconds": float(np.mean([row["cpu_seconds"] for row in some])),
            "pairs_share": float(np.mean([row["pairs_share"] for row in some])),
            **{name: [float(np.mean(v)), (max(v) - min(v)) / 2] for name, v in values.items()},
        })  # fmt: skip
    return found


def table(content: dict) -> str:
    """synthetic_share.md"""
    lines = [
        "# What each share of synthetic pairs buys",
        "",
        f"Gain over cubic in dB on people nobody trained on ({', '.join(HELD_OUT)}),",
        "mean of the cases that training validates on; FSC: area of the Fourier shell correlation beyond the acquired",
        f"band, all people. {content['parameters'] / 1e6:.1f} M parameters from scratch, mode `mean` alone,",
        f"{content['minutes']:g} minutes of one core for every share, from the time of a step measured before (the",
        "columns say what it became: on a machine with other work it varies); mean of the seeds, +- half their range.",
        "A difference below the spread says nothing, and minutes say little of hours. Share 0 is scans alone, 1 label",
        "maps alone. `pairs` is the part of the time that making pairs took.",
        "",
        "| share | seeds | steps | s of a core | pairs | " + " | ".join(CONTRASTS) + " | FSC |",
        "|---|---|---|---|---|" + "---|" * (len(CONTRASTS) + 1),
    ]
    for row in content["summary"]:
        cells = []
        for name in (*CONTRASTS, "fsc"):
            mean, spread = row[name]
            digits = 3 if name == "fsc" else 2
            cells.append(f"{mean:.{digits}f}" + (f" +- {spread:.{digits}f}" if row["seeds"] > 1 else ""))
        lines.append(
            f"| {row['share']:g} | {row['seeds']} | {row['steps']} | {row['cpu_seconds']:.0f} | "
            f"{row['pairs_share']:.0%} | {' | '.join(cells)} |"
        )
    lines += kinds_table(content["rows"])
    if len(content["summary"]) < 2 or min(row["seeds"] for row in content["summary"]) < 2:
        lines += ["", "One seed of a share has no spread: no difference to it here is known to be one."]
    lines += ["", f"`{content['command']}`; commit {content['commit']}, {content['date']}.", ""]
    return "\n".join(lines)


def kinds_table(rows: list[dict]) -> list[str]:
    """The gains by contrast and kind of scan, mean over people and seeds."""
    kinds = list(dict.fromkeys(name.rpartition("/")[2] for name in rows[0]["gains"] if "/" in name))
    columns = [(contrast, kind) for kind in kinds for contrast in CONTRASTS]
    lines = ["", "By kind of scan, the same gains:", ""]
    lines += ["| share | " + " | ".join(f"{kind}, {contrast}" for contrast, kind in columns) + " |"]
    lines += ["|---" * (len(columns) + 1) + "|"]
    for share in sorted({row["share"] for row in rows}):
        cells = []
        for contrast, kind in columns:
            values = [row["gains"][f"{person}/{kind}"] for row in rows if row["share"] == share
                      for person, of in HELD_OUT.items() if of == contrast]  # fmt: skip
            cells.append(f"{np.mean(values):.2f}")
        lines.append(f"| {share:g} | {' | '.join(cells)} |")
    return lines


def write(rows: list[dict], about: dict, folder: Path) -> None:
    """Both result files."""
    path = record.write("synthetic_share", {**about, "summary": summary(rows), "rows": rows}, folder)
    with replacing(path.with_suffix(".md"), force=True) as beside:
        beside.write_text(table(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, nargs="+", metavar="PATH", help="scans and label maps, or packs")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25, 0.5, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--minutes", type=float, default=6.0, help="of one core, a run (default: 6)")
    record.add_place(parser, "--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    presets.PRESETS[SIZE] = NETWORK
    teacher.PROBES = PROBES
    read_once()
    data = tuple(args.data)
    earlier = record.previous("synthetic_share", args.results)[0]
    rows = earlier.get("rows", [])
    if earlier and earlier["minutes"] != args.minutes:
        parser.error(f"{args.results} holds runs of {earlier['minutes']:g} minutes; delete them or give another folder")
    with third_party.nothing_compiled():
        steps = {float(share): n for share, n in earlier.get("steps", {}).items()}
        new = [share for share in args.shares if share not in steps]
        if new:
            measured = seconds_per_step({share: configuration(data, share, args.seeds[0], 10**6) for share in new})
            steps |= {share: max(1, round(60 * args.minutes / seconds)) for share, seconds in measured.items()}
            print("seconds a step:", measured, "steps:", steps, flush=True)
        about = {
            "command": "python experiments/synthetic_share.py --data SCANS LABELS --shares "
            f"{' '.join(f'{s:g}' for s in args.shares)} --seeds {' '.join(map(str, args.seeds))} "
            f"--minutes {args.minutes:g}",
            "minutes": args.minutes,
            "steps": {f"{share:g}": n for share, n in steps.items()},
            "parameters": sum(p.numel() for p in presets.build(SIZE).parameters()),
            "configuration": {
                name: value
                for name, value in json.loads(configuration((), 0.0, 0, 1).to_json()).items()
                if name not in ("data", "synthetic_share", "seed", "steps")
            },
        }
        held = volumes.gather_volumes(configuration(data, args.shares[0], args.seeds[0], 1))[2]
        cases = validation_cases(held)
        for seed in args.seeds:
            for share in args.shares:
                if any((row["share"], row["seed"]) == (share, seed) for row in rows):
                    continue
                rows.append(trained(configuration(data, share, seed, steps[share]), cases))
                write(rows, about, args.results)
                print({k: v for k, v in rows[-1].items() if k != "gains"}, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
