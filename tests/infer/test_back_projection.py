"""What slices hold beyond the network's answer goes back onto it: half of it where their profile is only assumed."""

import numpy as np
import pytest

import mrisr
from mrisr.errors import MrisrWarning
from mrisr.ops.resample import apply_axes
from mrisr.physics.degrade import ForwardModel, start_matrices
from mrisr.physics.psf import AxisPSF

SIZE = (1.0, 1.0, 3.0)


@pytest.fixture(scope="module")
def model(random_model):
    return random_model("local")


@pytest.fixture(scope="module")
def scan(head):
    return head((32, 40, 24))


def upscaled(scan, model, monkeypatch, **how):
    monkeypatch.setattr("mrisr.infer.run.fade", lambda image, *rest: image)  # else plain interpolation stands in air
    given = dict(input_voxel_size=SIZE, voxel_size=1.0, threads=1, engine="torch", precision="float32") | how
    result, info = mrisr.upscale(scan, model=model, return_info=True, **given)
    (offset, scale), psf = info.intensity[0], [AxisPSF("kspace", 1.0)] * 2 + [AxisPSF("gaussian", 3.0)]
    return (result - offset) / scale, (scan - offset) / scale, tuple(psf), info


@pytest.mark.parametrize("how, share", [(dict(psf=("kspace", "kspace", "gaussian")), 1.0), (dict(), 0.5)])
def test_the_share_goes_back(scan, model, monkeypatch, how, share):
    alone, lr, psf, info = upscaled(scan, model, monkeypatch, consistency="off", **how)
    assert info.back_projection == 0
    monkeypatch.setattr("mrisr.infer.plan._wants_correction", lambda geometry, choice: False)  # the next step
    result, _, _, info = upscaled(scan, model, monkeypatch, **how)
    assert info.back_projection == info.to_dict()["back_projection"] == share
    forward = ForwardModel.between(alone.shape, (1.0,) * 3, scan.shape, SIZE, psf)
    rest = lr - forward.forward(alone)
    assert np.abs(rest).max() > 0.02, "the answer explains the scan already: nothing is tested"
    back = apply_axes(share * rest, start_matrices(scan.shape, SIZE, alone.shape, (1.0,) * 3, psf))
    np.testing.assert_allclose(result, alone + back, atol=1e-4)
    # One step: of the highest frequencies of the slices their profile has left 0.4.
    assert np.square(lr - forward.forward(result)).mean() < (1 - 0.3 * share) * np.square(rest).mean()


@pytest.mark.parametrize(
    "how",
    [
        dict(psf="kspace"),  # whose band stands in every answer
        dict(mode="sample"),
        dict(consistency="off"),
        dict(psf=("kspace", "kspace", "unknown")),
    ],
)
def test_nothing_goes_back_elsewhere(scan, model, monkeypatch, how):
    assert upscaled(scan, model, monkeypatch, **how)[3].back_projection == 0


@pytest.mark.parametrize("how", [dict(psf=("kspace", "kspace", "gaussian")), dict(), dict(consistency="off")])
def test_beneath_an_answer_with_noise_only_noise_goes(scan, model, monkeypatch, how):
    """The share stays what it is, so that a hundredth of `denoise` changes a hundredth; and where the noise cannot be
    known nothing changes."""
    monkeypatch.setattr("mrisr.infer.plan._wants_correction", lambda geometry, choice: False)
    noisy = scan + np.random.default_rng(0).normal(0, 0.05 * scan.std(), scan.shape).astype(np.float32)
    runs = {d: upscaled(noisy, model, monkeypatch, denoise=d, **how) for d in (0.0, 0.01, 0.5, 1.0)}
    assert len({run[3].back_projection for run in runs.values()}) == 1
    steps = {d: runs[d][0] - runs[0.0][0] for d in (0.01, 0.5, 1.0)}
    assert np.abs(steps[1.0]).max() > 0.02, "nothing is tested"
    for d in (0.01, 0.5):
        np.testing.assert_allclose(steps[d], d * steps[1.0], atol=1e-4)
    monkeypatch.setattr("mrisr.infer.back_projection.noise_level", lambda lr, voxel_size, bands: None)
    with pytest.warns(MrisrWarning, match="all of it stays"):
        unknown = upscaled(noisy, model, monkeypatch, denoise=1.0, **how)[0]
    np.testing.assert_allclose(unknown, runs[0.0][0], atol=1e-5)


def test_a_filtered_scan_goes_back_whole(scan, random_model, monkeypatch):
    from dataclasses import replace

    found = random_model("local")
    able = replace(found, meta={**found.meta, "denoise": True})
    for psf in ("auto", "kspace"):
        assert upscaled(scan, able, monkeypatch, denoise=0.5, psf=psf)[3].back_projection == 1
