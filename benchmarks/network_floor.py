"""Where the student's time on a CPU goes, and how near it is to what the processor can do at all.

    python benchmarks/network_floor.py [--threads 2] [--shape 128 160 128]

The same weights and voxels, interleaved: OpenVINO on the plain export, OpenVINO on what the engine compiles, PyTorch's
slabs, the module's own forward, and the convolutions alone. The floor is the network's arithmetic at the best float32
rate found on this machine (matrix products, and convolutions of wide maps that stay in the cache). `openvino_layers`
says how much of OpenVINO's time is not convolution, which is all that another export could save. Writes
network_floor.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cases
import checkout  # noqa: F401
import record
import timing

REPEATS = 5
TOLERANCE = 1e-4


def run(shape=(128, 160, 128), threads: int = 2, model: str = "base", folder: Path = record.UNRECORDED) -> dict:
    """Measure, write network_floor.json into `folder`, and return its content."""
    import torch
    from end_to_end import load

    from mrisr.infer.engines.openvino import OpenVINOEngine
    from mrisr.infer.engines.torch import TorchEngine

    torch.set_num_threads(threads)
    net = load(model).denoiser.net.eval().requires_grad_(False)
    inputs = cases.network_inputs(shape)
    engine = TorchEngine(net, torch.device("cpu"), threads)
    own, counted = _openvino(net, shape, threads), {}
    compiled, slabs = OpenVINOEngine(net, threads).prepare(shape), engine.prepare(shape)
    contenders = {
        "openvino, plain export": lambda: own(inputs),
        "openvino, engine": lambda: compiled(*inputs),
        "torch, slabs": lambda: slabs(*inputs),
        "torch, module": lambda: engine._net(*inputs),
        "torch, convolutions alone": _convolutions(engine._net, inputs, counted),
    }
    with torch.inference_mode():
        expected = engine._net(*inputs)
        for name, call in list(contenders.items())[:3]:
            error = float((call() - expected).abs().max() / expected.abs().max())
            if not error < TOLERANCE:
                raise RuntimeError(f"network_floor: {name} is off by {error:.1e}; nothing is timed")
        seconds = {name: [] for name in contenders}
        for _ in range(REPEATS):
            for name, call in contenders.items():
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    best = {name: round(min(times), 4) for name, times in seconds.items()}
    rate = _best_rate()
    content = {
        "shape": list(shape),
        "threads": threads,
        "gflop_of_the_convolutions": round(counted["flop"] / 1e9, 1),
        "best_gflop_per_s": round(rate / 1e9, 1),
        "floor_s": round(counted["flop"] / rate, 4),
        "seconds": best,
        "share_of_the_floor": {name: round(counted["flop"] / rate / s, 3) for name, s in best.items()},
        "openvino_layers": own.layers(),
    }
    record.write("network_floor", content, folder)
    return content


def _best_rate() -> float:
    """FLOP per second of the fastest float32 product or convolution found."""
    import torch

    rates = [timing.matmul_rate("cpu", n=n) for n in (512, 1024)]
    for width, edge in ((64, 24), (128, 16), (256, 12)):
        conv = torch.nn.Conv3d(width, width, 3, padding=1).to(memory_format=torch.channels_last_3d)
        x = torch.randn(1, width, edge, edge, edge).to(memory_format=torch.channels_last_3d)
        with torch.inference_mode():
            rates.append(2 * 27 * width**2 * edge**3 / timing.seconds(lambda conv=conv, x=x: conv(x)))
    return max(rates)


class _openvino:
    """The plain export: what `ov.convert_model` makes of the module, compiled for the shape, with layer times."""

    def __init__(self, net, shape, threads: int) -> None:
        from mrisr import third_party
        from mrisr.infer.engines import openvino as engine

        ov = third_party.openvino()

        model = engine._convert(net)
        model.reshape(dict(zip(model.inputs, engine._shapes(shape))))
        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        self.plain = ov.Core().compile_model(model, "CPU", hints)
        self.profiled = ov.Core().compile_model(model, "CPU", {**hints, "PERF_COUNT": True})
        self.request = self.plain.create_infer_request()
        self.inputs = None

    def __call__(self, inputs):
        import torch

        self.inputs = [t.numpy() for t in inputs]
        self.request.infer(self.inputs)
        return torch.from_numpy(self.request.get_output_tensor(0).data)

    def layers(self) -> dict[str, float]:
        """Share of each kind of layer in one run."""
        request = self.profiled.create_infer_request()
        for _ in range(2):
            request.infer(self.inputs)
        seconds = Counter()
        for layer in request.get_profiling_info():
            seconds[layer.node_type] += layer.real_time.total_seconds()
        total = sum(seconds.values())
        return {kind: round(s / total, 3) for kind, s in seconds.most_common() if s / total >= 0.001}


def _convolutions(net, inputs, counted: dict):
    """A call that does every convolution of a forward pass on maps of the right size, and nothing else."""
    import torch

    layers = []

    def note(module, inputs, output):
        taps = module.weight.numel() // (module.weight.shape[0] * module.weight.shape[1])
        strided = module.stride[0] > 1
        voxels = (inputs[0] if strided and isinstance(module, torch.nn.ConvTranspose3d) else output)[0, 0].numel()
        counted["flop"] = counted.get("flop", 0) + 2 * voxels * taps * module.in_channels * module.out_channels
        layers.append((module, torch.rand_like(inputs[0])))

    hooks = [
        m.register_forward_hook(note)
        for m in net.modules()
        if isinstance(m, torch.nn.Conv3d | torch.nn.ConvTranspose3d)
    ]
    with torch.inference_mode():
        net(*inputs)
    for hook in hooks:
        hook.remove()

    def call():
        for module, x in layers:
            module(x)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 160, 128))
    record.add_place(parser)
    options = parser.parse_args()
    content = run(tuple(options.shape), options.threads, folder=options.results)
    for name, s in content["seconds"].items():
        print(
            f"{name:<28} {s:7.3f} s  {content['share_of_the_floor'][name]:.0%} of the floor {content['floor_s']:.3f} s"
        )
    print(content["openvino_layers"])


if __name__ == "__main__":
    main()
