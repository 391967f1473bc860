"""Does an exported bundle compute what PyTorch computes? Shapes x precisions x runtimes, and whole scans.

    python benchmarks/export_parity.py [--model base] [--threads 1] [--library PATH/libmrisr.so]

Exports the weights to a scratch folder and runs every graph in every runtime that takes it. "network" rows: largest
difference of f from PyTorch in float32, as a share of the largest value; inputs are random. "rounded" stands for the
graph in ONNX Runtime with every value rounded where the graph rounds it, and sums in float32: what a device with half
arithmetic does, while the runtimes on a CPU may compute in float32 between the casts. "scan" rows: largest difference
of the upscaled scan from `mrisr.upscale(engine="torch")`, as a share of p99.9 - p0.1, libmrisr among them where
`--library` is given. Writes export_parity.json and export_parity.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import checkout  # noqa: F401
import record
import throughput

SHAPES = ((16, 8, 24), (48, 56, 40), (64, 96, 80))
SCANS = {"isotropic 1.4 mm": ((40, 44, 36), (1.4, 1.4, 1.4)), "slices 1 x 1 x 4 mm": ((48, 44, 14), (1.0, 1.0, 4.0))}
MODES = (("mean", 1), ("sample", 2))
SCAN_LIMIT = 1e-5


def run(model: str = "base", threads: int = 1, library: Path | None = None, folder: Path = record.UNRECORDED) -> dict:
    """Measure, write the two files into `folder`, and return the content. RuntimeError where a row is out of bounds."""
    import torch

    from mrisr.bundle import PRECISIONS
    from mrisr.export.build import TOLERANCE, export_bundle
    from mrisr.weights import registry

    torch.set_num_threads(threads)
    student = registry.load(model)
    with tempfile.TemporaryDirectory() as scratch:
        exported = export_bundle(student, Path(scratch) / "bundle", form="openvino", precisions=PRECISIONS)
        network = _network(student.denoiser.net, exported)
        scans = _scans(exported.folder, model, threads, library)
        content = {
            "model": {"name": model, "sha256": student.sha256, "opset": exported.config["opset"]},
            "bytes": {name: entry["bytes"] for name, entry in exported.config["files"].items()},
            "limits": {**TOLERANCE, "scan": SCAN_LIMIT},
            "network": network,
            "scans": scans,
        }
    bad = [r for r in network if not r["difference"] <= TOLERANCE[r["precision"]]]
    bad += [r for r in scans if not r["difference"] <= SCAN_LIMIT]
    if bad:
        raise RuntimeError(f"out of bounds, nothing written: {bad}")
    path = record.write("export_parity", content, folder)
    path.with_suffix(".md").write_text(_table(content), encoding="utf-8")
    return content


def _network(net, exported) -> list[dict]:
    import torch

    from mrisr.export import onnx as graphs
    from mrisr.export.build import runtimes

    rows = []
    for entry in exported.config["graphs"]:
        programs = runtimes(exported.file(entry["file"]), entry["precision"])
        if entry["format"] == "onnx" and entry["precision"] != "float32":
            programs["rounded"] = _rounded(exported.file(entry["file"]))
        for shape in SHAPES:
            inputs = graphs.example(shape, seed=5)
            with torch.inference_mode():
                expected = net(*inputs).numpy()
            feed = dict(zip(graphs.INPUTS, (t.numpy() for t in inputs)))
            for name, compute in programs.items():
                answer = compute(feed)
                error = answer.astype(np.float64) - expected
                rows.append(
                    {
                        "graph": entry["file"],
                        "precision": entry["precision"],
                        "runtime": name,
                        "shape": list(shape),
                        "difference": graphs.deviation(answer, expected),
                        "rms": float(np.sqrt((error**2).mean() / (expected.astype(np.float64) ** 2).mean())),
                    }
                )
    return rows


def _rounded(path: Path):
    import onnx

    from mrisr import third_party
    from mrisr.export import onnx as graphs

    onnxruntime = third_party.onnxruntime()

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # keeps every cast
    model = graphs.emulated(onnx.load(path)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)[0]


def _scans(folder: Path, model: str, threads: int, library: Path | None) -> list[dict]:
    import mrisr

    rows = []
    for name, (shape, size) in SCANS.items():
        scan = _phantom(shape)
        for mode, steps in MODES:
            how = dict(input_voxel_size=size, threads=threads, mode=mode, steps=steps, seed=3)
            expected = mrisr.upscale(scan, model=model, engine="torch", **how)
            low, high = np.percentile(expected, (0.1, 99.9))
            ways = {
                f"bundle, {engine}": mrisr.upscale(scan, model=folder, engine=engine, **how)
                for engine in ("torch", "openvino")
            }
            if library is not None:
                lib = throughput.bindings().Library(library)
                plan = dict(mode=mode, steps=steps, seed=3, threads=threads)
                ways["libmrisr"] = lib.upscale(lib.open(folder), scan, np.diag([*size, 1.0]), **plan).data
            for way, result in ways.items():
                difference = float(np.abs(result - expected).max() / (high - low))
                facts = {"scan": f"{name}, {mode}, {steps} steps", "way": way, "output": list(expected.shape)}
                rows.append({**facts, "difference": difference})
    return rows


def _phantom(shape) -> np.ndarray:
    """Folded tissue in a bright rim, noisy air around it."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    radius = np.sqrt((grid**2).sum(axis=0)) / 0.8
    folds = 500 + 250 * np.sin(19 * grid[0]) * np.sin(17 * grid[1]) * np.sin(15 * grid[2])
    clean = np.where(radius < 0.9, folds, np.where(radius < 1.0, 900.0, 0.0))
    rng = np.random.default_rng(0)
    return np.hypot(clean + 5 * rng.standard_normal(shape), 5 * rng.standard_normal(shape)).astype(np.float32)


def _table(content: dict) -> str:
    shapes = [" x ".join(map(str, s)) for s in SHAPES]
    lines = [
        "# What an exported bundle computes, beside PyTorch in float32",
        "",
        f"`python benchmarks/export_parity.py`; {content['model']['name']}, opset {content['model']['opset']}. Largest "
        "difference of the network's output as a share of its largest value; the row's limit last.",
        "",
        "| graph | runtime | " + " | ".join(shapes) + " | limit |",
        "|---|---|" + "---|" * (len(shapes) + 1),
    ]
    for graph, runtime in dict.fromkeys((r["graph"], r["runtime"]) for r in content["network"]):
        own = [r for r in content["network"] if (r["graph"], r["runtime"]) == (graph, runtime)]
        cells = " | ".join(f"{r['difference']:.1e}" for r in own)
        lines.append(f"| {graph} | {runtime} | {cells} | {content['limits'][own[0]['precision']]:g} |")
    lines += [
        "",
        "Whole scans, as a share of p99.9 - p0.1:",
        "",
        "| scan | way | difference | limit |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {r['scan']} to {' x '.join(map(str, r['output']))} | {r['way']} | {r['difference']:.1e} | "
        f"{content['limits']['scan']:g} |"
        for r in content["scans"]
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--library", type=Path, metavar="SO", help="libmrisr.so with its engine")
    record.add_place(parser)
    args = parser.parse_args()
    print(_table(run(args.model, args.threads, args.library and args.library.resolve(), args.results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
