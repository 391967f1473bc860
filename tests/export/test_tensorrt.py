"""TensorRT with a driver: what is asked of it, and what is refused, on a stand-in (fake_tensorrt.py), which shows that
our logic holds, not that TensorRT works; the last test needs a GPU. Real builds: test_tensorrt_build.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mrisr
from mrisr import bundle
from mrisr.errors import BackendError, UsageError
from mrisr.export import tensorrt
from mrisr.export.describe import network_of
from mrisr.infer.engines import tensorrt as engines
from mrisr.infer.engines import tensorrt_package
from mrisr.nn.presets import PRESETS

INPUTS = network_of(PRESETS["student"])["inputs"]


@pytest.fixture
def fake(monkeypatch):
    """The stand-in in place of the package, and a CUDA stream that is none."""
    spec = importlib.util.spec_from_file_location("tensorrt", Path(__file__).with_name("fake_tensorrt.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__spec__ = spec
    module.State.calls = []
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(tensorrt_package, "no_driver", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(engines, "_PLANS", {})
    return module


def built(folder, precision="float32", **options):
    options = tensorrt.PlanOptions(**{"tile": (16, 24, 32), **options})
    (folder / "model.onnx").write_bytes(b"a graph")
    entry = tensorrt.write_plan(folder, "model.onnx", precision, INPUTS, options, lambda line: None)
    return bundle.Plan(folder / entry["file"], precision)


def test_the_absent_package_is_one_clear_error(monkeypatch, exported):
    monkeypatch.setattr(tensorrt_package, "import_name", lambda flavour: None)
    with pytest.raises(BackendError, match=r"not installed \(pip install '\.\[tensorrt\]'.*\. Without it, .*trtexec"):
        tensorrt.requirements(tensorrt.PlanOptions())
    with pytest.raises(BackendError, match="engine: tensorrt was asked for, but the package tensorrt is not"):
        mrisr.upscale(torch.rand(16, 16, 16), input_voxel_size=1, model=exported[0], engine="tensorrt")


def test_without_a_driver_tensorrt_says_who_builds_without_one(fake, monkeypatch):
    monkeypatch.setattr(tensorrt_package, "no_driver", lambda: "this machine has no NVIDIA driver")
    with pytest.raises(BackendError, match=r"builds a plan on the GPU .*no NVIDIA driver.*'\.\[tensorrt-rtx\]'"):
        tensorrt.requirements(tensorrt.PlanOptions())


def noted(folder, **changed) -> Path:
    """A plan whose notes are changed (None: taken out)."""
    path = folder / tensorrt.NOTES_NAME
    notes = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({key: value for key, value in notes.items() if value is not None}))
    return folder / tensorrt.PLAN_NAME


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"flavour": "tensorrt-rtx", "tensorrt": "1.7.1.116"}, r"model.plan was built by TensorRT for RTX 1\.7\.1\.116 "
         r"and only TensorRT is installed: pip install '\.\[tensorrt-rtx\]', or build the plan again"),
        ({"tensorrt": "10.13.0"}, r"was built by TensorRT 10\.13\.0, and TensorRT 11\.0\.0-stand-in is "
         "installed, which does not read it; build the plan again"),
        ({"tensorrt": "11.1.0", "portable": True}, "which does not read it"),
        ({"flavour": "tensorflow"}, "flavour: expected tensorrt or tensorrt-rtx, found 'tensorflow'"),
        ({"flavour": None}, "model.plan.json: lacks flavour"),
        ({"tensorrt": 11}, "model.plan.json: tensorrt: expected text, found 11"),
    ],
)  # fmt: skip
def test_a_plan_of_another_flavour_or_version_is_refused(fake, tmp_path, monkeypatch, changed, words):
    monkeypatch.setattr(tensorrt_package, "import_name", lambda flavour: {"tensorrt": "tensorrt"}.get(flavour))
    built(tmp_path)
    with pytest.raises(BackendError, match=words):
        tensorrt_package.load(noted(tmp_path, **changed))


def test_a_portable_plan_runs_on_later_minor_versions(fake, tmp_path, monkeypatch):
    built(tmp_path, portable=True)
    monkeypatch.setattr(fake, "__version__", "11.2.0")
    assert tensorrt_package.load(noted(tmp_path, tensorrt="11.1.5")).version == "11.2.0"
    (tmp_path / tensorrt.NOTES_NAME).unlink()
    assert tensorrt_package.load(tmp_path / tensorrt.PLAN_NAME).flavour == "tensorrt"


def test_options_are_checked():
    for wrong in ({"tile": (100, 128, 128)}, {"smallest": (256, 64, 64)}, {"largest": (64, 128, 128)}, {"tile": (8,)}):
        with pytest.raises(UsageError):
            tensorrt.PlanOptions(**wrong)


def test_the_trtexec_line_says_the_same_as_the_builder():
    config = {"network": {"inputs": INPUTS}, "graphs": [{"file": "m.onnx", "format": "onnx", "precision": "float16"}]}
    options = tensorrt.PlanOptions((64, 64, 64), (8, 16, 24), (96, 96, 96), True, True, "a cache")
    line = tensorrt.trtexec(config, "float16", options)
    assert line.startswith("trtexec --onnx=m.onnx --saveEngine=model.plan --stronglyTyped --noTF32 ")
    assert "--minShapes=x:1x1x8x16x24,y:1x1x8x16x24,vector:1x40,guidance:1x8x1x2x3 " in line
    assert "--maxShapes=x:1x1x96x96x96," in line and "--refit --versionCompatible" in line
    assert line.endswith("--hardwareCompatibilityLevel=ampere+ '--timingCacheFile=a cache'")


def test_a_plan_is_built_as_asked(fake, tmp_path):
    cache = tmp_path / "cache"
    cache.write_bytes(b"before")
    built(tmp_path, "float16", smallest=(8, 8, 8), refit=True, portable=True, timing_cache=str(cache))
    (config,) = fake.State.calls
    assert config.flags == {fake.BuilderFlag.REFIT, fake.BuilderFlag.VERSION_COMPATIBLE}
    assert config.hardware_compatibility_level == fake.HardwareCompatibilityLevel.AMPERE_PLUS
    assert config.profiling_verbosity == fake.ProfilingVerbosity.DETAILED
    assert config.profile.shapes["guidance"] == ((1, 8, 1, 1, 1), (1, 8, 2, 3, 4), (1, 8, 2, 3, 4))
    assert config.given == b"before" and cache.read_bytes() == b"timings"
    notes = json.loads((tmp_path / tensorrt.NOTES_NAME).read_text())
    assert notes["precision"] == "float16" and notes["options"]["smallest"] == [8, 8, 8]
    assert "built" in (tmp_path / tensorrt.LOG_NAME).read_text()
    assert json.loads((tmp_path / tensorrt.LAYERS_NAME).read_text()) == {"Layers": []}


@pytest.mark.parametrize("broken,words", [("parse", "node 3: not supported"), ("build", "was not built; ERROR: built")])
def test_a_plan_that_cannot_be_built_says_why(fake, tmp_path, broken, words):
    fake.State.broken = broken
    with pytest.raises(BackendError, match=words):
        built(tmp_path)
    assert not (tmp_path / "model.plan").exists()


def test_new_weights_go_into_a_plan_that_takes_them(fake, tmp_path):
    built(tmp_path)
    with pytest.raises(BackendError, match="takes no new weights"):
        tensorrt.refit(tmp_path, "model.onnx")
    built(tmp_path, refit=True)
    tensorrt.refit(tmp_path, "model.onnx")
    assert json.loads((tmp_path / "model.plan").read_bytes())["refitted"]
    with pytest.raises(BackendError, match="do not fit"):
        tensorrt.refit(tmp_path, "model.txt")


def test_the_engine_runs_on_the_callers_stream_into_one_buffer(fake, tmp_path, random_model):
    net = fake.State.net = random_model("local").denoiser.net
    engine = engines.TensorRTEngine(net, torch.device("cpu"), built(tmp_path))
    assert engine.tile == (16, 24, 32) and engine.precision == "float32"
    run, given = engine.prepare((16, 24, 32)), _inputs((16, 24, 32))
    first = run(*given)
    with torch.inference_mode():
        torch.testing.assert_close(first, net(*given), rtol=1e-4, atol=1e-6)
    assert run(*given).data_ptr() == first.data_ptr()
    assert {stream for stream, _ in fake.State.calls[1:]} == {77}
    assert engine.map_bytes((16, 24, 32)) == 8_000_000 / (16 * 24 * 32)
    before = len(fake.State.calls)
    engines.TensorRTEngine(net, torch.device("cpu"), bundle.Plan(tmp_path / "model.plan", "float32"))
    assert len(fake.State.calls) == before  # loaded and compared once


def _inputs(shape):
    g = torch.Generator().manual_seed(3)
    sizes = ((1, 1, *shape), (1, 1, *shape), (1, 40), (1, 8, *(n // 8 for n in shape)))
    return [torch.randn(s, generator=g) for s in sizes]


def test_a_piece_of_another_size_is_refused_with_what_the_plan_takes(fake, tmp_path, random_model):
    net = fake.State.net = random_model("local").denoiser.net
    engine = engines.TensorRTEngine(net, torch.device("cpu"), built(tmp_path))
    with pytest.raises(BackendError, match="takes volumes of 16x24x32 voxels, and a piece has 16x24x40; give tile="):
        engine.prepare((16, 24, 40))
    engine = engines.TensorRTEngine(net, torch.device("cpu"), built(tmp_path, smallest=(8, 8, 8)))
    engine.prepare((8, 16, 32))
    with pytest.raises(BackendError, match="8x8x8 to 16x24x32"):
        engine.prepare((24, 24, 32))


def test_a_plan_of_other_weights_is_refused(fake, tmp_path, random_model):
    net = random_model("local").denoiser.net
    fake.State.net = lambda *given: 1.01 * net(*given)
    plan = built(tmp_path)
    with pytest.raises(BackendError, match="other values than its weights in PyTorch"):
        engines.TensorRTEngine(net, torch.device("cpu"), plan)
    fake.State.net = lambda *given: net(*given) * float("nan")
    with pytest.raises(BackendError, match="other values"):
        engines.TensorRTEngine(net, torch.device("cpu"), plan)


@pytest.mark.parametrize("broken,words", [("load", "cannot be loaded by TensorRT"), ("memory", "no device memory")])
def test_a_plan_that_does_not_load_says_why(fake, tmp_path, random_model, broken, words):
    plan = built(tmp_path)
    fake.State.broken = broken
    with pytest.raises(BackendError, match=words):
        engines.TensorRTEngine(random_model("local").denoiser.net, torch.device("cpu"), plan)


@pytest.mark.skipif(tensorrt_package.missing() is not None, reason="no TensorRT is installed (extra: tensorrt)")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", bundle.PRECISIONS)
def test_tensorrt_gives_what_pytorch_gives(tmp_path, head, precision):
    from mrisr.export.build import export_bundle
    from mrisr.weights import registry

    options = tensorrt.PlanOptions(tile=(64, 64, 64), smallest=(16, 16, 16))
    export_bundle(registry.load("base"), tmp_path / "b", form="tensorrt", precisions=[precision], plan=options)
    scan, how = head((40, 44, 36)), dict(input_voxel_size=1.0, device="cuda", tile=64)
    found = mrisr.upscale(scan, model=tmp_path / "b", engine="tensorrt", **how)
    expected = mrisr.upscale(scan, engine="torch", **how)
    assert abs(found - expected).max() <= engines.TOLERANCE[precision] * expected.max()
