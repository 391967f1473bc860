"""Every operator family beside its rivals, as a share of the floor: what the machine's memory or arithmetic allows.

    python benchmarks/ops.py [--families noise blend] [--device cpu] [--quick] [--results DIR]

Outputs are compared with float64 before anything is timed. Writes ops.json (ops_cuda.json on a GPU). The cases are in
op_cases.py; `pytest benchmarks/` runs the same ones through pytest-benchmark.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkout  # noqa: F401
import contest
import op_cases
import record


def contests(device: str = "cpu", quick: bool = False, families: list[str] | None = None) -> Iterator[contest.Contest]:
    """Every contest on this device; quick: sizes of nothing and no compiler, to see that all of it runs."""
    for name, build in op_cases.FAMILIES.items():
        if not families or name in families:
            yield from build(device, quick)


def measure(device: str = "cpu", quick: bool = False, families: list[str] | None = None, say=print) -> dict:
    """Hold every contest, say a line of each, and return rows, ceilings and failures."""
    ceilings = contest.Ceilings.measured(device, quick)
    rows, lines = [], []
    for one in contests(device, quick, families):
        rows.append(contest.hold(one, device, ceilings, 0.01 if quick else 0.5))
        lines.append(contest.line(rows[-1]))
        say(lines[-1])
    return {
        "ceilings": {"copy_gb_per_s": ceilings.copy / 1e9, "matmul_gflop_per_s": ceilings.matmul / 1e9},
        "threads": _threads(device),
        "rows": rows,
        "table": lines,
        "failures": [text for row in rows for text in row["failures"]],
    }


def _threads(device: str) -> int | None:
    import torch

    return torch.get_num_threads() if device == "cpu" else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=list(op_cases.FAMILIES), help="default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="does it run? sizes of nothing; nothing is written")
    record.add_place(parser)
    args = parser.parse_args()
    content = measure(args.device, args.quick, args.families)
    if not args.quick and not content["failures"]:
        name = "ops" if args.device == "cpu" else "ops_cuda"
        content["rows"] = record.merged(name, content["rows"], ("family", "case"), args.results)
        content["table"] = [contest.line(row) for row in content["rows"]]
        record.write(name, content, args.results)
    return 1 if content["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
