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
        "compared before anything is timed. Results go to out/benchmarks; into benchmarks/results only with --record.",
    )
    parser.add_argument(
        "--script",
        action="append",
        metavar="NAME",
        help=f"which of benchmarks/*.py; may be given again (default: {', then '.join(DEFAULT)})",
    )
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
    known = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith(("_", "test_")))
    scripts = args.script or DEFAULT
    for name in scripts:
        if name not in known:
            raise UsageError(f"bench: no script {name!r} in {folder}; expected one of: {', '.join(known)}")
    if args.rest and len(scripts) > 1:
        raise UsageError(f"bench: options go to one script; name it: mrisr bench --script {scripts[-1]} -- OPTION")
    rest = [*args.rest, *(["--record"] if args.record else [])]
    for name in scripts:
        if len(scripts) > 1:
            print(f"==== {name}", flush=True)
        code = subprocess.run([sys.executable, str(folder / f"{name}.py"), *rest], check=False).returncode
        if code:
            return code
    return 0
