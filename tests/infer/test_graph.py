"""The loop as a CUDA graph: when it is used, that it asks the host for nothing, and (on a device) what it computes."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mrisr
from mrisr.grid import Grid
from mrisr.infer import tiles
from mrisr.infer.corrections import Corrections
from mrisr.infer.denoise import denoise
from mrisr.infer.engines import Choice, Engine, graph
from mrisr.infer.engines.torch import TorchEngine
from mrisr.infer.facts import Geometry, Machine, Options
from mrisr.infer.memory import COSTS
from mrisr.infer.plan import FramePlan, Pass, plan_scan
from mrisr.nn.condition import Condition
from mrisr.nn.vector import MEAN, SAMPLE
from mrisr.physics.psf import AxisPSF

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


class FakeGraph:
    """In place of Captured: counts its calls."""

    def __init__(self, function, inputs, pool=None):
        self.function, self.calls = function, 0

    def __call__(self, *inputs):
        self.calls += 1
        return self.function(*inputs)


@pytest.fixture
def trial(monkeypatch):
    """make(plain ms, replayed ms) -> a Trial without a device."""

    def make(plain: float, replayed: float):
        times = iter((plain, replayed))

        class Watch:
            def __enter__(self):
                self.time = next(times)
                return self

            def __exit__(self, *_):
                pass

            def milliseconds(self):
                return self.time

        monkeypatch.setattr(graph, "Stopwatch", Watch)
        monkeypatch.setattr(graph, "Captured", FakeGraph)
        return graph.Trial(pool=None)

    return make


def test_a_graph_that_pays_stays(trial):
    found, notes = trial(10.0, 8.0), []
    for call in range(1, 8):
        assert float(found(lambda x: 2 * x, (torch.tensor(float(call)),))) == 2 * call
        notes.append(found.note())
    assert found.graph.calls == 5 and found.gain == pytest.approx(1.25)
    assert notes[1] == "off, 2 calls of this shape are too few to gain"
    assert notes[2] == notes[3] == "on, not timed yet" and notes[4:] == ["1.25x"] * 3


def test_a_graph_that_does_not_pay_is_dropped(trial):
    found = trial(10.0, 9.9)
    for _ in range(7):
        found(torch.neg, (torch.ones(1),))
    assert found.graph is None and found.note() == "off, it would gain 1.0 %"


def test_what_cannot_be_captured_runs_as_it_is(trial, monkeypatch):
    def refuse(*_):
        raise RuntimeError("operation not permitted\nwhen the stream is capturing")

    found = trial(10.0, 8.0)
    monkeypatch.setattr(graph, "Captured", refuse)
    for _ in range(6):
        assert float(found(torch.neg, (torch.ones(1),))) == -1
    assert found.note() == "off, capture failed: operation not permitted"


def test_graphs_are_by_shape_and_one_at_a_time(trial, monkeypatch):
    trial(10.0, 8.0)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(graph, "Stopwatch", nullcontext)
    graphs = graph.Graphs(torch.device("cuda", 0))
    for key in "aaabb":
        graphs.run(key, torch.neg, torch.ones(1))
    assert graphs.trials["a"].graph and not graphs.trials["b"].graph
    assert graphs.note() == "CUDA graph off, 2 calls of this shape are too few to gain"
    for key in "baa":
        assert float(graphs.run(key, torch.neg, torch.ones(1))) == -1
    assert graphs.trials["b"].graph and not graphs.trials["a"].graph
    assert graphs.note() == "CUDA graph off, another shape has taken its place"
    graphs.clear()
    assert not graphs.trials


def test_there_is_none_on_a_cpu(random_model, head, monkeypatch):
    monkeypatch.setattr(graph, "Graphs", lambda device: pytest.fail("a graph on a CPU"))
    options = dict(factor=2, input_voxel_size=1.0, threads=1, return_info=True, engine="torch")
    _, info = mrisr.upscale(head((24, 24, 24)), model=random_model("local"), mode="sample", **options)
    assert info.engine.why == "asked for"


# --- nothing is asked of the host ---


class Copies(TorchDispatchMode):
    """Notes every operator that brings a tensor from one device to another."""

    def __init__(self, noted: list):
        super().__init__()
        self.noted = noted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        if len(devices) > 1:
            self.noted.append(str(func))
        return out


class Literals(TorchFunctionMode):
    """Notes every tensor made of Python numbers on a device: a copy from the host that no operator shows."""

    def __init__(self, noted: list):
        super().__init__()
        self.noted = noted

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (
            func in (torch.tensor, torch.as_tensor)
            and not isinstance(args[0], torch.Tensor)
            and out.device.type != "cpu"
        ):
            self.noted.append(func.__name__)
        return out


@contextmanager
def watched(noted: list):
    with Copies(noted), Literals(noted):
        yield


def test_the_watcher_sees_what_a_graph_could_not_hold():
    noted = []
    with watched(noted):
        torch.as_tensor(2.0, device="meta")
        torch.tensor([1, 2], device="meta")
        torch.ones(3, device="meta") * 2
        torch.ones(3).to("meta")
    assert noted == ["as_tensor", "tensor", "aten._to_copy.default"]
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.ones((), device="meta"))


class WatchedGraphs:
    """In place of Graphs: runs the function once, watched."""

    def __init__(self):
        self.keys, self.noted = [], []

    def run(self, key, function, *inputs):
        self.keys.append(key)
        with watched(self.noted):
            return function(*inputs)


def no_report(fraction):
    pass


class Given(Engine):
    """An engine that has its network already."""

    name, precision, precision_why, threads, capturable, cost = "given", "float32", "", 0, True, COSTS["torch"]

    def __init__(self, net, device="cpu"):
        self.net, self.device = net, torch.device(device)

    def prepare(self, shape, **how):
        return self.net


PSF = (AxisPSF("kspace", 2.0),) * 3


def plans_of(model, pieces, engine, **options):
    """(plan, frame plan) of a scan on a grid of 1 mm of which the network sees `pieces`."""
    grid, choice = Grid(pieces.shape, np.eye(4)), Choice("torch", engine.device, 0, "float32", "")
    geometry, free = Geometry(grid, grid, 1, PSF, "stated", True, (0, 1, 2)), Machine(10**12, 0)
    plan = plan_scan(geometry, Corrections(), model, Options(**options), choice, engine, free)
    return plan, FramePlan(plan.route, (Pass((), pieces, False, 0),))


def residual(model, pieces, engine, y, cond, graphs, **options):
    plan, frame = plans_of(model, pieces, engine, **options)
    return denoise(engine, plan, frame, y, [cond], no_report, graphs).mean


def of_mode(mode, samples=2):
    return {"mode": mode} if mode == "mean" else {"mode": mode, "steps": 3, "samples": samples, "seed": 4}


@pytest.mark.parametrize("mode", ["mean", "sample"])
@pytest.mark.parametrize("preset", ["local", "teacher-small"])
@pytest.mark.parametrize("told", [False, True])
def test_the_loop_asks_the_host_for_nothing(random_model, mode, preset, told):
    """On the meta device, whose tensors hold nothing: reading one raises, and copies from the host are noted."""
    model, graphs = random_model(preset), WatchedGraphs()
    pieces = tiles.plan((32, 30, 27), np.pad(np.ones((2, 2, 2), bool), 1))
    weights = {name: part.to("meta") for name, part in model.denoiser.net.state_dict().items()}

    def net(*inputs):
        return torch.func.functional_call(model.denoiser.net, weights, inputs)

    with torch.no_grad():
        y = torch.zeros(pieces.shape, device="meta")
        cond = Condition.of_acquisition(PSF, (1, 1, 1), 0.01, stored=(2, 2, 2), device="meta")
        if told:
            cond = replace(cond, guidance=torch.zeros(1, 8, 4, 4, 4, device="meta"))
        found = residual(model, pieces, Given(net, "meta"), y, cond, graphs, **of_mode(mode))
    assert found.device.type == "meta" and found.shape == y.shape
    assert graphs.keys == [("loop", pieces.box)] * (1 if mode == "mean" else 2)
    assert graphs.noted == []


def test_of_several_tiles_the_network_is_what_is_captured(random_model):
    model, graphs = random_model("local"), WatchedGraphs()
    pieces = tiles.plan((72, 48, 48), tile=48)
    engine = Given(model.denoiser.net)
    cond = Condition.of_acquisition(PSF, (1, 1, 1), 0.01, stored=(2, 2, 2))
    y = torch.rand(pieces.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = residual(model, pieces, engine, y, cond, graphs)
        expected = residual(model, pieces, engine, y, cond, None)
    assert graphs.keys == [("network", (48, 48, 48))] * 2 and torch.equal(found, expected)


# --- on a device ---


@contextmanager
def no_syncs():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class CapturedAtOnce:
    """In place of Graphs: captures the loop on other numbers, and replays it, and runs it as it is, without a wait."""

    def run(self, key, function, *inputs):
        function(*inputs)  # libraries choose their algorithms
        with no_syncs():
            self.plain = function(*inputs)
        captured = graph.Captured(function, [None if t is None else torch.zeros_like(t) for t in inputs])
        with no_syncs():
            return captured(*inputs)


@pytest.mark.parametrize("mode", [pytest.param(m, marks=gpu) for m in ("mean", "sample")])
@pytest.mark.parametrize("preset", ["local", "teacher-small"])
def test_the_graph_computes_the_loop(random_model, mode, preset):
    model, device = random_model(preset), torch.device("cuda", 0)
    pieces, graphs = tiles.plan((64, 60, 52), np.pad(np.ones((6, 6, 5), bool), 1)), CapturedAtOnce()
    engine = TorchEngine(model.denoiser.net, device, 0)
    y = torch.rand(pieces.shape, generator=torch.Generator().manual_seed(0)).to(device)
    cond = Condition.of_acquisition(
        PSF, (1, 1, 1), 0.01, stored=(2, 2, 2), mode=MEAN if mode == "mean" else SAMPLE, device=device
    )
    with torch.inference_mode():
        found = residual(model, pieces, engine, y, cond, graphs, **of_mode(mode, samples=1))
    assert torch.isfinite(found).all() and found.any()
    assert (found - graphs.plain).abs().max() <= 1e-6 * found.abs().max()


@pytest.mark.parametrize("samples", [pytest.param(6, marks=gpu)])
def test_a_job_says_what_became_of_its_graph(random_model, head, samples):
    options = dict(factor=2, input_voxel_size=1.0, return_info=True, samples=samples, steps=3, seed=1)
    found, info = mrisr.upscale(head((40, 48, 36)), model=random_model("local"), device="cuda", **options)
    expected, _ = mrisr.upscale(head((40, 48, 36)), model=random_model("local"), device="cpu", **options)
    assert "; CUDA graph " in info.engine.why and "capture failed" not in info.engine.why
    assert np.abs(found - expected).max() < 1e-3 * np.ptp(expected)
