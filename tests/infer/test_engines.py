"""Engines: the same numbers, the promised choice, nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch

from mrisr.errors import BackendError, UsageError
from mrisr.infer import engines
from mrisr.nn.vector import VECTOR_DIM

CPU = torch.device("cpu")


def made(*args, **how):
    """(engine, why) of the arguments of `engines.choose`."""
    choice = engines.choose(*args, **how)
    return engines.make(choice, args[2]), choice.why


def inputs(shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    coarse = tuple(n // 8 for n in shape)
    return (
        torch.randn(1, 1, *shape, generator=g),
        torch.randn(1, 1, *shape, generator=g),
        torch.randn(1, VECTOR_DIM, generator=g),
        torch.randn(1, 8, *coarse, generator=g),
    )


@pytest.fixture(scope="module")
def net(random_model):
    return random_model("local").denoiser.net


@pytest.mark.parametrize("shape", [(40, 24, 72), (8, 8, 8)])
@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_engines_agree_with_the_network_in_float64(net, name, shape):
    given = inputs(shape)
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(*(t.double() for t in given))
    engine, why = made(name, "cpu", net, 2)
    result = engine.prepare(shape)(*given)
    assert why == "asked for" and result.shape == exact.shape and result.dtype == torch.float32
    assert (result - exact).abs().max() / exact.abs().max() < 1e-5
    engine.release()


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_the_same_call_gives_the_same_bits(net, name):
    engine, _ = made(name, "cpu", net, 2)
    run, given = engine.prepare((32, 24, 40)), inputs((32, 24, 40))
    first = run(*given).clone()
    run(*inputs((32, 24, 40), seed=1))
    assert torch.equal(run(*given), first)


def test_auto_takes_openvino_on_a_cpu_and_says_so(net):
    engine, why = made("auto", "cpu", net, None)
    assert engine.name == "openvino" and why.startswith("auto: ") and engine.threads >= 1


def test_auto_says_why_it_did_not_take_openvino(random_model):
    engine, why = made("auto", "cpu", random_model("tiny").denoiser.net, 1)
    assert engine.name == "torch" and "not openvino, because" in why


@pytest.mark.parametrize(
    ("engine", "device", "kind", "text"),
    [
        ("openvino", "cpu", "tiny", "openvino was asked for, but .*; use torch, or auto"),
        (
            "tensorrt",
            "cpu",
            "local",
            "tensorrt was asked for, but (the package tensorrt is not installed|it runs on CUDA)",
        ),
    ],
)
def test_an_engine_asked_for_never_falls_back(random_model, engine, device, kind, text):
    with pytest.raises(BackendError, match=text):
        made(engine, device, random_model(kind).denoiser.net, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_is_one_clear_error(net):
    with pytest.raises(BackendError, match="cuda:0 was asked for, but .*; use cpu, or auto"):
        made("torch", "cuda:0", net, 1)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:0", "", "cuda:"])
def test_unknown_devices_are_refused(net, device):
    with pytest.raises((UsageError, BackendError), match="device: "):
        made("torch", device, net, 1)


def test_unknown_engines_and_threads_are_refused(net):
    with pytest.raises(UsageError, match="engine: expected one of"):
        made("onnx", "cpu", net, 1)
    for threads in (0, -1, 1.5, True, "2"):
        with pytest.raises(UsageError, match="threads: expected"):
            made("torch", "cpu", net, threads)


def test_torch_engine_leaves_the_caller_as_it_was(net):
    before, layout = torch.get_num_threads(), net.exit.weight.stride()
    engine, _ = made("torch", "cpu", net, before + 1)
    engine.prepare((16, 16, 16))(*inputs((16, 16, 16)))
    assert torch.get_num_threads() == before and net.exit.weight.stride() == layout


def test_openvino_compiles_once_per_shape_and_follows_the_weights(net):
    from mrisr.infer.engines.openvino import KEEP_SHAPES, _networks

    mine = copy.deepcopy(net)
    engine, _ = made("openvino", "cpu", mine, 1)
    engine.prepare((16, 16, 24))
    first = _networks[mine].compiled[((16, 16, 24), 1, "float32")]
    engine.prepare((16, 16, 24))
    assert _networks[mine].compiled[((16, 16, 24), 1, "float32")] is first
    for n in range(KEEP_SHAPES + 1):
        engine.prepare((16, 16, 32 + 8 * n))
    assert len(_networks[mine].compiled) == KEEP_SHAPES

    given = inputs((16, 16, 16))
    old = engine.prepare((16, 16, 16))(*given).clone()
    with torch.no_grad():
        mine.exit.bias.add_(1.0)
    assert (engine.prepare((16, 16, 16))(*given) - old - 1).abs().max() < 1e-4


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MRISR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_converted_graph_is_read_back_from_disk(net, cache, monkeypatch):
    from mrisr.infer.engines import openvino

    given = inputs((16, 16, 16))
    engine, _ = made("openvino", "cpu", copy.deepcopy(net), 1)
    expected = engine.prepare((16, 16, 16))(*given).clone()
    assert len(list(cache.glob("openvino-*/model.xml"))) == 1 and not list(cache.glob(".mrisr-*"))

    def never(net):
        raise AssertionError("converted again")

    monkeypatch.setattr(openvino, "convert", never)
    again, _ = made("openvino", "cpu", copy.deepcopy(net), 1)
    assert torch.equal(again.prepare((16, 16, 16))(*given), expected)


def test_a_damaged_cache_entry_costs_a_conversion_not_a_result(net, cache):
    engine, _ = made("openvino", "cpu", copy.deepcopy(net), 1)
    given = inputs((16, 16, 16))
    expected = engine.prepare((16, 16, 16))(*given).clone()
    next(cache.glob("openvino-*/model.xml")).write_text("<net")
    again, _ = made("openvino", "cpu", copy.deepcopy(net), 1)
    assert torch.equal(again.prepare((16, 16, 16))(*given), expected)


@pytest.mark.parametrize("text", ["off", "0", ""])
def test_the_cache_can_be_switched_off(monkeypatch, text):
    from mrisr.environment import cache_folder

    monkeypatch.setenv("MRISR_CACHE", text)
    assert cache_folder() is None
