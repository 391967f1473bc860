"""Training curves from the logs of runs, side by side.

python experiments/training_curves.py teacher=runs/teacher/log.jsonl student=runs/student/log.jsonl L1=runs/l1/log.jsonl

Keeps every log as benchmarks/results/training_NAME.jsonl and draws training_curves.png beside them: gain over cubic on
the held-out people (mean, and the worst case), the gain by kind of scan, the loss, and for distilled runs the gain of
few-step samples. Without arguments it draws the logs that are kept already.
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

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    styles = ("-", "--", "-.", ":")
    for k, (name, entries) in enumerate(runs.items()):
        steps = [e["step"] for e in entries]
        axes[0, 0].plot(steps, [e["mean"] for e in entries], "o-", ms=3, color=f"C{k}", label=name)
        axes[0, 0].plot(steps, [e["worst"] for e in entries], ":", color=f"C{k}")
        axes[1, 0].plot(steps, [e["loss"] for e in entries], "o-", ms=3, color=f"C{k}", label=name)
        for j, (kind, gains) in enumerate(kinds(entries).items()):
            axes[0, 1].plot(steps, gains, styles[k % 4], color=f"C{j}", label=kind if k == 0 else None)
        for j, n in enumerate((1, 2, 4)):
            found = [(e["step"], e[f"steps{n}/gain"]) for e in entries if f"steps{n}/gain" in e]
            if found:
                axes[1, 1].plot(*zip(*found), "o-", ms=3, color=f"C{j}", label=f"{name}, {n} steps")
    lines = ", ".join(f"{name} {styles[k % 4]}" for k, name in enumerate(runs))
    axes[0, 0].set(title="gain over cubic (dotted: worst case)", ylabel="dB", xlabel="step")
    axes[0, 1].set_title(f"by kind of scan\n({lines})", fontsize=7)
    axes[0, 1].set(ylabel="dB", xlabel="step")
    axes[1, 0].set(title="training loss", xlabel="step", yscale="log")
    axes[1, 1].set(title="samples of few steps, gain over cubic", ylabel="dB", xlabel="step")
    for ax in axes.flat:
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)
    if not axes[1, 1].lines:
        axes[1, 1].text(0.5, 0.5, "not logged by these runs", ha="center", va="center", transform=axes[1, 1].transAxes)
    with replacing(path, force=True) as beside:
        figure.savefig(beside, dpi=90)
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
    named = [args.results / f"training_{item.partition('=')[0]}.jsonl" for item in args.logs] or kept
    if not named:
        parser.error(f"{args.results} holds no training_*.jsonl; name the logs of runs")
    draw({path.stem.removeprefix("training_"): read(path) for path in named}, args.results / "training_curves.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
