"""``mrisr bench``: the reference job, timed beside its rivals by benchmarks/end_to_end.py."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from mrisr.errors import UsageError


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "bench",
        help="time the reference job (1 mm head to 0.7 mm) against eager PyTorch and stock OpenVINO",
        description="Runs benchmarks/end_to_end.py of the source checkout: outputs are compared before "
        "anything is timed, and the result goes to benchmarks/results. Options after -- go to that script.",
    )
    parser.add_argument(
        "--script",
        default="end_to_end",
        metavar="NAME",
        help="which of benchmarks/*.py (default: end_to_end)",
    )
    parser.add_argument("rest", nargs="*", metavar="OPTION", help="options for the script, after --")


def run(args: argparse.Namespace) -> int:
    """Run the script in a fresh process (memory peaks need one) and return its exit code."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    script = folder / f"{args.script}.py"
    if not folder.is_dir():
        raise UsageError(
            "bench: the benchmarks are part of the source checkout, not of the installed package; "
            "clone the repository and run 'pip install -e .' in it"
        )
    if not script.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")))
        raise UsageError(f"bench: no script {args.script!r} in {folder}; expected one of: {known}")
    return subprocess.run([sys.executable, str(script), *args.rest], check=False).returncode
