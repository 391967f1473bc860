"""``mrisr bench``: operators and the reference job, timed beside their rivals by the scripts in benchmarks/."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from mrisr.errors import UsageError

DEFAULT = ("ops", "end_to_end")


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "bench",
        help="time every operator, and the reference job (1 mm head to 0.7 mm), beside their rivals",
        description="Runs benchmarks/ops.py, then benchmarks/end_to_end.py of the source checkout: outputs are "
        "compared before anything is timed. Results go to out/benchmarks; into benchmarks/results only with --record. "
        "--stages, --compare and --op run one script of those in their place.",
    )
    parser.add_argument(
        "--script",
        action="append",
        metavar="NAME",
        help=f"which of benchmarks/*.py; may be given again (default: {', then '.join(DEFAULT)})",
    )
    parser.add_argument(
        "--stages", action="store_true", help="the reference job file to file, stage by stage (benchmarks/stages.py)"
    )
    parser.add_argument(
        "--compare", metavar="COMMIT", help="as --stages, and the same of another commit, in turns with this one"
    )
    parser.add_argument("--op", metavar="NAME", help="one operator at one shape (benchmarks/one_op.py)")
    parser.add_argument("--shape", metavar="N,C,D,H,W", help="of --op's input")
    parser.add_argument("--dtype", metavar="TYPE", help="of --op's input: float32, bfloat16, float16")
    parser.add_argument("--base", metavar="COMMIT", help="measure --op of this commit too, in turns with this one")
    parser.add_argument(
        "--record", action="store_true", help="write into benchmarks/results, whose results are committed"
    )
    parser.add_argument("rest", nargs="*", metavar="OPTION", help="options for one script, after --")


def run(args: argparse.Namespace) -> int:
    """Run each script in a fresh process (memory peaks need one) and return the first exit code that is not 0."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    if not folder.is_dir():
        raise UsageError(
            "bench: the benchmarks are part of the source checkout, not of the installed package; "
            "clone the repository and run 'pip install -e .' in it"
        )
    names, options = _script_of_option(args)
    scripts_there = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith(("_", "test_")))
    scripts = names or args.script or DEFAULT
    for name in scripts:
        if name not in scripts_there:
            raise UsageError(f"bench: no script {name!r} in {folder}; expected one of: {', '.join(scripts_there)}")
    if args.rest and len(scripts) > 1:
        raise UsageError(f"bench: options go to one script; name it: mrisr bench --script {scripts[-1]} -- OPTION")
    rest = [*options, *args.rest, *(["--record"] if args.record else [])]
    for name in scripts:
        if len(scripts) > 1:
            print(f"==== {name}", flush=True)
        code = subprocess.run([sys.executable, str(folder / f"{name}.py"), *rest], check=False).returncode
        if code:
            return code
    return 0


def _script_of_option(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """(the script that --op, --stages or --compare names, its options); nothing where none of them is given."""
    of_op = {"--shape": args.shape, "--dtype": args.dtype, "--base": args.base}
    operator_options = {option: value for option, value in of_op.items() if value is not None}
    several = [option for option, value in (("--op", args.op), ("--script", args.script)) if value]
    several += ["--compare"] if args.compare else ["--stages"] if args.stages else []
    if len(several) > 1:
        raise UsageError(f"bench: {' and '.join(several)} are different things to run; leave all but one out")
    if operator_options and args.op is None:
        raise UsageError(f"bench: {', '.join(operator_options)} belong to --op; name the operator")
    if args.op is not None:
        if args.shape is None:
            raise UsageError("bench: --op needs --shape, such as --shape 1,64,96,96,96")
        return ["one_op"], ["--op", args.op, *(word for pair in operator_options.items() for word in pair)]
    if args.compare is not None:
        return ["stages"], ["--compare", args.compare]
    return (["stages"], []) if args.stages else ([], [])
