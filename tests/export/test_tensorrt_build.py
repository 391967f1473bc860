"""TensorRT for RTX, the real one, building plans without a GPU: parsed, built, serialised. No plan is run here."""

from __future__ import annotations

import json
import re

import pytest

from mrisr.bundle import PRECISIONS
from mrisr.errors import BackendError
from mrisr.export import onnx as graphs
from mrisr.export import tensorrt
from mrisr.export.build import _write_weights
from mrisr.export.describe import network_of
from mrisr.infer.engines import tensorrt_package

pytestmark = pytest.mark.skipif(
    tensorrt_package.import_name("tensorrt-rtx") is None,
    reason="TensorRT for RTX is not installed (make tensorrt-rtx, where its wheels can be had)",
)
BELOW = {"float32": 1.0, "float16": 0.75, "bfloat16": 0.75}  # bytes of a plan beside those of float32


@pytest.fixture(autouse=True)
def rtx(monkeypatch):
    """Where both flavours are installed, the one that builds without a GPU."""
    name = tensorrt_package.import_name
    monkeypatch.setattr(tensorrt_package, "import_name", lambda f: name(f) if f == "tensorrt-rtx" else None)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, random_model):
    """(folder with a graph of every precision, its inputs) of the preset with attention and group norm in it."""
    model, folder = random_model("tiny"), tmp_path_factory.mktemp("teacher")
    _write_weights(model, folder / "weights.safetensors")
    plain = graphs.graph_of(model.denoiser.net)
    for precision in PRECISIONS:
        graph = graphs.refer_to_weights(graphs.in_precision(plain, precision), folder / "weights.safetensors")
        graphs.save(graph, folder / f"model.{precision}.onnx")
    return folder, network_of(model.denoiser.net.config)["inputs"]


def build(folder, graph: str, precision: str, inputs, said=None, **options):
    options = tensorrt.PlanOptions(**{"tile": (64, 64, 64), **options})
    lines = [] if said is None else said
    tensorrt.write_plan(folder, graph, precision, inputs, options, lines.append)
    return (folder / tensorrt.PLAN_NAME).stat().st_size


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_shipped_network_is_built(copy, precision):
    inputs = json.loads((copy / "config.json").read_text())["network"]["inputs"]
    said, name = [], "model.onnx" if precision == "float32" else f"model.{precision}.onnx"
    size = build(copy, name, precision, inputs, said)
    weights = (copy / "weights.safetensors").stat().st_size
    assert weights * BELOW[precision] * 0.5 < size < weights * BELOW[precision] + 4e6
    notes = json.loads((copy / tensorrt.NOTES_NAME).read_text())
    assert notes["flavour"] == "tensorrt-rtx" and re.fullmatch(r"1\.\d+\.\d+\.\d+", notes["tensorrt"])
    assert re.match(rf"model.plan: .* MB for TensorRT for RTX 1\..*, {precision}", said[0])
    log = (copy / tensorrt.LOG_NAME).read_text()
    assert "ERROR" not in log and "TF32" not in re.findall(r"Enabled.*", log)
    if tensorrt_package.no_driver():
        assert "not written, because" in said[1] and not (copy / tensorrt.LAYERS_NAME).exists()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention_and_group_norm_are_built(teacher, precision):
    folder, inputs = teacher
    assert build(folder, f"model.{precision}.onnx", precision, inputs) > 100_000


def test_a_plan_of_several_sizes(teacher):
    folder, inputs = teacher
    fixed = build(folder, "model.float16.onnx", "float16", inputs)
    assert build(folder, "model.float16.onnx", "float16", inputs, smallest=(16, 16, 16), largest=(96, 96, 96)) > fixed
    assert json.loads((folder / tensorrt.NOTES_NAME).read_text())["options"]["largest"] == [96, 96, 96]


def test_a_portable_plan_names_the_gpus(teacher):
    folder, inputs = teacher
    fixed = build(folder, "model.float32.onnx", "float32", inputs)
    assert build(folder, "model.float32.onnx", "float32", inputs, portable=True) != fixed
    assert json.loads((folder / tensorrt.NOTES_NAME).read_text())["portable"]


def test_a_timing_cache_is_written_and_read(teacher, tmp_path):
    (folder, inputs), said, cache = teacher, [], tmp_path / "timings"
    for _ in range(2):
        build(folder, "model.float32.onnx", "float32", inputs, said, timing_cache=str(cache))
        assert cache.stat().st_size > 0
    assert any("measures nothing while it builds" in line for line in said)


def test_a_damaged_graph_is_named(teacher, tmp_path):
    folder, inputs = teacher
    (tmp_path / "model.onnx").write_bytes((folder / "model.float32.onnx").read_bytes()[:-200])
    with pytest.raises(BackendError, match="model.onnx was not understood: "):
        build(tmp_path, "model.onnx", "float32", inputs)
    assert not (tmp_path / tensorrt.PLAN_NAME).exists()


@pytest.mark.skipif(tensorrt_package.no_driver() is None, reason="there is a CUDA driver")
def test_what_needs_a_driver_says_so(teacher):
    folder, inputs = teacher
    with pytest.raises(
        BackendError, match="needs a CUDA driver to build a plan that takes new weights.*leave out --refit"
    ):
        build(folder, "model.float32.onnx", "float32", inputs, refit=True)
    build(folder, "model.float32.onnx", "float32", inputs)
    with pytest.raises(BackendError, match="new weights are put in on a machine with a CUDA driver, and this machine"):
        tensorrt.refit(folder, "model.float32.onnx")
    trt = tensorrt_package.load(folder / tensorrt.PLAN_NAME).api
    with pytest.raises(BackendError, match="the plan cannot be loaded; .*CUDA driver"):
        tensorrt._engine(trt, tensorrt._logger(trt), (folder / tensorrt.PLAN_NAME).read_bytes())
