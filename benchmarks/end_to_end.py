"""The reference job, 1 mm head to 0.7 mm, timed beside eager PyTorch with the same network and voxels.

    python benchmarks/end_to_end.py [--input mni head] [--threads N] [--model M] [--repeats 2] [--no-rivals]

Each input runs in a fresh process, so that the peak memory is its own: in the precision that `mrisr.upscale` chooses
for the processor, and in float32 where that is another. So do the rivals: eager PyTorch in float32, and under autocast
where we compute in bfloat16. Outputs are compared before anything is timed against a rival; where they differ nothing
is written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cases
import record
import rivals as others

TOLERANCE = 1e-4  # largest difference to eager PyTorch in float32, as a share of the network's largest output
TOLERANCE_BFLOAT16 = 0.03  # 8 bits of mantissa, at the worst voxel; of autocast too


def run(
    inputs=("mni", "head"),
    threads: int | None = None,
    model: str = "base",
    repeats: int = 2,
    rivals: bool = True,
    folder: Path = record.UNRECORDED,
) -> dict:
    """Run the benchmark, write `end_to_end.json` into `folder`, and return its content.

    Raises RuntimeError where a part fails, or where our output and the rival's differ.
    """
    content = {"job": f"{' x '.join(map(str, cases.REFERENCE_SHAPE))} at 1 mm to {cases.REFERENCE_TARGET} mm"}
    earlier, stamp = record.previous("end_to_end", folder)
    content["inputs"] = {}
    for kind in inputs:
        rows = _both(lambda precision, kind=kind: _apart("ours", kind, threads, model, repeats, precision))
        content["inputs"] |= {f"{kind}, {precision}": row for precision, row in rows.items()}
    if rivals:
        rows = _both(lambda precision: _apart("rivals", inputs[0], threads, model, repeats, precision))
        of_rivals = content["rivals"] = rows["float32"]
        if "bfloat16" in rows:
            of_rivals["bfloat16"] = rows["bfloat16"]
        slowest = max(r["stages_s"]["network"] for r in content["inputs"].values() if r["precision"] == "float32")
        of_rivals["job_times_faster_than"] = {n: round(s / slowest, 2) for n, s in of_rivals["whole_grid_s"].items()}
        of_rivals["paper_released_sampler"] = others.paper(_target())
    elif "rivals" in earlier:
        content["rivals"] = {"measured": stamp, **earlier["rivals"]}
    for name, row in earlier.get("inputs", {}).items():
        if name.split(",")[0] not in inputs:
            content["inputs"][name] = {"measured": stamp, **row}
    record.write("end_to_end", content, folder)
    return content


def _both(measure) -> dict[str, dict]:
    """precision -> what `measure` says of it: float32 first, then what the processor has beside it."""
    chosen = measure("auto")
    if chosen["precision"] == "float32":
        return {"float32": chosen}
    return {"float32": measure("float32"), chosen["precision"]: chosen}


def _apart(part: str, kind: str, threads: int | None, model: str, repeats: int, precision: str) -> dict:
    """One part in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        words = [sys.executable, __file__, "--part", part, "--input", kind, "--model", model]
        words += ["--repeats", str(repeats), "--answer", str(answer), "--precision", precision]
        words += ["--threads", str(threads)] if threads else []
        process = subprocess.run(words, check=False)
        if process.returncode or not answer.exists():
            raise RuntimeError(f"end_to_end: part {part} on {kind} ended with {process.returncode}")
        return json.loads(answer.read_text())


def load(model: str):
    """A shipped model, or for "random" the student with random weights (the time does not depend on them)."""
    import torch

    from mrisr.diffusion.precond import Denoiser
    from mrisr.nn.presets import build
    from mrisr.weights import registry

    if model != "random":
        return registry.load(model)
    torch.manual_seed(0)
    net = build("student").eval()
    torch.nn.init.normal_(net.exit.weight, std=0.05)
    return registry.LoadedModel(Denoiser(net, 0.05), "random student", {}, "", None)


def ours(kind: str, threads: int | None, model: str, repeats: int, precision: str) -> dict:
    """Our seconds, first call and best of the later ones, without file I/O; and the peak memory."""
    import mrisr
    from mrisr.infer.memory import peak_resident

    scan, student = cases.reference_scan(kind), load(model)
    seconds, stages = [], []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        _, info = mrisr.upscale(
            scan, input_voxel_size=1.0, voxel_size=cases.REFERENCE_TARGET, model=student, threads=threads,
            device="cpu", precision=precision, return_info=True,
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
        stages.append(info.seconds)
    voxels = info.tiles.computed * int(np.prod(info.tiles.size))
    network = min(s["network"] for s in stages[1:] or stages)
    return {
        "first_call_s": round(seconds[0], 2),
        "seconds": round(min(seconds[1:] or seconds), 2),
        "stages_s": {name: round(min(s[name] for s in stages[1:] or stages), 3) for name in stages[0]},
        "peak_gb": round(peak_resident() / 1e9, 2),
        "expected_gb": round(info.memory_expected / 1e9, 2),
        "network_voxels": voxels,
        "active_fraction": round(info.tiles.active_fraction, 3),
        "ns_per_network_voxel": round(network / voxels * 1e9, 1),
        "tiles": {"kind": info.tiles.kind, "size": info.tiles.size},
        "engine": info.engine.name,
        "precision": info.engine.precision,
        "threads": info.engine.threads,
        "model": info.model,
    }


def rivals(kind: str, threads: int | None, model: str, repeats: int, precision: str) -> dict:
    """The network alone, on one piece: both engines beside eager PyTorch on its own operators in both layouts, each in
    the precision that OpenVINO takes. In float32 also the whole job, in windows and in one piece."""
    import torch

    from mrisr.infer import engines
    from mrisr.infer.engines.select import thread_count
    from mrisr.nn.vector import VECTOR_DIM

    net = load(model).denoiser.net
    torch.set_num_threads(thread_count(threads))
    shape = (128, 160, 128)  # a piece large enough that the time per voxel no longer depends on it
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(1, 1, *shape)
    y, vector = torch.randn(1, 1, *shape, generator=generator), torch.randn(1, VECTOR_DIM, generator=generator)
    guidance = torch.zeros(1, 8, *(n // 8 for n in shape))
    inputs = (x, y, vector, guidance)
    choices = {name: engines.choose(name, "cpu", net, threads, precision=precision) for name in ("openvino", "torch")}
    engines_made = {name: engines.make(choice, net) for name, choice in choices.items()}
    half = engines_made["openvino"].precision != "float32"
    ours = {name: engine.prepare(shape) for name, engine in engines_made.items()}
    results = {name: _timed(network, inputs, repeats) for name, network in ours.items()}
    windows, whole = {}, {}
    with others.plain_operators():
        for name, layout in _layouts().items():
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                results[name] = _timed(net.to(memory_format=layout), inputs, repeats)
        with torch.inference_mode():
            exact = net(*inputs)
        if not half:
            windows = others.monai(net, vector, _target())
            whole = _eager_on_the_whole_grid(net, vector)
    if "seconds" in windows:
        whole["eager_in_monai_windows"] = windows["seconds"]
    for name, (_, output) in results.items():
        difference = float((output.float() - exact).abs().max() / exact.abs().max())
        if difference > (TOLERANCE_BFLOAT16 if half else TOLERANCE):
            raise RuntimeError(
                f"end_to_end: {name} differs from eager PyTorch by {difference:.1e} of the largest output"
            )
    seconds = {name: s for name, (s, _) in results.items()}
    return {
        "precision": engines_made["openvino"].precision,
        "shape": shape,
        "ns_per_voxel": {name: round(s / np.prod(shape) * 1e9, 1) for name, s in seconds.items()},
        "ours_times_faster_than": {n: round(seconds[n] / seconds["openvino"], 2) for n in seconds if n not in ours},
        "torch_engine_times_faster_than": {
            n: round(seconds[n] / seconds["torch"], 2) for n in seconds if n not in ours
        },
        "whole_grid_s": whole,
        "monai": windows,
    }


def _layouts() -> dict:
    import torch

    return {"eager_channels_last": torch.channels_last_3d, "eager_contiguous": torch.contiguous_format}


def _target() -> tuple[int, ...]:
    """Voxels of the job's target grid."""
    return tuple(round(n / cases.REFERENCE_TARGET) for n in cases.REFERENCE_SHAPE)


def _eager_on_the_whole_grid(net, vector) -> dict[str, float]:
    """Seconds of the plain way to do the reference job: eager PyTorch on every voxel of the target grid, air too."""
    import torch

    shape = tuple(-(-n // 8) * 8 for n in _target())
    y, guidance = torch.zeros(1, 1, *shape).normal_(), torch.zeros(1, 8, *(n // 8 for n in shape))
    seconds = {}
    with torch.inference_mode():
        for name, layout in _layouts().items():
            inputs = (torch.zeros_like(y), y, vector, guidance)
            seconds[name] = round(_timed(net.to(memory_format=layout), inputs, 1)[0], 2)
    return seconds


def _timed(network, inputs, repeats: int):
    """(best seconds after one call to warm up, the output)."""
    import torch

    with torch.inference_mode():
        output, best = network(*inputs).clone(), np.inf
        for _ in range(repeats):
            start = time.perf_counter()
            network(*inputs)
            best = min(best, time.perf_counter() - start)
    return best, output


def table(content: dict) -> str:
    """What is worth reading of a result, as text."""
    lines = [f"{content['job']}; {content['machine']['cpu']}, {content['machine']['cores']} cores"]
    for kind, r in content["inputs"].items():
        lines.append(
            f"  {kind:<14} {r['seconds']:6.2f} s (first call {r['first_call_s']:.2f} s), "
            f"{r['peak_gb']:.2f} GB peak, {r['ns_per_network_voxel']:.0f} ns per network voxel, "
            f"active fraction {r['active_fraction']:.2f}, {r['engine']} in {r['precision']}"
        )
    if "rivals" in content:
        for name, ratio in content["rivals"]["ours_times_faster_than"].items():
            lines.append(f"  network: {ratio:.2f}x faster than {name.replace('_', ' ')} PyTorch")
        for name, ratio in content["rivals"].get("bfloat16", {}).get("ours_times_faster_than", {}).items():
            lines.append(f"  network, both in bfloat16: {ratio:.2f}x faster than {name.replace('_', ' ')} PyTorch")
        for name, ratio in content["rivals"]["torch_engine_times_faster_than"].items():
            lines.append(f"  network, torch engine: {ratio:.2f}x faster than {name.replace('_', ' ')} PyTorch")
        for name, ratio in content["rivals"]["job_times_faster_than"].items():
            lines.append(f"  the job's network stage: {ratio:.2f}x faster than {name.replace('_', ' ')}")
        lines += [f"  MONAI was not timed: {content['rivals']['monai'].get('absent')}"] * (
            "absent" in content["rivals"]["monai"]
        )
        paper = content["rivals"]["paper_released_sampler"]
        lines.append(f"  the paper's released sampler: {paper['as_released_s'] / 86400:.1f} days ({paper['how']})")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", nargs="+", default=list(cases.INPUTS), choices=cases.INPUTS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--model", default="base", help='a shipped name, a path, or "random"')
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--no-rivals", action="store_true")
    record.add_place(parser)
    parser.add_argument("--part", choices=("ours", "rivals"), help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        part = {"ours": ours, "rivals": rivals}[args.part]
        args.answer.write_text(json.dumps(part(args.input[0], args.threads, args.model, args.repeats, args.precision)))
        return 0
    run(args.input, args.threads, args.model, args.repeats, not args.no_rivals, args.results)
    print(table(json.loads((args.results / "end_to_end.json").read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
