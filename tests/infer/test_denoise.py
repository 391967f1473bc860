"""Noise that is taken out of the measured band, and zero-filled axes that the spectrum shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import mrisr
from mrisr.errors import MrisrWarning, UsageError
from mrisr.infer import back_projection
from mrisr.nn.condition import Condition
from mrisr.nn.vector import VECTOR_LAYOUT
from mrisr.ops.resample import apply_axes
from mrisr.physics.degrade import ForwardModel, band_matrices, mean_matrices, outside_band, zero_fill_matrices
from mrisr.physics.psf import AxisPSF, auto_psf, parse_psf


@pytest.fixture(scope="module")
def model(random_model):
    found = random_model("local")
    return replace(found, meta={**found.meta, "denoise": True})


@pytest.fixture(scope="module")
def unlearnt(random_model):
    """One that has not learnt to leave noise out: the scan is its own pilot."""
    return random_model("local")


@pytest.fixture(scope="module")
def scan(head):
    return head((32, 40, 36))


def run(scan, model, **options):
    given = {"factor": 2, "input_voxel_size": 1.0, "threads": 1, "return_info": True, "engine": "torch", **options}
    return mrisr.upscale(scan, model=model, precision="float32", **given)


def told(monkeypatch, scan, model, **options) -> dict:
    """What the network is told of the windows, by the first of its vectors."""
    vectors = []
    unwrapped = Condition.vector
    monkeypatch.setattr(Condition, "vector", lambda *given: vectors.append(unwrapped(*given)) or vectors[-1])
    run(scan, model, **options)
    return {name: vectors[0][0, slice(*places(name))].tolist() for name in ("apodisation", "apodisation_known")}


def places(name: str) -> tuple[int, int]:
    first, count = VECTOR_LAYOUT[name]
    return first, first + count


def test_a_window_that_the_caller_states_is_told(scan, model, monkeypatch):
    windows = [AxisPSF("kspace", 1.0, "hann"), AxisPSF("kspace", 1.0), AxisPSF("kspace", 1.0, "tukey")]
    assert told(monkeypatch, scan, model, psf=windows) == {"apodisation": [1.0, 0.0, 0.5], "apodisation_known": [1.0]}
    for unstated in ("auto", "kspace"):  # of which nobody has said anything
        assert told(monkeypatch, scan, model, psf=unstated)["apodisation_known"] == [0.0]


def test_no_noise_is_said_to_be_none(scan, model, unlearnt, monkeypatch):
    monkeypatch.setattr(back_projection, "noise_level", lambda *_: 0.0)
    for network in (model, unlearnt):
        with pytest.warns(MrisrWarning, match="no more noise was found than what anatomy alone looks like"):
            whole = run(scan, network, denoise=1.0)[0]
        if network is unlearnt:
            np.testing.assert_allclose(whole, run(scan, network)[0], atol=1e-5 * np.ptp(whole))


def psf_of_cut():
    return parse_psf("kspace", (1.0, 1.0, 1.0))[0]


def test_the_band_keeps_the_share_that_is_asked_for():
    x = torch.randn(16, 12, 20, generator=torch.Generator().manual_seed(0))
    band = band_matrices(x.shape, (1, 1, 1), parse_psf("kspace", (2.0, 2.0, 2.0))[0])
    band = tuple(torch.as_tensor(m) for m in band)
    inside = apply_axes(x, band)
    for share in (0.0, 0.25, 1.0):
        kept = apply_axes(outside_band(x, band, share), band)
        torch.testing.assert_close(kept, share * inside, atol=1e-5, rtol=0)


def test_0_is_today_and_1_changes_the_band_but_not_the_local_mean(scan, model):
    default, none, whole = (run(scan, model, **d)[0] for d in ({}, {"denoise": 0}, {"denoise": 1.0}))
    assert np.array_equal(default, none)
    change = torch.from_numpy(whole - none)
    psf = auto_psf((1.0, 1.0, 1.0))[0]
    inner = (slice(8, -8),) * 3  # the projections are of the processed box
    band, mean = (
        tuple(torch.as_tensor(m) for m in make(change.shape, (0.5, 0.5, 0.5), psf))
        for make in (band_matrices, mean_matrices)
    )
    moved = apply_axes(change, band)[inner].std()
    assert moved > 1e-3 * float(np.std(scan)), "the network was told to change the measured band, and did not"
    assert apply_axes(change, mean)[inner].std() < 0.2 * moved


@pytest.mark.parametrize(
    "amount, mode, told", [(0.0, "mean", 0.0), (0.5, "mean", 1.0), (1.0, "mean", 1.0), (0.5, "sample", 0.5)]
)
def test_info_and_the_network_are_told(scan, model, amount, mode, told, monkeypatch):
    """For a pilot all noise is to go, however much of it goes in the end; a sample is not filtered."""
    seen, plain = [], Condition.of_acquisition

    def of_acquisition(*given, **how):
        seen.append(how["denoise"])
        return plain(*given, **how)

    monkeypatch.setattr(Condition, "of_acquisition", of_acquisition)
    _, info = run(scan, model, denoise=amount, mode=mode)
    assert seen and set(seen) == {told}
    assert info.denoise == amount and info.to_dict()["denoise"] == amount


@pytest.mark.parametrize("of", ["model", "unlearnt"])
@pytest.mark.parametrize("amount", [0.3, 1.0])
def test_the_result_shows_the_filtered_scan(scan, of, amount, monkeypatch, request):
    """Where k-space was cut the scanner sees, in the result, the scan without the noise that was to go."""
    name = "without_noise" if of == "model" else "wiener"
    calls, plain = [], getattr(back_projection, name)

    def recorded(lr, pilot, sigma, bands, threads):
        calls.append((lr.copy(), pilot.copy(), sigma, plain(lr, pilot, sigma, bands, threads)))
        return calls[-1][-1].copy()

    monkeypatch.setattr(back_projection, name, recorded)
    monkeypatch.setattr("mrisr.infer.run.fade", lambda image, *rest: image)  # plain interpolation in air has its noise
    noisy = scan + np.random.default_rng(0).normal(0, 0.05 * scan.std(), scan.shape).astype(np.float32)
    result, info = run(noisy, request.getfixturevalue(of), denoise=amount, psf="kspace", consistency="off")
    (lr, pilot, sigma, filtered), (offset, gain) = calls[0], info.intensity[0]
    assert np.abs(filtered - lr).max() > sigma
    assert np.abs(pilot - lr).max() > sigma if of == "model" else np.array_equal(pilot, lr)
    acquisition = ForwardModel.between(result.shape, (0.5,) * 3, scan.shape, (1.0,) * 3, psf_of_cut())
    seen = acquisition.forward(torch.from_numpy((result - offset) / gain)).numpy()
    np.testing.assert_allclose(seen, lr + amount * (filtered - lr), atol=2e-4)


def test_without_foreground_the_answer_stands_and_a_warning_says_so(scan, model, monkeypatch):
    monkeypatch.setattr(back_projection, "noise_level", lambda lr, voxel_size, bands: None)
    with pytest.warns(MrisrWarning, match="denoise: too little foreground to know the noise"):
        _, info = run(scan, model, denoise=1.0)
    assert any("too little foreground" in text for text in info.warnings)


@pytest.mark.filterwarnings("ignore:denoise. too little foreground")
def test_without_foreground_the_share_counts_all_the_same(scan, model, monkeypatch):
    """The network's answer, asked to take all noise out, is not all of the result where less was to go."""
    monkeypatch.setattr("mrisr.infer.run.fade", lambda image, *rest: image)
    thin, how = scan[:, :, 16:19], dict(psf="kspace", consistency="off")
    known = [run(thin, model, denoise=share, **how)[0] for share in (0.0, 0.25, 1.0)]
    acquisition = ForwardModel.between(known[0].shape, (0.5,) * 3, thin.shape, (1.0,) * 3, psf_of_cut())
    measured, part, answer = (acquisition.forward(torch.from_numpy(v)).numpy() for v in known)
    moved = np.abs(answer - measured).max()
    assert moved > 0.005 * scan.std()
    np.testing.assert_allclose(part, 0.75 * measured + 0.25 * answer, atol=0.02 * moved)


def test_weights_that_have_not_learnt_it_are_refused_where_nothing_is_filtered(scan, unlearnt):
    """A sample, and a scan whose geometry is corrected, has the network's answer alone."""
    field = np.broadcast_to(
        np.linspace(0, 0.4, scan.shape[0], dtype=np.float32)[:, None, None, None], (*scan.shape, 3)
    ).copy()
    for alone in (dict(mode="sample"), dict(gradnl=mrisr.Volume(field, np.eye(4)))):
        with pytest.raises(UsageError, match="has not learnt to remove noise.*use denoise=0"):
            run(scan, unlearnt, denoise=0.5, **alone)


def test_without_it_only_noise_goes_and_it_grows_from_0(scan, unlearnt, monkeypatch):
    """The network is told nothing, so that what it finds stays, and a small share changes little."""
    monkeypatch.setattr("mrisr.infer.run.fade", lambda image, *rest: image)
    rng = np.random.default_rng(0)
    noisy = scan + rng.normal(0, 0.05 * scan.std(), scan.shape).astype(np.float32)
    none, little, whole = (run(noisy, unlearnt, denoise=d, psf="kspace", consistency="off")[0] for d in (0, 0.01, 1.0))
    np.testing.assert_allclose(little - none, 0.01 * (whole - none), atol=1e-4 * scan.std())
    acquisition = ForwardModel.between(none.shape, (0.5,) * 3, scan.shape, (1.0,) * 3, psf_of_cut())
    before, after = (acquisition.forward(torch.from_numpy(v)).numpy() - scan for v in (none, whole))
    assert after.std() < 0.95 * before.std()


def test_without_it_and_without_foreground_the_noise_stays(scan, unlearnt, monkeypatch):
    monkeypatch.setattr(back_projection, "noise_level", lambda lr, voxel_size, bands: None)
    with pytest.warns(MrisrWarning, match="denoise: too little foreground to know the noise .*; all of it stays"):
        stays, _ = run(scan, unlearnt, denoise=1.0, psf="kspace")
    np.testing.assert_allclose(stays, run(scan, unlearnt, psf="kspace")[0], atol=1e-5 * scan.std())


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "much", True, None])
def test_a_share_is_a_number_from_0_to_1(scan, model, value):
    with pytest.raises(UsageError, match="denoise: expected a number from 0 to 1"):
        run(scan, model, denoise=value)


def test_a_zero_filled_axis_is_seen_in_the_spectrum(head, model):
    """A scanner that stores voxels of 1 mm of 1.5 mm measured: along that axis only the measured is taken as such."""
    acquired = torch.from_numpy(head((64, 96, 64)))
    matrices = zero_fill_matrices(acquired.shape, (1.0, 1.5, 1.0))
    stored = apply_axes(acquired, matrices).numpy()
    noise = np.random.default_rng(0).normal(0, 0.02 * stored.std(), acquired.shape).astype(np.float32)
    stored += apply_axes(torch.from_numpy(noise), matrices).numpy()
    _, info = run(stored, model, factor=1.0)
    assert info.resolution[1].acquired_mm == pytest.approx(1.5, rel=0.06)
    assert info.resolution[0].acquired_mm == info.resolution[2].acquired_mm == 1.0
    assert "the spectrum (axis 1 is zero-filled)" in info.resolution_from


def test_the_header_says_more_than_the_spectrum():
    size, spectrum = (1.0, 1.0, 1.0), (1.0, 1.5, 1.0)
    psf, why = auto_psf(size, {"AcquiredVoxelSize": [1.0, 1.3, 1.0]}, spectrum)
    assert psf[1].width == 1.3 and "acquired matrix" in why
    psf, why = auto_psf(size, {}, spectrum)
    assert psf[1].width == 1.5 and "spectrum" in why


def test_slices_are_not_taken_for_zero_filled():
    psf, _ = auto_psf((1.0, 1.0, 4.0), {}, (1.0, 1.0, 6.0))
    assert psf[2].kind == "gaussian" and psf[2].width == 4.0
