"""A plain job of a model that the cache knows runs without PyTorch, and gives what it gives with it, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import mrisr
from mrisr import environment, native
from mrisr.diffusion.precond import Denoiser, mean_constants
from mrisr.errors import MrisrWarning
from mrisr.infer import known
from mrisr.infer.facts import ModelFacts
from mrisr.nn.condition import Condition
from mrisr.nn.vector import entries_of, mean_vector
from mrisr.ops import arrays, either, tiles
from mrisr.ops.resample import apply_axes, interpolation_matrix
from mrisr.physics.psf import AxisPSF
from mrisr.weights import registry

pytestmark = pytest.mark.skipif(native.reason() is not None, reason=f"native core: {native.reason()}")

JOBS = """
import json, sys, warnings
from pathlib import Path

folder, way, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise AssertionError(f"{name} is imported")

if way == "without":
    sys.meta_path.insert(0, Refusal())
if way == "before":
    import torch
import numpy as np
import mrisr

scan = np.load(folder / "scan.npy")
thick = scan[:, :, ::3].copy()
JOBS = {
    "plain": (scan, dict(input_voxel_size=1.5)),
    "thick": (thick, dict(input_voxel_size=(1.2, 1.2, 4.0), voxel_size=1.2)),
    "mirrored": (scan, dict(input_voxel_size=1.5, psf="unknown", ensemble=2, denoise=0.5, nonnegative=True)),
    "masked": (scan, dict(input_voxel_size=1.5, mask=scan > 100, denoise=0.5, precision="float32", engine="openvino")),
    "series": (np.stack([scan, 2 * scan[::-1]], -1), dict(input_voxel_size=1.5, ends="crop")),
    "own grid": (scan, dict(input_voxel_size=0.7)),
    "samples": (scan, dict(input_voxel_size=1.5, samples=2, steps=2)),
    "tiles": (scan, dict(input_voxel_size=0.7, factor=1.7, tile=48)),
}
accounts = {}
for name in names:
    if name == "refused":
        try:
            mrisr.upscale(scan, input_voxel_size=0.7, factor=2, threads=1, device="cpu", memory="1MB")
        except mrisr.errors.MemoryBudgetError as error:
            accounts[name] = {"error": str(error), "torch": "torch" in sys.modules}
        continue
    data, how = JOBS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ticks = []
        result, info = mrisr.upscale(
            data, voxel_size=how.pop("voxel_size", None), threads=1, return_info=True, device="cpu",
            progress=lambda stage, part: ticks.append((stage, part)), **how,
        )
    np.save(folder / f"{name}, {way}.npy", result)
    account = info.to_dict()
    account |= {"ticks": ticks, "said": [str(w.message) for w in caught], "torch": "torch" in sys.modules}
    accounts[name] = account
print(json.dumps(accounts))
"""
PLAIN = ("plain", "thick", "mirrored", "masked", "series")
# What differs between two runs of one job, and between a process that holds PyTorch and one that does not.
OF_A_RUN = ("seconds", "memory_budget", "memory_expected", "versions", "torch")


def environment_of(folder: Path) -> dict[str, str]:
    return {**os.environ, "MRISR_CACHE": str(folder / "cache"), "MRISR_PRECISION": "auto"}


def jobs(folder: Path, way: str, *names: str) -> dict[str, dict]:
    command = [sys.executable, "-c", JOBS, str(folder), way, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_of(folder))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, head):
    """A folder with a scan, and the cache that a first job has left."""
    place = tmp_path_factory.mktemp("jobs")
    np.save(place / "scan.npy", head((30, 34, 28)))
    cold = jobs(place, "cold", "plain", "thick", "mirrored")
    assert [cold[name]["network"] for name in ("plain", "thick", "mirrored")] == ["3d", "2d", "general"]
    assert cold["plain"]["torch"] and len(list((place / "cache").glob("model-*.json"))) == 3
    return place


def test_plain_jobs_need_no_torch_and_give_the_same_bits(folder):
    without, with_torch = jobs(folder, "without", *PLAIN), jobs(folder, "before", *PLAIN)
    for name in PLAIN:
        one, other = (np.load(folder / f"{name}, {way}.npy") for way in ("without", "before"))
        assert one.dtype == np.float32 and one.tobytes() == other.tobytes(), name
        assert not without[name]["torch"] and with_torch[name]["torch"]
        assert "torch" in with_torch[name]["versions"] and "torch" not in without[name]["versions"]
        alike = ({k: v for k, v in of[name].items() if k not in OF_A_RUN} for of in (without, with_torch))
        assert next(alike) == next(alike), name
    first = np.load(folder / "plain, cold.npy")
    assert first.tobytes() == np.load(folder / "plain, without.npy").tobytes()


def test_the_command_needs_no_torch_either(folder, tmp_path):
    scan = nibabel.Nifti1Image(np.round(np.load(folder / "scan.npy")).astype(np.int16), np.diag([1.5, 1.5, 1.5, 1]))
    scan.to_filename(tmp_path / "in.nii.gz")
    code = JOBS.partition("import numpy")[0] + "from mrisr.cli.main import main\nsys.exit(main(names))"
    results = []
    for way in ("without", "before"):
        target = tmp_path / f"{way}.nii.gz"
        words = ["upscale", "-i", tmp_path / "in.nii.gz", "-o", target, "--device", "cpu", "--threads", "1", "--quiet"]
        command = [sys.executable, "-c", code, folder, way, *words]
        subprocess.run(list(map(str, command)), check=True, env=environment_of(folder))
        results.append(np.asarray(nibabel.load(target).dataobj))
    assert results[0].tobytes() == results[1].tobytes()


def test_other_jobs_import_torch_when_they_know_that_they_need_it(folder):
    names = ("plain", "samples", "tiles")
    late, early = jobs(folder, "late", *names), jobs(folder, "before", *names)
    assert [late[name]["torch"] for name in names] == [False, True, True]
    for name in names:
        one, other = (np.load(folder / f"{name}, {way}.npy") for way in ("late", "before"))
        assert one.tobytes() == other.tobytes(), name
        assert late[name]["said"] == early[name]["said"]


def test_a_budget_is_refused_by_what_the_other_ways_need_which_is_more(folder):
    """The smallest that works is named with PyTorch in memory: tiles and layers would load it."""
    refusal = jobs(folder, "late", "refused")["refused"]
    assert refusal["torch"] and "the smallest that works is" in refusal["error"]


def test_arrays_are_worked_on_as_the_tensors_of_a_given_model_are(folder, monkeypatch, tmp_path):
    """The same job by tensors: the stages of both kinds agree in every bit."""
    monkeypatch.setenv("MRISR_CACHE", str(folder / "cache"))
    scan, how = np.load(folder / "scan.npy"), dict(input_voxel_size=1.5, threads=1, device="cpu", return_info=True)
    by_arrays, info = mrisr.upscale(scan, **how)
    monkeypatch.setattr(arrays, "missing", lambda: "a test wants tensors")
    by_tensors, other = mrisr.upscale(scan, **how)
    assert by_arrays.tobytes() == by_tensors.tobytes()
    for name in (f.name for f in dataclasses.fields(info) if f.name not in OF_A_RUN):
        assert getattr(info, name) == getattr(other, name), name


@pytest.fixture
def cache(tmp_path, folder, monkeypatch):
    """A copy of the cache, for a test to spoil."""
    shutil.copytree(folder / "cache", tmp_path / "cache")
    monkeypatch.setenv("MRISR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(known, "_FOUND", {})
    return tmp_path / "cache"


def found(name: str = "base", network: str = registry.GENERAL):
    weights = registry.identify(name)

    def load():
        return registry.network_of(registry.load(name), network)

    return known.find(weights.sha256, name, weights.card, load, network)


def facts_file() -> Path:
    return known._place(registry.identify("base").sha256, "3d")


@pytest.mark.parametrize("network", [registry.GENERAL, *registry.SPECIAL])
def test_what_is_known_is_what_the_weights_say(cache, network):
    model, known_one = registry.network_of(registry.load("base"), network), found("base", network)
    assert known_one.facts == ModelFacts.of(model) and known_one.facts is ModelFacts.of(known_one)
    assert known_one is found("base", network) and known_one.network() is model.denoiser.net
    assert known_one.config.norm == model.denoiser.net.config.norm and known_one.facts.network == network


def test_other_weights_and_other_versions_are_not_known(cache, tmp_path, monkeypatch):
    meta, tensors = registry.read(registry.locate("base"))
    tensors["exit.bias"] = tensors["exit.bias"] + 1
    (tmp_path / "mine.safetensors").write_bytes(registry.as_bytes(tensors, meta))
    assert found(str(tmp_path / "mine.safetensors")) is None
    versions = environment.versions
    monkeypatch.setattr(environment, "versions", lambda names: {**versions(names), "openvino": "another"})
    assert found() is None


def test_facts_without_their_graph_are_not_used(cache):
    for graph in cache.glob("openvino-*"):
        shutil.rmtree(graph)
    assert found() is None


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-9], lambda text: text.replace("0.0742", "0.0743"), lambda t: ""]
)
def test_damaged_facts_cost_a_warning_and_are_made_again(cache, damage):
    path = facts_file()
    before = path.read_text()
    path.write_text(damage(before))
    with pytest.warns(MrisrWarning, match=r"what is known of the model is damaged \(.+\); it is made again") as records:
        assert found("base", "3d") is None
    assert len(records) == 1 and not path.exists()
    known.remember(registry.fresh("base", "3d"))
    assert path.read_text() == before and found("base", "3d") is not None


def test_a_network_that_was_changed_leaves_nothing_in_the_name_of_its_file(cache, folder):
    """`load_model` gives everybody one module: what somebody has done to it is no business of other processes."""
    scan, path = np.load(folder / "scan.npy"), facts_file()
    before = path.read_text()
    path.unlink()
    bias = registry.network_of(mrisr.load_model("base"), "3d").denoiser.net.exit.bias
    with torch.no_grad():
        bias += 0.01
    try:
        mrisr.upscale(scan, input_voxel_size=1.5, threads=1, device="cpu")
    finally:
        with torch.no_grad():
            bias -= 0.01
        registry._CACHE.clear()
    assert not path.exists() or path.read_text() == before


def test_a_folder_that_takes_nothing_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MRISR_CACHE", str(tmp_path / "file"))
    assert known.is_remembered("", registry.GENERAL) and found() is None
    monkeypatch.setenv("MRISR_CACHE", "off")
    assert known.is_remembered("", registry.GENERAL) and found() is None


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_operators_on_arrays_are_those_on_tensors(order):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(13, 17, 11)).astype(np.float32)
    t = torch.from_numpy(x)
    matrices = [
        interpolation_matrix(n, 2 * n, 0.5, kind) for n, kind in zip(x.shape, ("fourier", "bspline", "fourier"))
    ]
    matrices[order[0]] = None
    assert np.array_equal(apply_axes(x, matrices), apply_axes(t, matrices).numpy())
    box = ((-3, 2, 4), (20, 9, 16))
    assert np.array_equal(either.gather(x, *box), tiles.gather(t, *box).numpy())
    piece, weights = either.gather(x, *box)[:10, :9, :7], [rng.random(n).astype(np.float32) for n in (10, 9, 7)]
    piece = np.ascontiguousarray(piece)
    sums = [
        either.blend_add_(v, p, (1, 3, 4), weights) for v, p in ((x.copy(), piece), (t.clone(), torch.tensor(piece)))
    ]
    assert np.array_equal(sums[0], sums[1].numpy())
    assert np.array_equal(either.permuted(x, order), either.permuted(t, order).numpy())
    assert np.array_equal(either.flipped(x, order[:2]), either.flipped(t, order[:2]).numpy())


@pytest.mark.parametrize("noise", [None, 0.013])
def test_the_vector_of_plain_numbers_is_that_of_tensors(noise):
    psf = (AxisPSF("kspace", 1.1), AxisPSF("gaussian", 4.0), AxisPSF("unknown", 0.5))
    how = dict(stored=(1.0, 4.0, 0.5), denoise=0.3)
    denoiser = Denoiser(torch.nn.Identity(), 0.07421607991601585)
    sigma = torch.full((1,), denoiser.sigma_max)
    expected = Condition.of_acquisition(psf, (0.7, 0.8, 0.9), noise, **how).vector(sigma, denoiser.sigma_data)
    log_sigma, mean_scale = mean_constants(denoiser.sigma_data)
    assert np.array_equal(mean_vector(entries_of(psf, (0.7, 0.8, 0.9), noise, **how), log_sigma), expected.numpy())
    assert mean_scale == float(denoiser.coefficients(sigma)[1])


def test_a_backend_that_is_asked_for_is_not_passed_by(monkeypatch):
    assert arrays.missing() is None
    monkeypatch.setenv("MRISR_BACKEND", "axis_apply=native")
    assert arrays.missing() is None
    monkeypatch.setenv("MRISR_BACKEND", "blend=reference")
    assert arrays.missing() == "MRISR_BACKEND asks for reference"


def test_a_machine_with_a_gpu_is_asked(monkeypatch):
    from mrisr.infer.engines import select

    monkeypatch.setattr(environment, "GPU_NODES", ("/dev/null",))
    assert environment.may_have_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert (select.pick_device("auto"), select.pick_device("auto").type) == ("cuda:0", "cuda")
    monkeypatch.setattr(environment, "GPU_NODES", ())
    monkeypatch.setattr(environment, "GPU_DRIVER", "libno-such-driver.so.1")
    assert not environment.may_have_gpu() or sys.platform not in ("linux", "darwin")
    if sys.platform == "linux":
        assert select.pick_device("auto") == "cpu"
    assert torch.device(select.pick_device("cuda")) == torch.device("cuda:0")
