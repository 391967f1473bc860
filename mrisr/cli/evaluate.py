"""``mrisr evaluate``: degrade fine scans in known ways, bring them back, and say how well that went."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import contextmanager
from pathlib import Path

import mrisr
from mrisr.cli.options import add_precision, add_threads, positive_int, use_threads
from mrisr.errors import UsageError

CASES = "iso2,iso2n,thick4,iso1p5,mix"
METHODS = "trilinear,cubic,quintic,zerofill,mrisr"
SAFETY_METHODS = "cubic,mrisr,mrisr-stated"


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure super-resolution on scans of your own against interpolation",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Degrades each volume in known ways, brings it back by each method and compares with the "
        "original.\nWrites evaluation.md, evaluation.json and pictures into the folder given by -o.",
        epilog="A file that cannot be read is named, skipped and counted; exit code 0 if at least one ran.",
    )
    parser.add_argument("inputs", nargs="+", metavar="FOLDER_OR_FILE", help="volumes (.nii, .nii.gz, .mgz, .hdr)")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the report (made if missing)")
    parser.add_argument("--cases", default=CASES, metavar="A,B", help=f"default: {CASES}")
    parser.add_argument(
        "--methods",
        metavar="A,B",
        help="trilinear, cubic (always there), quintic, zerofill, linear (needs --train-on), mrisr, "
        "mrisr-stated, mrisr-sample, net:PATH, or a network under a label, "
        "[LABEL=]MODEL[@sampleN][@ensembleN][@stated][@denoise], as in mrisr@ensemble8, late=runs/v3@sample4 "
        f"(default: {METHODS}; with --safety {SAFETY_METHODS})",
    )
    parser.add_argument("--model", default="base", metavar="M", help="name or .safetensors path (default: base)")
    parser.add_argument("--train-on", nargs="+", default=[], metavar="F", help="training volumes of method linear")
    parser.add_argument("--crop", type=positive_int, metavar="N", help="only the middle N^3 voxels of each head")
    parser.add_argument("--lesions", action="store_true", help="also insert small lesions and see if they survive")
    parser.add_argument(
        "--safety",
        action="store_true",
        help="the safety report instead (safety.md, safety.json): lesions put in and taken out, tissue volumes, "
        "chi-squared, and what the spread of samples is worth",
    )
    parser.add_argument(
        "--samples", type=positive_int, default=8, metavar="K", help="--safety: whose spread is calibrated (default: 8)"
    )
    parser.add_argument("--steps", type=positive_int, default=4, metavar="N", help="--safety: of each (default: 4)")
    parser.add_argument("--no-pictures", action="store_true", help="tables only")
    parser.add_argument("--seed", type=int, default=0, help="of noise and bias fields (default: 0)")
    parser.add_argument("--force", action="store_true", help="overwrite an earlier report in DIR")
    group = parser.add_argument_group("how to run")
    group.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda or cuda:N (default: auto)")
    group.add_argument("--engine", default="auto", choices=("auto", "torch", "openvino"), help="default: by device")
    add_precision(group)
    group.add_argument("--memory", metavar="SIZE", help="memory budget of the network, such as 4GB")
    add_threads(group)


def run(args: argparse.Namespace) -> int:
    """Run the protocol, write the report, print its overview; 0 if at least one volume ran."""
    use_threads(args.threads)
    from mrisr.evaluate.methods import build_methods, pick_cases
    from mrisr.evaluate.protocol import find_volumes, load_subjects, run_protocol
    from mrisr.evaluate.report import build_report, check_folder, render_overview, write_report

    cases = pick_cases(_names(args.cases, "--cases"))
    paths = find_volumes(args.inputs)
    names = _names(args.methods or (SAFETY_METHODS if args.safety else METHODS), "--methods")
    training = []
    if "linear" in names:
        training = [s for path in find_volumes(args.train_on) for s in load_subjects(path, args.crop)]
    how = {name: getattr(args, name) for name in ("device", "engine", "precision", "memory", "threads")}
    methods = build_methods(names, model=args.model, training=training, seed=args.seed, **how)
    if args.safety:
        return _safety(args, paths, cases, names, methods, how)
    folder = check_folder(args.output, args.force)
    pictures = None if args.no_pictures else _picture_writer(folder)
    with _progress(len(paths) * len(cases) * len(methods)) as progress:
        outcome = run_protocol(
            paths,
            cases,
            methods,
            seed=args.seed,
            crop=args.crop,
            lesions=args.lesions,
            show=pictures,
            progress=progress,
        )
    report = build_report(outcome, _settings(args, cases, methods))
    write_report(report, folder, force=args.force)
    print(render_overview(report))
    print(f"\nwrote {folder}: {len(outcome.volumes)} volume(s) evaluated, {len(outcome.skipped)} skipped")
    return 0


def _settings(args: argparse.Namespace, cases, methods) -> dict:
    from mrisr.evaluate.methods import describe_models

    return {
        "cases": [case.name for case in cases],
        "methods": list(methods),
        "models": [f"{label}: {weights}" for label, weights in describe_models(methods).items()],
        "device": args.device,
        "engine": args.engine,
        "precision": args.precision,
        "crop": args.crop,
        "seed": args.seed,
    }


def _safety(args: argparse.Namespace, paths, cases, names: list[str], methods, how: dict) -> int:
    """Lesions, tissue and chi-squared of every method, the spread of --model; one report."""
    if args.samples < 2:
        raise UsageError(f"--samples: one sample has no spread; expected at least 2, found {args.samples}")
    from mrisr.evaluate import safety_report
    from mrisr.evaluate.protocol import run_protocol, trials_of
    from mrisr.evaluate.report import check_folder, write_pair
    from mrisr.evaluate.uncertainty import calibrate, spread_of

    folder = check_folder(args.output, args.force, safety_report.STEM)
    with _progress(len(paths) * len(cases) * (len(methods) + 1)) as progress:
        outcome = run_protocol(paths, cases, methods, seed=args.seed, crop=args.crop, lesions=True, progress=progress)
        model = mrisr.load_model(args.model)
        spreads = []
        for trial in trials_of(paths, cases, seed=args.seed, crop=args.crop):
            progress(f"{trial.subject}  {trial.case.name}  {args.samples} samples")
            spreads.append(spread_of(trial, model, args.samples, args.steps, args.seed, **how))
    settings = {**_settings(args, cases, methods), "samples": args.samples, "steps": args.steps}
    command = f"mrisr evaluate SCANS -o DIR --safety --model {Path(args.model).name} --cases {args.cases}"
    texts = ",".join(re.sub(r"[^=:]*/", "", name) for name in names)  # without folders, which are a machine's own
    command += f" --methods {texts} --samples {args.samples} --steps {args.steps} --seed {args.seed}"
    settings["command"] = command + (f" --crop {args.crop}" if args.crop else "")
    uncertainty = calibrate(spreads, args.samples, args.steps)
    report = safety_report.build(outcome, uncertainty, model.sha256, settings)
    write_pair(folder, safety_report.STEM, report, safety_report.render(report), force=args.force)
    print(safety_report.bars_table(report))
    print(f"\nwrote {folder}: {len(outcome.volumes)} volume(s), {len(outcome.skipped)} skipped")
    return 0


def _names(text: str, option: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UsageError(f"{option}: expected names separated by commas, found {text!r}")
    return names


def _picture_writer(folder):
    """One picture per trial: the yardstick beside the last method asked for, or the two together."""
    from mrisr.evaluate.pictures import save_comparison

    def write(trial, images, rows):
        names = dict.fromkeys(["cubic", list(images)[-1]])
        save_comparison(
            folder / f"{trial.subject}_{trial.case.name}.png",
            trial,
            {name: images[name] for name in names},
            {row.method: row.psnr for row in rows},
            # The report beside them was checked: pictures of an unfinished run are nobody's result.
            force=True,
        )

    return write


@contextmanager
def _progress(total: int):
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        started = False

        def step(text: str) -> None:
            nonlocal started
            bar.update(task, description=text, advance=1 if started else 0)
            started = True

        yield step
