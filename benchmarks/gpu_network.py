"""The parts of gpu_day.py that concern convolutions, the network and whole jobs. Each takes a Setting."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager

import cases
import rivals
import timing
import torch
from gpu_setting import Setting

from mrisr.nn.vector import VECTOR_DIM

LAYOUT_CHANGE = re.compile(r"nchwToNhwc|nhwcToNchw|NCHW.*NHWC|NHWC.*NCHW|convertTensor|slow_conv", re.IGNORECASE)
FORMATS = {"last": torch.channels_last_3d, "first": torch.contiguous_format}
# dtype, whether TF32 is allowed, and the largest ||out - reference|| / ||reference|| of a right convolution
PRECISIONS = {
    "bf16": (torch.bfloat16, False, 2e-2),
    "fp16": (torch.float16, False, 3e-3),
    "tf32": (torch.float32, True, 3e-3),
    "fp32": (torch.float32, False, 1e-5),
}


@contextmanager
def tf32(allowed: bool):
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=allowed):
        yield


def conv3d(setting: Setting) -> dict:
    """3^3 convolutions of student and teacher in both layouts and four precisions: TFLOP/s, checked against float64."""
    grid = (8, 8, 8) if setting.tiny else (132, 156, 132)
    table, rows, failures = ["conv3d TFLOP/s          bf16    fp16    tf32    fp32"], [], []
    nets = {"tiny": (8,)} if setting.tiny else {"student": (32, 64, 128), "teacher": (64, 128, 256)}
    for name, widths in nets.items():
        for level, channels in enumerate(widths):
            for layout in FORMATS:
                shape = (1, channels, *(max(4, n >> level) for n in grid))
                by_precision = {p: _convolution(setting, shape, layout, p, failures) for p in PRECISIONS}
                rows.append({"net": name, "shape": shape, "layout": layout, **by_precision})
                rates = "".join(f"{by_precision[p] or 0:8.1f}" for p in PRECISIONS)
                table.append(f"{name} C={channels:<4} {layout:<5} {rates}")
    return {"rows": rows, "table": table, "failures": failures}


def _convolution(setting: Setting, shape, layout: str, precision: str, failures: list) -> float | None:
    """TFLOP/s, or None where the values are wrong or it does not run."""
    dtype, allowed, limit = PRECISIONS[precision]
    channels = shape[1]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(channels, channels, 3, 3, 3, generator=generator) / (27 * channels) ** 0.5
    x = torch.randn(*shape, generator=generator)
    try:
        x, weight = (t.to(setting.device, dtype).contiguous(memory_format=FORMATS[layout]) for t in (x, weight))
        with torch.inference_mode(), tf32(allowed):
            out = torch.nn.functional.conv3d(x, weight, padding=1)
            # The corner that a small convolution in float64 can check.
            part = x[..., :9, :9, :9].double().cpu().contiguous()
            expected = torch.nn.functional.conv3d(part, weight.double().cpu().contiguous(), padding=1)
            size = tuple(min(8, n) for n in shape[2:])
            inside = tuple(slice(0, n if n < 9 else 8) for n in size)
            answer, expected = (t[(..., *inside)].double().cpu() for t in (out, expected))
            error = float((answer - expected).norm() / expected.norm())
            if not error <= limit:
                failures.append(f"conv3d {shape} {layout} {precision}: off by {error:.1e} > {limit:.0e}")
                return None
            seconds = timing.seconds(lambda: torch.nn.functional.conv3d(x, weight, padding=1), setting.device, 0.1)
    except RuntimeError as error:
        failures.append(f"conv3d {shape} {layout} {precision}: {str(error).splitlines()[0]}")
        return None
    flop = 2 * 27 * channels * out.numel()
    return round(flop / seconds / 1e12, 2)


def network(setting: Setting) -> dict:
    """The student on our operators, eager and as a CUDA graph, beside PyTorch's own, eager and compiled."""
    sizes = [(8, 8, 16)] if setting.tiny else [(64, 64, 64), (128, 160, 128), (264, 312, 264)]
    table, rows, failures = ["student ms: size, dtype, ours, ours as a graph, plain eager, plain compiled"], [], []
    for shape in sizes:
        for dtype in (torch.float32,) if setting.tiny else (torch.float32, torch.bfloat16):
            row = _network_row(setting, shape, dtype, failures)
            rows.append(row)
            cells = "  ".join(f"{row[k] * 1e3:.3f}" if row.get(k) else "-" for k in KEYS)
            table.append(f"{'x'.join(map(str, shape)):<13} {row['dtype']:<9} {cells}")
    return {"rows": rows, "table": table, "failures": failures}


KEYS = ("ours_s", "graph_s", "plain_s", "compiled_s")


def _network_row(setting: Setting, shape, dtype, failures: list) -> dict:
    net, inputs = _student(setting, shape, dtype)
    row = {"shape": shape, "dtype": str(dtype).removeprefix("torch.")}
    compiled = torch.compile(net, fullgraph=True, backend="eager" if setting.tiny else "inductor")
    with torch.inference_mode(), tf32(dtype is not torch.float32):
        with rivals.plain_operators():
            expected = net(*inputs).float()
            row["plain_s"] = timing.seconds(lambda: net(*inputs), setting.device)
            try:
                _same(compiled(*inputs), expected, dtype, f"compiled {shape}", failures)
                row["compiled_s"] = timing.seconds(lambda: compiled(*inputs), setting.device)
            except Exception as error:  # noqa: BLE001 - a compiler that fails is a finding, not the end
                row["compiled"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        _same(net(*inputs), expected, dtype, f"ours {shape}", failures)
        row["ours_s"] = timing.seconds(lambda: net(*inputs), setting.device)
        if setting.on_gpu:
            row |= _graph(net, inputs, expected, dtype, failures)
    return row


def _graph(net, inputs, expected, dtype, failures: list) -> dict:
    """Seconds of a replay, and whether the network waits for the host anywhere."""
    facts = {"host_syncs": "none"}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        net(*inputs)
    except RuntimeError as error:
        facts["host_syncs"] = str(error).splitlines()[0]
        failures.append(f"the network waits for the host: {facts['host_syncs']}")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            net(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    try:
        with torch.cuda.graph(graph):
            out = net(*inputs)
    except RuntimeError as error:
        return {**facts, "graph": str(error).splitlines()[0]}
    graph.replay()
    _same(out, expected, dtype, f"graph {tuple(out.shape)}", failures)
    return {**facts, "graph_s": timing.seconds(graph.replay, "cuda")}


def _same(answer, expected, dtype, what: str, failures: list) -> None:
    difference = float((answer.float() - expected).abs().max() / expected.abs().max())
    if not difference <= (1e-4 if dtype is torch.float32 else 5e-2):
        failures.append(f"{what} {dtype}: differs from eager by {difference:.1e} of the largest output")


def _student(setting: Setting, shape, dtype):
    """The shipped network in channels-last, and random arguments of this size."""
    import copy

    from mrisr.weights import registry

    net = copy.deepcopy(registry.load("base").denoiser.net).to(setting.device, dtype)
    net = net.to(memory_format=torch.channels_last_3d)
    generator = torch.Generator().manual_seed(0)
    y, vector = torch.randn(1, 1, *shape, generator=generator), torch.randn(1, VECTOR_DIM, generator=generator)
    guidance = torch.zeros(1, 8, *(n // 8 for n in shape))
    return net, [t.to(setting.device, dtype) for t in (torch.zeros_like(y), y, vector, guidance)]


def loop(setting: Setting) -> dict:
    """The sampling loop of a whole job: what its graph gains, and its time beside steps times the network's own."""
    import mrisr

    steps, samples = (2, 2) if setting.tiny else (4, 8)
    rows, failures, table = [], [], ["edge, ms per step, network's own ms, ratio, what became of the graph"]
    for edge in (12,) if setting.tiny else (48, 96, 160):
        _, info = mrisr.upscale(
            cases.head((edge,) * 3), input_voxel_size=1.0, voxel_size=cases.REFERENCE_TARGET, device=setting.device,
            engine="torch", mode="sample", steps=steps, samples=samples, threads=setting.threads, return_info=True,
        )  # fmt: skip
        own = _network_row(setting, info.tiles.size, torch.float32, failures)
        alone = min(own[key] for key in ("ours_s", "graph_s") if key in own)
        each = info.seconds["network"] / (steps * samples)
        rows.append({"edge": edge, "per_step_s": each, "network_s": alone, "graph": info.engine.why})
        table.append(f"{edge}  {each * 1e3:.3f}  {alone * 1e3:.3f}  {each / alone:.2f}  {info.engine.why}")
    return {"rows": rows, "steps": steps, "samples": samples, "table": table, "failures": failures}


def agreement(setting: Setting) -> dict:
    """mrisr.upscale on the device beside the CPU: both modes, both networks, both precisions."""
    import mrisr

    scan = cases.head((12, 12, 12) if setting.tiny else (48, 48, 48))
    jobs = {
        "student, mean": ({}, 1e-4),
        "student, sample in 4 steps": ({"mode": "sample", "steps": 4, "seed": 1}, 1e-3),
        "teacher-small, mean": ({"model": "teacher-small"}, 1e-3),
        "student, bfloat16 beside float32": ({"precision": "bfloat16"}, 5e-3),
    }
    if setting.tiny:
        jobs = {name: job for name, job in jobs.items() if "bfloat16" not in name and "teacher" not in name}
    rows, failures = {}, []
    for name, (options, limit) in jobs.items():
        common = dict(input_voxel_size=1.0, engine="torch", threads=setting.threads)
        on_cpu = mrisr.upscale(scan, device="cpu", **common, **{**options, "precision": "float32"})
        there = mrisr.upscale(scan, device=setting.device, **common, **{"precision": "float32", **options})
        rows[name] = float(abs(there - on_cpu).max() / abs(on_cpu).max())
        if not rows[name] <= limit:
            failures.append(f"{name}: differs from the CPU's by {rows[name]:.1e} of its largest value, not {limit:.0e}")
    return {"differences": rows, "table": [f"{k}: {v:.1e}" for k, v in rows.items()], "failures": failures}


def capture(setting: Setting) -> dict:
    """The network and the sampling loop as CUDA graphs: whether they are captured, and give the same values."""
    shape = (8, 8, 16) if setting.tiny else (64, 64, 64)
    rows, failures, table = [], [], []
    for dtype in (torch.float32,) if setting.tiny else (torch.float32, torch.bfloat16):
        net, inputs = _student(setting, shape, dtype)
        row = {"shape": shape, "dtype": str(dtype).removeprefix("torch.")}
        with torch.inference_mode(), tf32(dtype is not torch.float32):
            with rivals.plain_operators():
                expected = net(*inputs).float()
            _same(net(*inputs), expected, dtype, f"ours {shape}", failures)
            row |= _graph(net, inputs, expected, dtype, failures) if setting.on_gpu else {}
        failures += [f"{row['dtype']}: not captured: {row['graph']}"] if "graph" in row else []
        rows.append(row)
        table.append(str(row))
    return {"rows": rows, "table": table, "failures": failures}


def reference(setting: Setting) -> dict:
    """The reference job by the public function, student in one step, in float32 and bfloat16."""
    scan = cases.head((12, 12, 12) if setting.tiny else cases.REFERENCE_SHAPE)
    precisions = ("float32",) if setting.tiny else ("float32", "bfloat16")
    rows = {name: _job(setting, scan, 1 if setting.tiny else 3, precision=name) for name in precisions}
    return {"jobs": rows, "table": _job_lines(rows)}


def teacher(setting: Setting) -> dict:
    """The reference job by a network of the teacher's size, in sixteen steps."""
    scan = cases.head((12, 12, 12) if setting.tiny else cases.REFERENCE_SHAPE)
    steps = 2 if setting.tiny else 16
    rows = {f"{steps} steps": _job(setting, scan, 1, model=_teacher(setting), mode="sample", steps=steps)}
    return {"jobs": rows, "table": _job_lines(rows)}


def _job_lines(rows: dict) -> list[str]:
    return [f"{name}: {r['seconds']} s (first {r['first_call_s']} s), {r['peak_gb']} GB" for name, r in rows.items()]


def _teacher(setting: Setting):
    """A network of the teacher's size with random weights: its time does not depend on them."""
    from mrisr.diffusion.precond import Denoiser
    from mrisr.nn.presets import build
    from mrisr.weights.registry import LoadedModel

    torch.manual_seed(0)
    net = build("tiny" if setting.tiny else "teacher").eval()
    torch.nn.init.normal_(net.exit.weight, std=0.05)
    return LoadedModel(Denoiser(net, 0.05), "random teacher", {}, "", None)


def _job(setting: Setting, scan, repeats: int, **options) -> dict:
    import mrisr

    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds, stages = [], []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        _, info = mrisr.upscale(
            scan, input_voxel_size=1.0, voxel_size=cases.REFERENCE_TARGET, device=setting.device, engine="torch",
            threads=setting.threads, return_info=True, **options,
        )  # fmt: skip
        seconds.append(time.perf_counter() - start)
        stages.append(info.seconds)
    return {
        "first_call_s": round(seconds[0], 3),
        "seconds": round(min(seconds[1:]), 3),
        "stages_s": {name: round(min(s[name] for s in stages[1:]), 4) for name in stages[0]},
        "peak_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2) if setting.on_gpu else 0.0,
        "tiles": {"kind": info.tiles.kind, "size": info.tiles.size},
        "active_fraction": round(info.tiles.active_fraction, 3),
    }


def memory(setting: Setting) -> dict:
    """Stated budgets are kept: the peak of device memory at each, and what keeping it costs in time."""
    from mrisr.errors import MrisrError

    scan = cases.head((12, 12, 12) if setting.tiny else cases.REFERENCE_SHAPE)
    rows, failures = {}, []
    for budget, size in {"1GB": 1e9, "2GB": 2e9, "4GB": 4e9}.items():
        try:
            if setting.on_gpu:
                torch.cuda.empty_cache()
            rows[budget] = _job(setting, scan, 1, memory=budget)
        except MrisrError as error:
            rows[budget] = {"refused": str(error)}
            continue
        if rows[budget]["peak_gb"] * 1e9 > size:
            failures.append(f"memory={budget}: the peak was {rows[budget]['peak_gb']} GB")
    return {"budgets": rows, "table": [f"{k}: {v}" for k, v in rows.items()], "failures": failures}


def profile(setting: Setting) -> dict:
    """Which kernels the student runs, and the proof that none of them changes a layout."""
    from torch.profiler import ProfilerActivity

    from mrisr.infer.engines.select import choose, make

    shape = (8, 8, 16) if setting.tiny else (128, 160, 128)
    net, inputs = _student(setting, shape, torch.float32)
    run = make(choose("torch", setting.device, net, setting.threads), net).prepare(shape)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if setting.on_gpu else [])
    for _ in range(3):
        run(*inputs)
    with torch.profiler.profile(activities=kinds) as recorded:
        run(*inputs)
        if setting.on_gpu:
            torch.cuda.synchronize()
    key = "self_device_time_total" if setting.on_gpu else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda e: -getattr(e, key))
    total = sum(getattr(e, key) for e in events) or 1.0
    top = [{"name": e.key, "calls": e.count, "share": round(getattr(e, key) / total, 4)} for e in events[:20]]
    changing = sorted({e.key for e in events if LAYOUT_CHANGE.search(e.key)})
    table = [f"{row['share']:6.1%} {row['calls']:4} x {row['name'][:90]}" for row in top[:12]]
    failures = [f"changes a layout or is slow: {name}" for name in changing] if setting.on_gpu else []
    return {"kernels": top, "layout_changes": changing, "table": table, "failures": failures}
