"""Has diffusion earned its keep? Interpolation, a regression, an L1 network, student and teacher in one table.

python benchmarks/comparison.py --data SCANS --l1 runs/l1/weights.safetensors --teacher teacher-small \
    --earlier base-v1=base-v1.safetensors

Writes comparison.json, comparison.md and pictures (scan, cubic, student, teacher, reference, error) of the held-out
people into benchmarks/results. By default the middle 112^3 voxels of each head, so that a teacher's many steps take
minutes on a CPU; `--crop 0` takes whole heads. Rows whose weights are not given are left out, and the questions about
them too. The L1 network's equal is the general network (base-v3), not `mean`: the networks for 2D and 3D began with the
L1 network and learnt longer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import checkout  # noqa: F401
import record

from mrisr.evaluate import report as reports
from mrisr.evaluate.cases import PROTOCOL
from mrisr.evaluate.methods import build_methods, describe_models, pick_cases
from mrisr.evaluate.pictures import save_comparison
from mrisr.evaluate.protocol import find_volumes, load_subjects, run_protocol

HELD_OUT = ("t1w_0p9mm_b", "flair_1mm_p26", "t1w_1mm_uih_a")
EARLIER = "base-"  # how the names of earlier versions begin
PEER = "base-v3"  # the general network: began with the weights that the L1 network began with, and learnt as long
TRAINING = ("t1w_0p7mm_a", "t1w_1mm_c", "flair_1mm_p19")
PICTURED = ("iso2", "thick4")


def method_names(l1: str | None, teacher: str | None, teacher_steps: int, earlier: Sequence[str] = ()) -> list[str]:
    """What `mrisr evaluate --methods` would be given; `earlier`: NAME=PATH of earlier versions."""
    names = ["cubic", "zerofill", "linear", *earlier]
    names += [f"L1={l1}"] if l1 else []
    names += ["mean=mrisr", *(f"mean-ensemble{n}=mrisr@ensemble{n}" for n in (2, 4, 8))]
    names += [f"sample-{n}=mrisr@sample{n}" for n in (1, 2, 4)]
    if teacher:
        names += [f"teacher-mean={teacher}", f"teacher-{teacher_steps}={teacher}@sample{teacher_steps}"]
    return names


def verdicts(summary: list[dict]) -> list[dict]:
    """The questions that the table has to answer, each with its figures and whether the bar is met."""
    rows = {entry["method"]: entry["mean"] for entry in summary}
    worst = {entry["method"]: entry["worst"] for entry in summary}
    teacher = next((name for name in rows if name.startswith("teacher-") and name != "teacher-mean"), None)
    questions = []

    def ask(question: str, needed: tuple[str | None, ...], answer) -> None:
        if all(name in rows for name in needed):
            holds, figures = answer(*(rows[name] for name in needed))
            questions.append({"question": question, "met": bool(holds), "figures": figures})

    ask(
        "mean: at least 1.0 dB over cubic, and every case gains",
        ("mean",),
        lambda m: (
            m["gain"] >= 1.0 and worst["mean"]["gain"] > 0,
            f"{m['gain']:+.2f} dB, worst {worst['mean']['gain']:+.2f} dB",
        ),
    )
    ask(
        f"{PEER}, of equal size and budget: within 0.05 dB of the L1 network, or better",
        (PEER, "L1"),
        lambda m, l1: (m["psnr"] >= l1["psnr"] - 0.05, f"{m['psnr'] - l1['psnr']:+.2f} dB"),
    )
    for name in (name for name in rows if name.startswith(EARLIER)):
        ask(
            f"mean: better than {name}",
            ("mean", name),
            lambda m, e: (m["psnr"] > e["psnr"], f"{m['psnr'] - e['psnr']:+.2f} dB"),
        )
    for n in (1, 2, 4):
        ask(
            f"sample, {n} steps: better FSC and HFEN than the L1 network",
            (f"sample-{n}", "L1"),
            lambda s, l1: (
                s["fsc_beyond"] > l1["fsc_beyond"] and s["hfen"] < l1["hfen"],
                f"FSC beyond {s['fsc_beyond'] - l1['fsc_beyond']:+.3f}, HFEN {s['hfen'] - l1['hfen']:+.3f}",
            ),
        )
    ask(
        "student: within 0.15 dB of the teacher's mean",
        ("mean", "teacher-mean"),
        lambda m, t: (m["psnr"] >= t["psnr"] - 0.15, f"{m['psnr'] - t['psnr']:+.2f} dB"),
    )
    ask(
        f"student, 4 steps: within 5 % of the FSC area of {teacher}",
        ("sample-4", teacher),
        lambda s, t: (s["fsc_area"] >= 0.95 * t["fsc_area"], f"{s['fsc_area'] / t['fsc_area'] - 1:+.1%}"),
    )
    ask(
        "ensemble of 8: better than one look",
        ("mean-ensemble8", "mean"),
        lambda e, m: (
            e["psnr"] > m["psnr"],
            f"{e['psnr'] - m['psnr']:+.3f} dB, SSIM {e['ssim'] - m['ssim']:+.4f}, "
            f"FSC beyond {e['fsc_beyond'] - m['fsc_beyond']:+.3f}, {e['seconds'] / m['seconds']:.1f}x the time",
        ),
    )
    return questions


def render(report: dict) -> str:
    """comparison.md from the report."""
    lines = ["# Comparison", "", f"`{report['command']}`", "", "| question | answer | figures |", "|---|---|---|"]
    for v in report["verdicts"]:
        lines.append(f"| {v['question']} | {'yes' if v['met'] else '**no**'} | {v['figures']} |")
    lines += ["", mean_table(report), "", "LPIPS is not computed: its weights cannot be had without a network.", ""]
    return "\n".join(lines) + "\n" + reports.render_markdown(report).replace("# Evaluation\n", "## The rows\n", 1)


def mean_table(report: dict) -> str:
    """Every metric of every method, mean over the cases."""
    lines = [
        "| method | PSNR, dB | gain, dB | SSIM | HFEN | NMI | FSC area | FSC beyond | worst gain, dB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in report["summary"]:
        m = entry["mean"]
        lines.append(
            f"| {entry['method']} | {m['psnr']:.2f} | {m['gain']:+.2f} | {m['ssim']:.4f} | {m['hfen']:.3f} | "
            f"{m['nmi']:.3f} | {m['fsc_area']:.3f} | {m['fsc_beyond']:.3f} | {entry['worst']['gain']:+.2f} |"
        )
    return "\n".join(lines)


def picture_writer(folder: Path):
    """Scan, cubic, student, teacher, reference and the student's error, of the cases in `PICTURED`."""
    folder.mkdir(parents=True, exist_ok=True)

    def write(trial, images, rows) -> None:
        if trial.case.name not in PICTURED:
            return
        psnr = {row.method: row.psnr for row in rows}
        labels = {label: name for label, name in (("cubic", "cubic"), ("student", "mean"), ("teacher", "teacher-mean"))}
        labels = {label: name for label, name in labels.items() if name in images}
        save_comparison(
            folder / f"{trial.subject}_{trial.case.name}.png",
            trial,
            {label: images[name] for label, name in labels.items()},
            {label: psnr[name] for label, name in labels.items()},
            errors=["student"],
            levels=32,
            force=True,
        )

    return write


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the scans")
    parser.add_argument("--model", default="base", help="the student (default: base)")
    parser.add_argument("--l1", metavar="PATH", help="weights of the deterministic network trained with L1")
    parser.add_argument("--earlier", nargs="+", default=[], metavar="NAME=PATH", help=f"versions, {EARLIER}...")
    parser.add_argument("--teacher", metavar="M", help="the teacher, a name or a path")
    parser.add_argument("--teacher-steps", type=int, default=16, metavar="N", help="of its sample (default: 16)")
    parser.add_argument("--held-out", nargs="+", default=HELD_OUT, metavar="NAME")
    parser.add_argument("--train-on", nargs="*", default=TRAINING, metavar="NAME", help="for the regression")
    parser.add_argument("--cases", nargs="+", default=list(PROTOCOL), metavar="CASE")
    parser.add_argument("--crop", type=int, default=112, metavar="N", help="middle N^3 voxels; 0: all (default: 112)")
    record.add_place(parser, "--out")
    args = parser.parse_args()
    if any(not item.startswith(EARLIER) or "=" not in item for item in args.earlier):
        parser.error(f"--earlier: expected NAME=PATH whose NAME begins with {EARLIER!r}, found {args.earlier}")

    def scans(names):
        return find_volumes([args.data / f"{name}.nii.gz" for name in names])

    crop = args.crop or None
    names = method_names(args.l1, args.teacher, args.teacher_steps, args.earlier)
    if not args.train_on:
        names.remove("linear")
    training = [s for path in scans(args.train_on) for s in load_subjects(path, crop)]
    methods = build_methods(names, model=args.model, training=training)
    outcome = run_protocol(
        scans(args.held_out),
        pick_cases(args.cases),
        methods,
        crop=crop,
        show=picture_writer(args.results / "pictures"),
        progress=lambda text: print(text, file=sys.stderr, flush=True),
    )
    settings = {
        "crop": crop,
        "models": [f"{label}: {weights}" for label, weights in describe_models(methods).items()],
        "regression trained on": list(args.train_on),
    }
    report = reports.build_report(outcome, settings)
    report = {"command": command(args), **report, "verdicts": verdicts(report["summary"])}
    args.results.mkdir(parents=True, exist_ok=True)
    reports.write_pair(args.results, "comparison", report, render(report), force=True)
    print(mean_table(report))
    return 0


def command(args: argparse.Namespace) -> str:
    """What to type to repeat it; folders are left out, for they are another's."""
    words = ["python benchmarks/comparison.py --data SCANS", f"--model {Path(args.model).name}"]
    words += [f"--l1 {Path(args.l1).name}"] if args.l1 else []
    earlier = [f"{name}={Path(path).name}" for name, _, path in (item.partition("=") for item in args.earlier)]
    words += [f"--earlier {' '.join(earlier)}"] if earlier else []
    words += [f"--teacher {Path(args.teacher).name} --teacher-steps {args.teacher_steps}"] if args.teacher else []
    words += [] if args.cases == list(PROTOCOL) else [f"--cases {' '.join(args.cases)}"]
    words += [] if tuple(args.held_out) == HELD_OUT else [f"--held-out {' '.join(args.held_out)}"]
    return " ".join([*words, f"--crop {args.crop}"])


if __name__ == "__main__":
    sys.exit(main())
