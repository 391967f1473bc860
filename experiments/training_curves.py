"""Training curves from the logs of runs, side by side.

python experiments/training_curves.py teacher=runs/teacher/log.jsonl student=runs/student/log.jsonl L1=runs/l1/log.jsonl

Keeps every log as benchmarks/results/training_NAME.jsonl and draws training_curves.png beside them: gain over cubic on
the held-out people (mean, the worst case, and by kind of scan), the loss, and for distilled runs the gain of few-step
samples. Drawn are all logs that are kept; without arguments none is added.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import numpy as np
import record

from mrisr.errors import UsageError
from mrisr.io.atomic import replacing


def read(path: Path) -> list[dict]:
    """The validations of a log, by step; of a step that a resumed run repeated, the last one."""
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(f"{path}: expected a log.jsonl of a training run ({error})") from error
    by_step = {entry["step"]: entry for entry in entries if "mean" in entry}
    if not by_step:
        raise UsageError(f"{path}: holds no validation yet; expected lines with step and mean")
    return [by_step[step] for step in sorted(by_step)]


def kinds(entries: list[dict]) -> dict[str, list[float]]:
    """Kind of scan -> gain at every validation, mean of the people ("person/kind" in the log)."""
    names = [key for key in entries[0] if "/" in key and not key.startswith("steps")]
    return {
        kind: [float(np.mean([e[key] for key in names if key.endswith(f"/{kind}")])) for e in entries]
        for kind in dict.fromkeys(key.rpartition("/")[2] for key in names)
    }


def draw(runs: dict[str, list[dict]], path: Path) -> None:
    """The curves of `runs` (name -> validations) as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    every = [kind for entries in runs.values() for kind in kinds(entries)]
    shown = [kind for kind in dict.fromkeys(every) if every.count(kind) > 1 or len(runs) == 1]
    panels = ["mean", "worst case", "training loss", "samples of 1 (-), 2 (--) and 4 (:) steps", *shown]
    rows = -(-len(panels) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(12, 3.2 * rows), layout="constrained")
    panel = dict(zip(panels, axes.flat))
    for k, (name, entries) in enumerate(runs.items()):
        how = dict(ms=3, color=plt.get_cmap("tab20")(k % 20))
        curves = {"mean": "mean", "worst case": "worst", "training loss": "loss"}
        series = {title: [e[key] for e in entries] for title, key in curves.items()} | kinds(entries)
        for title in filter(panel.__contains__, series):
            label = name if title == "mean" else None
            panel[title].plot([e["step"] for e in entries], series[title], "o-", label=label, **how)
        for n, style in ((1, "-"), (2, "--"), (4, ":")):
            found = [(e["step"], e[f"steps{n}/gain"]) for e in entries if f"steps{n}/gain" in e]
            if found:
                panel[panels[3]].plot(*zip(*found), style, **how)
    for title, ax in panel.items():
        ax.set(title=title, xlabel="step")
        if title == "training loss":
            ax.set_yscale("log")
        else:
            ax.set_ylabel("gain over cubic, dB")
        ax.grid(alpha=0.3)
    for ax in list(axes.flat)[len(panels) :]:
        ax.axis("off")
    figure.legend(loc="outside lower center", ncols=6, fontsize=8)
    with replacing(path, force=True) as beside:
        figure.savefig(beside, dpi=60)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", nargs="*", metavar="NAME=LOG", help="runs to keep and draw")
    record.add_place(parser, "--out")
    args = parser.parse_args(arguments)
    for item in args.logs:
        name, equals, log = item.partition("=")
        if not equals or Path(name).name != name:
            parser.error(f"expected NAME=LOG, found {item!r}")
        read(Path(log))
        with replacing(args.results / f"training_{name}.jsonl", force=True) as beside:
            beside.write_text(Path(log).read_text(encoding="utf-8"), encoding="utf-8")
    kept = sorted(args.results.glob("training_*.jsonl"))
    if not kept:
        parser.error(f"{args.results} holds no training_*.jsonl; name the logs of runs")
    draw({path.stem.removeprefix("training_"): read(path) for path in kept}, args.results / "training_curves.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
