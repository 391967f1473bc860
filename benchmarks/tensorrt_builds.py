"""TensorRT plans of the shipped networks, built here: graph x precision x profile -> parsed, built, bytes, seconds.

    python benchmarks/tensorrt_builds.py [--models base teacher-small] [--results DIR | --record]

Needs TensorRT or TensorRT for RTX (which builds without a GPU); runs no plan. Writes tensorrt_builds.json and .md.
Exits 1 where a plan was not built.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkout  # noqa: F401
import record

PROFILES = {
    "128^3": {},
    "64^3": {"tile": (64, 64, 64)},
    "16^3 / 64^3 / 96^3": {"tile": (64, 64, 64), "smallest": (16, 16, 16), "largest": (96, 96, 96)},
    "128^3, portable": {"portable": True},
    "128^3, refit": {"refit": True},
}


def plans(name: str, folder: Path) -> Iterator[dict]:
    """A row per precision and profile of one of the shipped networks; `folder` is empty."""
    from mrisr.bundle import PRECISIONS, WEIGHTS_NAME
    from mrisr.errors import BackendError
    from mrisr.export import onnx as graphs
    from mrisr.export import tensorrt
    from mrisr.export.build import _write_weights
    from mrisr.export.describe import network_of
    from mrisr.weights import registry

    model = registry.load(name)
    _write_weights(model, folder / WEIGHTS_NAME)
    plain, inputs = graphs.graph_of(model.denoiser.net), network_of(model.denoiser.net.config)["inputs"]
    for precision in PRECISIONS:
        graph = folder / f"model.{precision}.onnx"
        graphs.save(graphs.refer_to_weights(graphs.in_precision(plain, precision), folder / WEIGHTS_NAME), graph)
        for profile, options in PROFILES.items():
            row = {"model": name, "precision": precision, "profile": profile, "parsed": False, "built": False}
            start = time.perf_counter()
            try:
                lines: list[str] = []
                tensorrt.write_plan(
                    folder, graph.name, precision, inputs, tensorrt.PlanOptions(**options), lines.append
                )
                size = (folder / tensorrt.PLAN_NAME).stat().st_size
                row |= {"parsed": True, "built": True, "bytes": size, "notes": "; ".join(lines[1:])}
            except BackendError as error:
                row |= {"parsed": "was not understood" not in str(error), "reason": str(error)}
            yield row | {"seconds": time.perf_counter() - start}


def table(content: dict) -> str:
    machine = content["machine"]
    lines = [
        "# TensorRT plans built",
        "",
        f"By `python benchmarks/tensorrt_builds.py --record`: {content['package']} on {machine['cpu']}, "
        f"{machine['gpu'] or 'no GPU'}, load {machine['load']}; {content['date']}, commit {content['commit']}. "
        "No plan was run. Profile: the one size, or smallest / best / largest.",
        "",
        "| network | precision | profile | parsed | built | MB | seconds | why not |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        size = f"{row['bytes'] / 1e6:.1f}" if row["built"] else ""
        yes = ["yes" if row[key] else "no" for key in ("parsed", "built")]
        lines.append(
            f"| {row['model']} | {row['precision']} | {row['profile']} | {yes[0]} | {yes[1]} | {size} | "
            f"{row['seconds']:.1f} | {row.get('reason', '')} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["base", "teacher-small"], help="default: base teacher-small")
    record.add_place(parser)
    args = parser.parse_args()
    from mrisr.infer.engines import tensorrt_package

    package, rows = tensorrt_package.load(), []
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            for row in plans(name, Path(folder)):
                rows.append(row)
                print({k: v for k, v in row.items() if k != "notes"}, flush=True)
    path = record.write("tensorrt_builds", {"package": str(package), "rows": rows}, args.results)
    path.with_suffix(".md").write_text(table(json.loads(path.read_text())), encoding="utf-8")
    print(path.with_suffix(".md").read_text())
    return 1 if any(not row["built"] and "refit" not in row["profile"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
