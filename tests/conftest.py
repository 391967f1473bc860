"""What every test stands on: which tests a selection holds and in which order they run, one thread a worker, models
that are small but not zero, and a head-like phantom."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before NumPy and PyTorch count the cores that another worker uses too
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", ".pytest_cache/hypothesis")

import shutil  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402 - PyTorch needs it too

TESTS = Path(__file__).parent
# `-m quick`: the contracts that most changes touch; so are single tests with the mark, in any other file.
QUICK = (
    "test_grid.py",
    "test_volume.py",
    "test_schema.py",
    "test_environment.py",
    "test_import_rules.py",
    "batch/test_run.py",
    "batch/test_scans.py",
    "cli/test_bad_input.py",
    "cli/test_correct.py",
    "cli/test_derived.py",
    "cli/test_outputs.py",
    "cli/test_sidecar_place.py",
    "cli/test_simulate.py",
    "diffusion/test_diffusion.py",
    "export/test_bundle.py",
    "infer/test_graph.py",
    "infer/test_read_only.py",
    "infer/test_tiles.py",
    "io/test_adapters.py",
    "io/test_bad_input.py",
    "io/test_contract.py",
    "io/test_kinds.py",
    "io/test_write.py",
    "io/dicom/test_read.py",
    "io/dicom/test_values.py",
    "ops/test_norms.py",
    "ops/test_parity.py",
    "ops/test_sampler_step.py",
    "physics/test_consistency.py",
    "physics/test_intensity.py",
)
# Begun first where several processes share the tests, longest first: one that came last would keep a single process.
LONGEST = (
    "native/test_cuda_on_host.py",
    "native/test_triton.py",
    "cli/test_leaves_nothing.py",
    "train/test_loop.py",
    "cli/test_system_errors.py",
    "ops/test_graphs.py",
    "infer/test_pipeline.py",
    "infer/test_slabs.py",
    "train/test_distill.py",
    "export/test_export.py",
)


def _name(path: Path) -> str:
    return path.relative_to(TESTS).as_posix() if path.is_relative_to(TESTS) else ""


def pytest_ignore_collect(collection_path, config):
    """`-m quick` does not even import the files that hold none of it."""
    if config.option.markexpr != "quick" or not collection_path.match("test_*.py") or _name(collection_path) in QUICK:
        return None
    return "mark.quick" not in collection_path.read_text(encoding="utf-8") or None


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around -m's selection
def pytest_collection_modifyitems(items, config):
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(_name(item.path), len(place)))
    for item in items:
        slow = item.get_closest_marker("slow")
        if slow and not slow.args:
            raise pytest.UsageError(f"{item.nodeid}: slow needs its reason, as in pytest.mark.slow('two trainings')")
        if not slow and _name(item.path) in QUICK:
            item.add_marker("quick")
    yield
    _one_skip_for_each_reason(items, config)


def _one_skip_for_each_reason(items, config) -> None:
    """Of a file's tests that are marked as skipped for one reason, the first stays and says how many they are."""
    groups: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        if reason := _absent(item):
            groups.setdefault((item.path, reason), []).append(item)
    gone = set()
    for (_, reason), (first, *others) in groups.items():
        if others:
            first.add_marker(pytest.mark.skipif(True, reason=f"{reason} ({1 + len(others)} tests)"), append=False)
            gone.update(others)
    if gone:
        config.hook.pytest_deselected(items=[item for item in items if item in gone])
        items[:] = [item for item in items if item not in gone]


def _absent(item) -> str:
    """Why a test is skipped by its marks; empty where it is not."""
    for mark in item.iter_markers("skip"):
        return mark.kwargs.get("reason", *mark.args[:1]) if mark.kwargs or mark.args else "unconditionally"
    reasons = (m.kwargs.get("reason", "") for m in item.iter_markers("skipif") if m.args and m.args[0] is True)
    return next(reasons, "")


def _for_all(tmp_path_factory) -> Path:
    """A temporary folder of this run, the same in every process."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once(name, make) -> the folder that make(folder) has made and filled, once for all processes."""

    def once(name: str, make) -> Path:
        folder = _for_all(tmp_path_factory) / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                beside = folder.with_name(f"{name}.unfinished")
                shutil.rmtree(beside, ignore_errors=True)
                make(beside)
                beside.rename(folder)
        return folder

    return once


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Converted graphs go where the tests can throw them away, to be found by every process that shares the tests, and
    what is compared is float32 on every processor."""
    cache = _for_all(tmp_path_factory) / "cache"
    cache.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MRISR_PRECISION", "float32")
        patch.setenv("MRISR_CACHE", str(cache))
        yield


@pytest.fixture(scope="session")
def random_model():
    """make(kind) -> a model with random weights everywhere, so that its residual is not zero.

    kind: "local" (the student's mechanisms, few channels) or a preset. The same object every time.
    """
    import torch

    from mrisr.diffusion.precond import Denoiser
    from mrisr.nn.presets import PRESETS
    from mrisr.nn.unet import UNet, UNetConfig
    from mrisr.weights.registry import LoadedModel

    configs = {
        "local": UNetConfig(widths=(16, 16, 32), encoder=(1, 1), middle=1, decoder=(1, 1), embed=32),
        **PRESETS,
    }
    made = {}

    def make(kind: str = "local"):
        if kind not in made:
            torch.manual_seed(0)
            net = UNet(configs[kind]).eval()
            for parameter in net.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.05)
            made[kind] = LoadedModel(Denoiser(net, 0.05), f"random {kind}", {}, "", None)
        return made[kind]

    return make


@pytest.fixture(scope="session")
def weights(made_once):
    """Path of untrained `tiny` weights: plain interpolation, in milliseconds."""
    from mrisr.nn.presets import build
    from mrisr.train.checkpoint import export_weights

    def make(folder):
        folder.mkdir()
        meta = {"format": 1, "preset": "tiny", "sigma_data": 0.05, "trained_range": {}}
        export_weights(folder / "tiny.safetensors", build("tiny").state_dict(), meta)

    return made_once("weights", make) / "tiny.safetensors"


@pytest.fixture(scope="session")
def head():
    """make(shape, air=0.3) -> float32 [X, Y, Z]: folded tissue in a bright rim, noisy air around it.

    air: part of each axis that is air, on both sides together.
    """

    def make(shape=(48, 56, 44), air: float = 0.3, noise: float = 5.0, seed: int = 0):
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
        radius = np.sqrt((grid**2).sum(axis=0)) / (1 - air)
        folds = 500 + 250 * np.sin(19 * grid[0]) * np.sin(17 * grid[1]) * np.sin(15 * grid[2])
        clean = np.where(radius < 0.9, folds, np.where(radius < 1.0, 900.0, 0.0))
        rng = np.random.default_rng(seed)
        noisy = np.hypot(clean + noise * rng.standard_normal(shape), noise * rng.standard_normal(shape))
        return noisy.astype(np.float32)

    return make


@pytest.fixture
def make_scans(head):
    """make(folder, *names): a head of 16 x 18 x 14 voxels of 2 mm at each name; subfolders are made."""
    import nibabel as nib

    def make(folder, *names):
        for seed, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = head((16, 18, 14), seed=seed).astype(np.int16 if not name.endswith("mgz") else np.float32)
            kind = nib.MGHImage if name.endswith("mgz") else nib.Nifti1Pair if ".hdr" in name else nib.Nifti1Image
            nib.save(kind(data, np.diag([-2.0, 2, 2, 1])), path)
        return folder

    return make


@pytest.fixture(scope="module")
def browser():
    """Chromium of the system, driven by playwright; no network is used.

    Of a module, not of the session: while playwright's own loop lives, nothing else in this thread may run one.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this system")
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
    with api.sync_playwright() as play:
        running = play.chromium.launch(executable_path=chromium, args=flags)
        yield running
        running.close()
