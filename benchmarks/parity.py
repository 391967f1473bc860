"""The parity matrix: every operator family x backend x dtype against float64, with the reason for what was skipped.

    python benchmarks/parity.py [--families group_norm noise] [--results DIR]

Writes parity.json and parity.md. Without a GPU the Triton kernels run in Triton's interpreter, in a process of their
own. Exits 1 where a case failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkout  # noqa: F401
import record


def run(families: list[str] | None = None, folder: Path = record.UNRECORDED) -> dict:
    """Measure, write parity.json and parity.md into `folder`, and return the content."""
    import torch

    rows = matrix(families, without=() if torch.cuda.is_available() else ("triton",))
    if not torch.cuda.is_available():
        rows += _interpreted(families)
    rows = record.merged("parity", rows, ("family", "backend", "how", "what"), folder)
    rows.sort(key=lambda row: (row["family"], row["backend"], row["what"]))
    content = {"rows": rows}
    record.write("parity", content, folder)
    (folder / "parity.md").write_text(table(json.loads((folder / "parity.json").read_text())), encoding="utf-8")
    return content


def matrix(
    families: list[str] | None = None, backends: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> list[dict]:
    """One row per family, backend and dtype (and one for its gradients)."""
    from tests.ops import parity as check
    from tests.ops.cases import SPECS

    rows = []
    with check.nan_filled_empty():
        for name, spec in sorted(SPECS.items()):
            for backend in spec.family.backends:
                if (families and name not in families) or (backends and backend.name not in backends):
                    continue
                if backend.name in without:
                    continue
                for dtype, limit in spec.tolerance.items():
                    cases = [case for kind, case in check.tasks(spec, backend) if kind == dtype]
                    if not cases:
                        continue
                    errors = {case: _tried(check.values, spec, backend, dtype, case) for case in cases}
                    rows.append(_row(name, backend, str(dtype).removeprefix("torch."), limit, errors))
                cases = [case for _, case in check.tasks(spec, backend, gradients=True)]
                if spec.gradients and cases:
                    errors = {case: _tried(check.gradients, spec, backend, case) for case in cases}
                    rows.append(_row(name, backend, "gradients, float32", check.GRADIENT_TOLERANCE, errors))
    return rows


def _tried(check, *args):
    """A kernel that does not even run is a failed case, and the others are still tried."""
    from tests.ops.parity import Outcome

    try:
        return check(*args)
    except Exception as error:  # noqa: BLE001
        return Outcome("failed", reason=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def _row(family: str, backend, what: str, limit: float, errors: dict) -> dict:
    from mrisr.ops._dispatch import interpreted

    count = Counter(outcome.status for outcome in errors.values())
    return {
        "family": family,
        "backend": backend.name,
        "how": "interpreter" if backend.name == "triton" and interpreted() else "",
        "what": what,
        **{status: count[status] for status in ("passed", "skipped", "failed")},
        "max_error": max((o.error for o in errors.values() if o.error is not None), default=None),
        "tolerance": limit,
        "reasons": dict(Counter(o.reason for o in errors.values() if o.status == "skipped")),
        "failures": {case: o.reason for case, o in errors.items() if o.status == "failed"},
    }


def _interpreted(families: list[str] | None) -> list[dict]:
    """Triton's rows, by the interpreter: it has to be chosen before a kernel is defined."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--answer", str(answer), *(["--families", *families] if families else [])]
        subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, check=True)
        return json.loads(answer.read_text())


def table(content: dict) -> str:
    """The matrix as Markdown."""
    machine, torch = content["machine"], f"torch {content['versions']['torch']}"
    lines = [
        "# Parity with the float64 reference",
        "",
        f"By `python benchmarks/parity.py` on {machine['cpu']}, {machine['gpu'] or 'no GPU'}; {torch}; "
        f"{content['date']}, commit {content['commit']}. Error: largest |result - reference| / max(1, |reference|).",
        "",
        "| family | backend | dtype | passed | failed | skipped | max error | tolerance | why skipped |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        error = "" if row["max_error"] is None else f"{row['max_error']:.1e}"
        why = "; ".join(f"{reason} ({count})" for reason, count in row["reasons"].items())
        backend = row["backend"] + (f" ({row['how']})" if row["how"] else "")
        lines.append(
            f"| {row['family']} | {backend} | {row['what']} | {row['passed']} | {row['failed']} | {row['skipped']} | "
            f"{error} | {row['tolerance']:.0e} | {why} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", help="default: all")
    record.add_place(parser)
    parser.add_argument("--backends", nargs="+", default=["triton"], help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer:
        args.answer.write_text(json.dumps(matrix(args.families, tuple(args.backends))))
        return 0
    content = run(args.families, args.results)
    print((args.results / "parity.md").read_text())
    failed = [f"{row['family']} {row['backend']}: {row['failures']}" for row in content["rows"] if row["failed"]]
    print("\n".join(failed) or "no case failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
