"""Whether int8 is worth having: the shipped network quantised after training, beside float32 and bfloat16.

    pip install nncf==3.4.0
    python experiments/int8.py --data SCANS [--record]

OpenVINO's graph, quantised by NNCF on tiles that the pipeline shows the network of the scans it was trained on. The
entrance, the exit and the conditioning stay in bfloat16. Timed on one tile, the three by turns; then the PSNR of every
case of the protocol on people who were not trained on. Worth having: at least 1.3 times as fast as bfloat16, and at
most 0.03 dB lost. Writes int8.json.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import record

import mrisr
from mrisr.environment import bfloat16_instructions
from mrisr.errors import MrisrWarning
from mrisr.evaluate.cases import CASES, PROTOCOL, make_trial
from mrisr.evaluate.methods import Network
from mrisr.evaluate.metrics import data_range, psnr
from mrisr.evaluate.protocol import find_volumes, load_subjects
from mrisr.infer.engines import openvino, precision
from mrisr.nn.vector import GUIDANCE_STRIDE, input_shapes
from mrisr.weights import registry

HELD_OUT = ("t1w_0p9mm_b", "flair_1mm_p26")
CALIBRATION = ("t1w_0p7mm_a", "t1w_1p33mm_lh01", "t2w_1mm_M2307", "flair_1mm_p19", "t1w_1x1x2_dep03")
SEEN = ("iso2", "thick4")  # cases that the tiles are of
LEAST_GAIN, MOST_LOSS_DB = 1.3, 0.03
KEPT = ("entrance", "exit", "guide")  # convolutions that stay in bfloat16; of the products with the conditioning all do
WAYS = ("float32", "bfloat16", "int8")


class Shown:
    """Tiles that the pipeline shows the network, their middles kept."""

    def __init__(self, edge: int) -> None:
        self.edge, self.tiles = edge, []

    def keep(self, x, y, vector, guidance) -> None:
        at = [max(0, (n - self.edge) // 2) // GUIDANCE_STRIDE * GUIDANCE_STRIDE for n in y.shape[2:]]
        fine = (..., *(slice(a, a + self.edge) for a in at))
        coarse = (..., *(slice(a // GUIDANCE_STRIDE, (a + self.edge) // GUIDANCE_STRIDE) for a in at))
        self.tiles.append([np.ascontiguousarray(t) for t in (x[fine], y[fine], vector, guidance[coarse])])

    @contextmanager
    def watching(self) -> Iterator[None]:
        plain = openvino._Compiled.network

        def network(compiled):
            run = plain(compiled)

            def watched(*tensors, **more):
                self.keep(*(t.detach().numpy() for t in tensors[:4]))
                return run(*tensors, **more)

            return watched

        openvino._Compiled.network = network
        try:
            yield
        finally:
            openvino._Compiled.network = plain


@contextmanager
def in_place_of_bfloat16(converted, model) -> Iterator[None]:
    """Inside, what asks for bfloat16 gets `model`; its layers that are not int8 are in bfloat16."""
    plain, float_graph, gate = type(converted).compile, converted.model, precision.measure_once

    def compile_(self, shape, threads, computes_in):
        self.model = model if computes_in == "bfloat16" else float_graph
        return plain(self, shape, threads, computes_in)

    converted.compiled.clear()
    type(converted).compile = compile_
    precision.measure_once = lambda key, measure: 0.0  # the gate is bfloat16's
    try:
        yield
    finally:
        type(converted).compile, precision.measure_once = plain, gate
        converted.model = float_graph
        converted.compiled.clear()


def calibration(data: Path, model, crop: int, edge: int, threads: int | None) -> list:
    """Tiles of the training scans, each in the cases SEEN."""
    shown = Shown(edge)
    method = Network(model=model, engine="openvino", precision="float32", threads=threads, stated=True)
    for path in find_volumes([data / f"{name}.nii.gz" for name in CALIBRATION]):
        subject = load_subjects(path, crop)[0]
        for name in SEEN:
            trial = make_trial(subject, CASES[name], 0)
            with shown.watching():
                method(trial)
    return shown.tiles


def quantised(model, tiles: list):
    """(the int8 graph, how many of its convolutions are quantised)."""
    import nncf

    nncf.set_log_level(40)
    convolutions = [n.get_friendly_name() for n in model.get_ops() if "Convolution" in n.get_type_name()]
    kept = [name for name in convolutions if any(f".{part}/" in name for part in KEPT)]
    if len(kept) != len(KEPT):
        raise SystemExit(f"int8: expected the convolutions {', '.join(KEPT)}, found {kept} of {convolutions}")
    graph = nncf.quantize(
        model.clone(),
        nncf.Dataset(tiles),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(tiles),
        ignored_scope=nncf.IgnoredScope(names=kept, types=["MatMul"]),
    )
    return graph, len(convolutions) - len(kept)


def timed(converted, graph, edge: int, threads: int, rounds: int) -> dict:
    """Seconds of one tile, of the clock and of the processors, the three ways by turns."""
    import torch

    generator = torch.Generator().manual_seed(0)
    fine, coarse = (1, 1, *(edge,) * 3), (edge // GUIDANCE_STRIDE,) * 3
    shapes = input_shapes((edge,) * 3)
    inputs = [
        torch.zeros(fine),
        torch.rand(fine, generator=generator),
        torch.rand(shapes[2], generator=generator),
        torch.zeros((1, shapes[3][1], *coarse)),
    ]
    runs = {name: converted.compile((edge,) * 3, threads, name).network() for name in WAYS[:2]}
    with in_place_of_bfloat16(converted, graph):
        runs["int8"] = converted.compile((edge,) * 3, threads, "bfloat16").network()
        clock: dict[str, list[float]] = {name: [] for name in WAYS}
        busy: dict[str, list[float]] = {name: [] for name in WAYS}
        for turn in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter(), time.process_time()
                run(*inputs)
                if turn:
                    clock[name].append(round(time.perf_counter() - start[0], 4))
                    busy[name].append(round(time.process_time() - start[1], 4))
    return {"edge": edge, "threads": threads, "seconds": clock, "processor_seconds": busy}


def compared(args: argparse.Namespace, model, converted, graph) -> list[dict]:
    """PSNR of each case, one row a scan and case."""
    rows = []
    for path in find_volumes([args.data / f"{name}.nii.gz" for name in args.held_out]):
        subject = load_subjects(path, args.crop)[0]
        for case in args.cases:
            trial = make_trial(subject, CASES[case], 0)
            span, row = data_range(trial.reference), {"subject": trial.subject, "case": case}
            for name in WAYS:
                asked = "float32" if name == "float32" else "bfloat16"
                method = Network(model=model, engine="openvino", precision=asked, threads=args.threads, stated=True)
                if name == "int8":
                    with in_place_of_bfloat16(converted, graph):
                        image = method(trial)
                else:
                    image = method(trial)
                row[name] = round(psnr(trial.reference, image, trial.mask, span), 4)
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the scans")
    parser.add_argument("--held-out", nargs="+", default=HELD_OUT, metavar="NAME")
    parser.add_argument("--model", default="base", help="name or .safetensors (default: base)")
    parser.add_argument("--crop", type=int, default=104, metavar="N", help="middle N^3 voxels (default: 104)")
    parser.add_argument("--cases", nargs="+", default=list(PROTOCOL), choices=list(CASES), metavar="CASE")
    parser.add_argument("--tile", type=int, default=128, metavar="N", help="edge of the timed tile (default: 128)")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="times each way runs it (default: 9)")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    record.add_place(parser)
    args = parser.parse_args()
    warnings.simplefilter("ignore", MrisrWarning)
    model = mrisr.load_model(registry.locate(args.model))  # by its path: one network, whatever the scan
    converted = openvino.OpenVINOEngine(model.denoiser.net, args.threads)._converted()
    tiles = calibration(args.data, model, args.crop, 64, args.threads)
    graph, convolutions = quantised(converted.model, tiles)
    timing = timed(converted, graph, args.tile, args.threads, args.rounds)
    rows = compared(args, model, converted, graph)
    # Of the processors: what else the machine does is not in it.
    middle = {name: median(values) for name, values in timing["processor_seconds"].items()}
    gain = middle["bfloat16"] / middle["int8"]
    loss = [row["bfloat16"] - row["int8"] for row in rows]
    content = {
        "command": f"python experiments/int8.py --data SCANS --crop {args.crop} --tile {args.tile} "
        f"--cases {' '.join(args.cases)}",
        "model": {"name": args.model, "sha256": model.sha256},
        "instructions": list(bfloat16_instructions()),
        "quantised": {
            "convolutions": convolutions,
            "kept": list(KEPT),
            "tiles": len(tiles),
            "scans": list(CALIBRATION),
        },
        "timing": timing,
        "times_faster_than_bfloat16": round(gain, 3),
        "loss_db": {"mean": round(float(np.mean(loss)), 4), "largest": round(max(loss), 4)},
        "limits": {"times_faster_than_bfloat16": LEAST_GAIN, "loss_db": MOST_LOSS_DB},
        "worth_having": bool(gain >= LEAST_GAIN and max(loss) <= MOST_LOSS_DB),
        "rows": rows,
    }
    path = record.write("int8", content, args.results)
    print({n: round(s, 4) for n, s in middle.items()}, content["loss_db"], content["worth_having"], path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
