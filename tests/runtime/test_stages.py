"""The stages of libmrisr and of Python, each by itself: what reaches the network (plan, start), what happens between
its calls (denoise), and what becomes of its answer (finish).

Both run a stand-in for the network, the same function of its inputs, and note what they were called with.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from libmrisr import RUN, Engine, Tile

import mrisr
from mrisr.infer import engines, memory

pytestmark = pytest.mark.filterwarnings("ignore::mrisr.errors.MrisrWarning")


def stand_in(x, y, vector, loudness):
    """A smooth function of everything that the network is given."""
    return np.float32(loudness) * (0.3 * np.sin(5 * y) + 0.1 * x + 1e-3 * vector.sum())


class Noted:
    """Calls of the network: (x, y, vector, guidance) of each, float32."""

    def __init__(self, loudness: float) -> None:
        self.loudness, self.calls = loudness, []

    def __call__(self, *given: np.ndarray) -> np.ndarray:
        self.calls.append(tuple(np.array(g, np.float32) for g in given))
        x, y, vector, _ = self.calls[-1]
        return stand_in(x, y, vector, self.loudness)


class PythonEngine(engines.Engine):
    name, device, threads, precision, precision_why = "torch", torch.device("cpu"), 1, "float32", ""
    cost = memory.COSTS["torch"]

    def __init__(self, noted: Noted) -> None:
        self.noted = noted

    def prepare(self, shape, **how):
        def network(x, y, vector, guidance, active=None):
            answer = self.noted(x[0, 0].numpy(), y[0, 0].numpy(), vector[0].numpy(), guidance[0].numpy())
            return torch.from_numpy(answer.astype(np.float32))[None, None]

        return network


def library_engine(library, noted: Noted):
    """(the engine, what has to live as long)."""

    def run(user, address):
        tile = ctypes.cast(address, ctypes.POINTER(Tile)).contents
        size = tuple(tile.size)
        of = np.ctypeslib.as_array
        vector, guidance = of(tile.vector, (40,)), of(tile.guidance, (8, *(n // 8 for n in size)))
        of(tile.f, size)[...] = noted(of(tile.x, size), of(tile.y, size), vector, guidance)
        return 0

    called = RUN(run)
    return library.made(Engine, name=b"noted", run=called), called


@pytest.fixture
def both(library, model, loaded, monkeypatch):
    """run(scan, affine, loudness, options) -> of Python, then of libmrisr: (calls, result, account)."""

    def run(data, affine, loudness=1.0, **options):
        ours, theirs = Noted(loudness), Noted(loudness)
        monkeypatch.setattr("mrisr.infer.run.make", lambda *_: PythonEngine(ours))
        result, info = mrisr.upscale(
            data, affine=affine, model=loaded, engine="torch", threads=1, return_info=True, **options
        )
        engine, _alive = library_engine(library, theirs)
        found = library.upscale(model, data, affine, engine=engine, **options)
        return (ours.calls, result, info), (theirs.calls, found.data, found.info)

    return run


def assert_same_calls(ours, theirs, tolerance=1e-5):
    """As many calls, of the same sizes, with the same numbers; tolerance of the largest value."""
    assert [c[0].shape for c in theirs] == [c[0].shape for c in ours] and ours
    for k, (expected, found) in enumerate(zip(ours, theirs, strict=True)):
        for name, a, b in zip(("x", "y", "vector", "guidance"), expected, found, strict=True):
            worst = np.abs(a - b).max()
            assert worst <= tolerance * max(1.0, np.abs(a).max()), f"{name} of call {k} differs by {worst:.1e}"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile": 48},
        {"psf": [("gaussian", 2.0), ("kspace", 1.4), ("supergaussian", 1.8)], "voxel_size": (0.7, 0.8, 0.9)},
    ],
    ids=["whole", "tiles", "profiles"],
)
def test_plan_and_start(both, scan, affine, options):
    """The pieces, in order; the start on them; what is known of the scan in the network's vector."""
    (ours, _, info), (theirs, _, account) = both(scan, affine, **options)
    assert_same_calls(ours, theirs)
    assert not any(c[0].any() for c in ours) and all(np.abs(c[1]).max() > 0.3 for c in ours)
    assert len(ours) == info.tiles.computed == account.tiles_run and (len(ours) > 1) == ("tile" in options)
    assert (account.offset, account.scale) == pytest.approx(info.intensity[0], rel=1e-7)
    assert account.noise == pytest.approx(info.consistency[0].noise_sigma, rel=1e-6)


def test_slices_come_last(both, head):
    """Thick slices along the first axis: both turn the volume before the network, and its answer back."""
    data = np.ascontiguousarray(head((40, 44, 16)).transpose(2, 0, 1))
    (ours, expected, _), (theirs, found, _) = both(data, np.diag([4.0, 1.0, 1.0, 1.0]), voxel_size=1.0)
    assert_same_calls(ours, theirs)
    assert ours[0][0].shape[2] >= 64 and ours[0][0].shape[2] == max(ours[0][0].shape)
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


def test_denoise(both, scan, affine):
    """Every step of the sampler: its noise, its state, its level and the samples' seeds."""
    options = dict(mode="sample", steps=4, samples=2, seed=2**63 + 11)
    (ours, _, _), (theirs, _, _) = both(scan, affine, **options)
    assert_same_calls(ours, theirs)
    assert len(ours) == 8 and not np.array_equal(ours[0][0], ours[4][0])
    assert 0.8 < ours[0][0].std() < 1.2  # the first state is noise of the first level


def test_x0_is_held_to_what_the_noise_reaches(both, loaded, scan, affine):
    """A network that shouts: without the limit, its states would grow with it."""
    (quiet, _, _), _ = both(scan, affine, mode="sample", steps=4, seed=5)
    (ours, expected, _), (theirs, found, _) = both(scan, affine, 100.0, mode="sample", steps=4, seed=5)
    assert_same_calls(ours, theirs)
    # The last evaluation, at the lowest level: the state is nearly x0, and reaches the network divided by c_in.
    data = loaded.denoiser.sigma_data
    state = np.abs(ours[-1][0]).max() * np.hypot(data, loaded.denoiser.sigma_min)
    assert 0.3 * loaded.denoiser.sigma_max < state < 1.5 * loaded.denoiser.sigma_max
    assert np.abs(ours[-1][0]).max() > 3 * np.abs(quiet[-1][0]).max()
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


@pytest.mark.parametrize("consistency", ["auto", "on", "off"])
def test_finish(both, head, consistency):
    """Of the same answer of the network: consistency, what stands in air, the way back to the scan's units."""
    options = dict(voxel_size=1.0, consistency=consistency)
    if consistency != "auto":
        options["psf"] = [("kspace", 1.0), ("kspace", 1.0), ("gaussian", 4.0)]
    (ours, expected, info), (theirs, found, account) = both(
        head((40, 48, 20)), np.diag([1.0, 1.0, 4.0, 1.0]), **options
    )
    assert_same_calls(ours, theirs)
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)
    note = info.consistency[0]
    assert bool(account.corrected) == note.applied == (consistency == "on")
    if consistency != "off":
        assert account.chi2_before == pytest.approx(note.chi2_before, rel=1e-4, abs=1e-6)
        assert account.chi2_after == pytest.approx(note.chi2_after, rel=1e-4, abs=1e-6)
    if consistency == "on":
        assert account.chi2_after < 0.9 * account.chi2_before
