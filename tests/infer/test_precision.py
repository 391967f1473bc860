"""bfloat16 on processors that have it: read from the processor, checked against float32, refused in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import mrisr
from mrisr import environment
from mrisr.errors import BackendError, UsageError
from mrisr.infer import engines
from mrisr.infer.engines import precision
from mrisr.infer.engines.program import compile_network
from mrisr.infer.engines.slabs import SlabRunner
from mrisr.nn.vector import VECTOR_DIM

CPU = torch.device("cpu")
needs_bfloat16 = pytest.mark.skipif(
    environment.bfloat16_absence(CPU) is not None,
    reason=f"bfloat16 cannot run here: {environment.bfloat16_absence(CPU)}",
)


def made(*args, **how):
    """(engine, why) of the arguments of `engines.choose`."""
    choice = engines.choose(*args, **how)
    return engines.make(choice, args[2]), choice.why


@pytest.fixture
def auto(monkeypatch, tmp_path):
    """ "auto" means auto here, and verdicts are found anew."""
    monkeypatch.delenv("MRISR_PRECISION")
    monkeypatch.setenv("MRISR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def processor(monkeypatch):
    """set(*flags): a processor that has these instruction sets."""

    def set_flags(*flags):
        environment.bfloat16_instructions.cache_clear()
        monkeypatch.setattr(environment, "processor", lambda: ("Some Processor", frozenset(flags)))

    yield set_flags
    monkeypatch.undo()
    environment.bfloat16_instructions.cache_clear()


@pytest.fixture(scope="module")
def net():
    return mrisr.load_model("base").denoiser.net


def test_a_processor_is_read_never_guessed(processor):
    processor("avx512f", "avx512_bf16")
    assert environment.bfloat16_instructions() == ("AVX512-BF16",) and environment.bfloat16_absence(CPU) is None
    processor("amx_tile", "amx_bf16", "avx512_bf16")
    assert environment.bfloat16_instructions() == ("AMX-BF16", "AVX512-BF16")
    processor("avx2", "fma", "avx512f")
    assert environment.bfloat16_absence(CPU) == "this processor (Some Processor) has neither AMX-BF16 nor AVX512-BF16"


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_without_it_auto_is_float32_and_asking_is_refused(engine, net, auto, processor):
    processor("avx512f")
    found, _ = made(engine, "cpu", net, 1)
    assert found.precision == "float32" and "neither AMX-BF16 nor AVX512-BF16" in found.precision_why
    with pytest.raises(BackendError, match=r"^precision: bfloat16 was asked for, but this processor .* has neither"):
        made(engine, "cpu", net, 1, precision="bfloat16")


@needs_bfloat16
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_with_it_auto_takes_it_and_says_why(engine, net, auto):
    found, _ = made(engine, "cpu", net, 2)
    assert found.precision == "bfloat16" and environment.bfloat16_instructions()[0] in found.precision_why
    assert "differs from float32 by" in found.precision_why
    found, _ = made(engine, "cpu", net, 2, precision="float32")
    assert (found.precision, found.precision_why) == ("float32", "asked for")


@needs_bfloat16
@pytest.mark.parametrize(("engine", "model"), [("torch", "base"), ("openvino", "base"), ("torch", "teacher-small")])
def test_a_network_in_bfloat16_is_close_to_float32_and_not_equal(engine, model, auto):
    net = mrisr.load_model(model).denoiser.net
    given = precision.example()
    found = {}
    for name in ("float32", "bfloat16"):
        chosen, _ = made(engine, "cpu", net, 2, precision=name)
        found[name] = chosen.prepare((precision.TILE,) * 3)(*given).clone()
        chosen.release()
    assert found["bfloat16"].dtype == torch.float32
    assert 1e-4 < precision.difference(found["bfloat16"], found["float32"]) <= precision.TOLERANCE


@needs_bfloat16
def test_float16_on_a_processor_does_not_pass(net, auto, monkeypatch):
    """OpenVINO's f16 hint: slower on a CPU, and wrong. Never set; were it, the check would refuse it."""
    from mrisr.infer.engines import openvino

    assert "f16" not in openvino.HINTS.values()
    monkeypatch.setitem(openvino.HINTS, "bfloat16", "f16")
    monkeypatch.setattr(openvino, "_networks", type(openvino._networks)())
    with pytest.raises(BackendError, match=r"precision: bfloat16 differs from float32 by .*; use float32, or auto"):
        made("openvino", "cpu", net, 2, precision="bfloat16")
    found, _ = made("openvino", "cpu", net, 2)
    assert found.precision == "float32" and "differs from float32 by" in found.precision_why
    monkeypatch.setattr(openvino, "_networks", type(openvino._networks)())


def test_values_that_are_not_finite_do_not_pass():
    assert precision.difference(torch.tensor([1.0, torch.nan]), torch.ones(2)) == float("inf")
    with pytest.raises(BackendError, match="differs from float32 by inf"):
        precision.decide("bfloat16", CPU, None, lambda: float("inf"))


def test_a_gpu_takes_float32_by_itself():
    cuda = torch.device("cuda", 0)
    assert precision.decide("auto", cuda, None, lambda: 0.0) == ("float32", "auto: float32 on a GPU")
    assert precision.decide("bfloat16", cuda, None, lambda: 0.01)[0] == "bfloat16"


def test_a_verdict_is_found_once(monkeypatch, tmp_path):
    monkeypatch.setenv("MRISR_CACHE", str(tmp_path))
    asked = []

    def measure():
        asked.append(1)
        return 0.011

    assert [precision.measure_once(("a", 1), measure) for _ in range(3)] == [0.011] * 3
    assert len(asked) == 1
    precision.measure_once(("a", 2), measure)
    assert len(asked) == 2 and len(json.loads((tmp_path / precision.FILE_NAME).read_text())) == 2
    name = next(iter(json.loads((tmp_path / precision.FILE_NAME).read_text())))
    odd = [f'{{"{name}": {value}}}' for value in ("1" + "0" * 400, "true", "-1.0", "NaN", '"0.1"')]
    for damaged in ("", "[1, 2]", "{", "[" * 100_000, *odd):
        (tmp_path / precision.FILE_NAME).write_text(damaged)
        assert precision.measure_once(("a", 1), measure) == 0.011
    assert len(asked) == 11
    monkeypatch.setenv("MRISR_CACHE", "off")
    precision.measure_once(("a", 1), measure)
    monkeypatch.setenv("MRISR_CACHE", "/proc/nowhere")
    precision.measure_once(("a", 1), measure)
    assert len(asked) == 13


def test_the_variable_stands_for_auto(monkeypatch):
    monkeypatch.setenv("MRISR_PRECISION", "bfloat16")
    assert precision.asked_for("auto") == "bfloat16" and precision.asked_for("float32") == "float32"
    monkeypatch.setenv("MRISR_PRECISION", "")
    assert precision.asked_for("auto") == "auto"
    monkeypatch.setenv("MRISR_PRECISION", "half")
    with pytest.raises(UsageError, match=r"^MRISR_PRECISION: expected one of auto, float32, bfloat16, found 'half'$"):
        precision.asked_for("auto")
    with pytest.raises(UsageError, match=r"^precision: expected one of"):
        precision.asked_for("int8")


@needs_bfloat16
def test_what_stays_float32_in_slabs(random_model, monkeypatch):
    """Maps, sums, the last convolution, the result: slabs of other sizes give the same, and only convolutions round."""
    from mrisr.infer.engines import slabs

    computed, convolve = {}, slabs.convolve

    def watched(x, conv, padding=(0, 0, 0), weights=None):
        found = convolve(x, conv, padding, weights)
        computed[conv] = found.dtype
        return found

    monkeypatch.setattr(slabs, "convolve", watched)
    net = random_model("local").denoiser.net
    shape = (32, 24, 40)
    g = torch.Generator().manual_seed(0)
    given = [torch.randn(1, 1, *shape, generator=g) for _ in range(2)]
    given += [torch.randn(1, VECTOR_DIM, generator=g), torch.zeros(1, 8, 4, 3, 5)]
    program = compile_network(net)
    with torch.inference_mode():
        exact = SlabRunner(net, program)(*given)
        thin, thick = (SlabRunner(net, program, rows=rows, dtype=torch.bfloat16)(*given) for rows in (2, 16))
    assert computed.pop(net.exit) == torch.float32
    assert set(computed.values()) == {torch.bfloat16} and len(computed) > 5
    assert thin.dtype == torch.float32
    assert (thin - thick).abs().max() <= 1e-3 * exact.abs().max(), "the sum of a slab's rows may round otherwise"
    assert 0 < precision.difference(thin, exact) < 0.03


@needs_bfloat16
@pytest.mark.parametrize("how", [{}, {"tile": "exact"}, {"engine": "torch"}])
def test_the_picture_differs_by_less_than_five_thousandths(how, head, auto):
    scan = head((28, 30, 26))
    found = {}
    for name in ("float32", "auto"):
        found[name], info = mrisr.upscale(
            scan, input_voxel_size=1.4, voxel_size=0.8, precision=name, return_info=True, **how
        )
    assert info.engine.precision == "bfloat16" and environment.bfloat16_instructions()[0] in info.engine.precision_why
    assert json.loads(info.to_json())["engine"]["precision"] == "bfloat16"
    apart = np.abs(found["auto"] - found["float32"]).max() / found["float32"].max()
    assert 0 < apart <= 5e-3


def test_a_verdict_is_found_by_another_process(tmp_path, monkeypatch):
    """The instruction sets of the processor are a set, which another process lists in another order."""
    monkeypatch.setenv("MRISR_CACHE", str(tmp_path))
    one, other = frozenset((0, 8)), frozenset((8, 0))
    assert one == other and list(one) != list(other)
    measured = []
    for flags in (one, other):
        monkeypatch.setattr(precision.environment, "processor", lambda flags=flags: ("a processor", flags))
        precision.measure_once(("a", 3), lambda: measured.append(1) or 0.011)
    assert len(measured) == 1
