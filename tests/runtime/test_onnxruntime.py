"""libmrisr on ONNX Runtime's CPU provider: OpenVINO's picture; and one line where the library cannot be used.

The CUDA and TensorRT providers are asked for only to be refused: they have never run on a device.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from libmrisr import CANCELLED, ENGINE, LIBRARY, LOG, MODEL, PRECISION, PROGRESS, RUN, Engine, Failed

pytestmark = pytest.mark.filterwarnings("ignore::mrisr.errors.MrisrWarning")
HERE = Path(__file__).parent
OPENVINO, CPU, CUDA, TENSORRT = range(4)  # mrisr_runtime


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The shared library inside of the Python package, which is not imported."""
    found = importlib.util.find_spec("onnxruntime")
    if found is None:
        pytest.skip("onnxruntime is not installed (extra: export)")
    return next((Path(found.origin).parent / "capi").glob("libonnxruntime.so.*"))


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")


@pytest.fixture
def opened(library, folder, wheel):
    model = library.open(folder, onnxruntime=str(wheel).encode())
    yield model
    library.c.mrisr_close(model)


def both(library, model, data, affine=None, **options):
    """Results by OpenVINO and by ONNX Runtime, and the range of the first."""
    expected, found = (library.upscale(model, data, affine, runtime=runtime, **options) for runtime in (OPENVINO, CPU))
    size = np.percentile(expected.data, 99.9) - np.percentile(expected.data, 0.1)
    return expected, found, size


@pytest.mark.parametrize(
    "options",
    [{}, {"tile": 48, "threads": 2}, {"mode": "sample", "steps": 2, "seed": 7}],
    ids=["mean", "tiles", "sample"],
)
def test_the_picture_is_openvinos(library, opened, scan, affine, options):
    expected, found, size = both(library, opened, scan, affine, **options)
    assert np.abs(found.data - expected.data).max() <= 1e-5 * size
    assert tuple(found.info.tile) == tuple(expected.info.tile)


def test_group_norm_and_attention(library, random_model, wheel, head, affine, tmp_path):
    from dataclasses import replace

    from mrisr.export.build import export_bundle

    tiny = replace(random_model("tiny"), meta={"preset": "tiny", "sigma_data": 0.05, "name": "tiny"})
    export_bundle(tiny, tmp_path / "tiny")
    model = library.open(tmp_path / "tiny", onnxruntime=str(wheel).encode())
    expected, found, size = both(library, model, head((30, 34, 28)), affine)
    library.c.mrisr_close(model)
    assert np.abs(found.data - expected.data).max() <= 1e-5 * size


def test_the_plan_says_which(library, folder, wheel, scan, affine):
    said = []
    log = LOG(lambda user, level, text: said.append(text.decode()))
    model = library.open(folder, onnxruntime=str(wheel).encode(), log=log)
    job = library.plan(model, scan.shape, affine, runtime=CPU, precision=PRECISION["auto"])
    geometry = library.geometry(job)
    assert geometry.precision == PRECISION["float32"]
    assert geometry.precision_why == b"ONNX Runtime computes the bundle's float32 graph"
    library.c.mrisr_job_close(job)
    library.c.mrisr_close(model)
    assert any(f"engine onnxruntime {wheel.name.removeprefix('libonnxruntime.so.')} (CPU)" in text for text in said)


def test_a_run_is_cancelled_and_the_job_goes_on(library, opened, scan, affine):
    job = library.plan(opened, scan.shape, affine, runtime=CPU)
    asked = []
    stop = PROGRESS(lambda user, fraction: asked.append(fraction) or len(asked) > 3)
    with pytest.raises(Failed) as stopped:
        library.run(job, scan, progress=stop)
    assert stopped.value.status == CANCELLED
    again, fresh = library.run(job, scan), library.upscale(opened, scan, affine, runtime=CPU)
    library.c.mrisr_job_close(job)
    assert np.array_equal(again.data, fresh.data)


def refused(library, model, scan, **options) -> Failed:
    with pytest.raises(Failed) as found:
        library.plan(model, scan.shape, **options)
    assert "\n" not in str(found.value)
    return found.value


@pytest.mark.parametrize(("runtime", "name"), [(CUDA, "CUDA"), (TENSORRT, "TensorRT")])
def test_a_provider_that_the_library_was_built_without(library, opened, scan, runtime, name):
    found = refused(library, opened, scan, runtime=runtime)
    assert found.status == ENGINE and str(found).startswith(f"onnxruntime: cannot use {name}: ")


def test_bfloat16(library, opened, scan):
    found = refused(library, opened, scan, runtime=CPU, precision=PRECISION["bfloat16"])
    assert str(found).startswith("precision: bfloat16 was asked for, but ONNX Runtime computes the bundle's float32")


def test_an_engine_of_the_callers_beside_it(library, opened, scan):
    engine = library.made(Engine, run=RUN(lambda user, tile: 0))
    found = refused(library, opened, scan, runtime=CPU, engine=engine)
    assert str(found) == "runtime: is of the library's own engines; leave it at 0, or give no engine"


@pytest.mark.parametrize(
    ("library_file", "text"),
    [
        ("/no/such/libonnxruntime.so", "onnxruntime: cannot load /no/such/libonnxruntime.so: "),
        ("libm.so.6", "onnxruntime: libm.so.6 is another library"),
    ],
)
def test_a_library_that_is_not_there_or_is_another(library, folder, scan, library_file, text):
    model = library.open(folder, onnxruntime=library_file.encode())
    found = refused(library, model, scan, runtime=CPU)
    library.c.mrisr_close(model)
    assert found.status == ENGINE and str(found).startswith(text)


def test_no_events_are_kept(library, opened, scan, monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    found = refused(library, opened, scan, runtime=CPU)
    assert str(found).endswith("unless ORT_DISABLE_TELEMETRY=1 is in the environment when it is loaded; set it")


def test_a_damaged_graph(library, folder, wheel, scan, tmp_path):
    shutil.copytree(folder, tmp_path / "bundle")
    graph = tmp_path / "bundle" / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:1000] + bytes(len(whole) - 1000))
    model = library.open(tmp_path / "bundle", onnxruntime=str(wheel).encode(), skip_checksums=1)
    found = refused(library, model, scan, runtime=CPU)
    library.c.mrisr_close(model)
    assert found.status in (ENGINE, MODEL) and "onnxruntime: cannot read the bundle's graph" in str(found)


PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from libmrisr import Library
import numpy as np
library = Library(Path(sys.argv[2]))
model = library.open(sys.argv[3], onnxruntime=sys.argv[4].encode())
data = np.fromfile(sys.argv[5], np.float32).reshape(34, 40, 30)
assert np.isfinite(library.upscale(model, data, factor=1.5, runtime=1).data).all()
library.c.mrisr_close(model)
"""


def test_nothing_is_sent_or_left(alone, folder, wheel, scan, tmp_path):
    scan.astype(np.float32).tofile(tmp_path / "in.raw")
    words = [HERE, LIBRARY, folder, wheel, tmp_path / "in.raw"]
    alone([sys.executable, "-c", PROGRAM, *map(str, words)], outputs=())
