"""The scanner: adjoints, point spreads against closed form, noise, determinism."""

import numpy as np
import pytest
import torch

from mrisr import grid as grids
from mrisr.errors import UsageError
from mrisr.ops.resample import apply_axes
from mrisr.physics.degrade import (
    ForwardModel,
    coarse_grid,
    degrade,
    kspace_mask,
    rician,
    sampled,
    start_matrices,
    zero_fill,
    zero_fill_matrices,
)
from mrisr.physics.psf import AxisPSF, auto_psf, parse_psf

HR = grids.Grid((40, 36, 32), np.eye(4))


def scanner(factor, kinds, window="box"):
    factor = np.broadcast_to(factor, 3)
    lr = coarse_grid(HR, factor)
    psf = tuple(AxisPSF(k, float(f), window) for k, f in zip(kinds, factor))
    return ForwardModel.between(HR.shape, HR.voxel_size, lr.shape, lr.voxel_size, psf), lr, psf


CASES = [
    ((2, 2, 2), ("kspace",) * 3, "box"),
    ((1.5, 1.5, 1.5), ("kspace",) * 3, "hann"),
    ((1, 1, 4), ("kspace", "kspace", "gaussian"), "box"),
    ((1.3, 1.3, 5), ("kspace", "kspace", "supergaussian"), "tukey"),
    ((1, 2.7, 1.9), ("unknown", "gaussian", "kspace"), "box"),
]


@pytest.mark.parametrize("factor,kinds,window", CASES)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_adjoint(factor, kinds, window, dtype, tolerance):
    model, lr, _ = scanner(factor, kinds, window)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *HR.shape, generator=generator, dtype=dtype)
    y = torch.randn(2, *lr.shape, generator=generator, dtype=dtype)
    hx, hty = model.forward(x), model.adjoint(y)
    difference = (hx.double() * y.double()).sum() - (x.double() * hty.double()).sum()
    assert abs(difference) / (hx.double().norm() * y.double().norm()) < tolerance


@pytest.mark.parametrize("factor", [2.0, 1.5, 2.7, 4.0])
@pytest.mark.parametrize("kind", ["kspace", "gaussian", "supergaussian"])
def test_a_plane_wave_is_attenuated_by_the_transfer_function(factor, kind):
    """An independent oracle: a cosine through a linear filter is the same cosine times the gain at its frequency."""
    n = 40
    model, lr, psf = scanner(factor, (kind,) * 3)
    for k in (2, 9, 17, 30):
        frequency = k / (2 * n)
        x = torch.from_numpy(np.cos(np.pi * k * (np.arange(n) + 0.5) / n))[:, None, None].expand(HR.shape)
        y = model.forward(x.contiguous())[:, lr.shape[1] // 2, lr.shape[2] // 2].numpy()
        positions = grids.axis_positions(n, lr.shape[0], factor)
        gain = psf[0].transfer(np.array([frequency]))[0]
        assert np.abs(y - gain * np.cos(np.pi * k * (positions + 0.5) / n)).max() < 1e-9


def test_the_profiles_have_the_stated_full_width_at_half_maximum():
    x = np.linspace(-6, 6, 2401)
    f = np.linspace(0, 3, 3001)
    for kind in ("gaussian", "supergaussian"):
        gain = AxisPSF(kind, 2.5).transfer(f)
        profile = np.trapezoid(gain * np.cos(2 * np.pi * np.outer(x, f)), f, axis=1)
        above = x[profile >= 0.5 * profile.max()]
        assert abs((above.max() - above.min()) - 2.5) < 0.03, kind


def test_overlapping_slices_blur_by_the_thickness_and_sample_by_the_spacing():
    lr = coarse_grid(HR, (1, 1, 2))
    thick, thin = (
        ForwardModel.between(HR.shape, (1, 1, 1), lr.shape, lr.voxel_size,
                             (AxisPSF("kspace", 1), AxisPSF("kspace", 1), AxisPSF("gaussian", w)))
        for w in (4.0, 2.0)
    )  # fmt: skip
    x = torch.zeros(HR.shape)
    x[:, :, 16] = 1
    a, b = thick.forward(x)[5, 5], thin.forward(x)[5, 5]
    assert a.shape == b.shape == (16,)
    assert float(b.max()) > 1.5 * float(a.max())
    assert float(a.sum()) == pytest.approx(float(b.sum()), rel=0.02)


@pytest.mark.parametrize("factor,kinds,window", CASES)
def test_constant_scans_constant(factor, kinds, window):
    model, _, _ = scanner(factor, kinds, window)
    assert (model.forward(torch.ones(HR.shape)) - 1).abs().max() < 1e-5


def test_what_a_cut_of_kspace_measured_comes_back_exactly():
    model, lr, psf = scanner(2, ("kspace",) * 3)
    x = torch.randn(HR.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = start_matrices(lr.shape, lr.voxel_size, HR.shape, HR.voxel_size, psf)
    scan = model.forward(x)
    assert (model.forward(apply_axes(scan, start)) - scan).abs().max() < 1e-9


def test_rician_noise_has_the_stated_level_and_floor():
    generator = torch.Generator().manual_seed(0)
    bright = rician(torch.full((100, 100, 50), 100.0), 2.0, generator)
    assert float(bright.std()) == pytest.approx(2.0, rel=0.02)
    air = rician(torch.zeros(100, 100, 50), 2.0, generator)
    assert float(air.mean()) == pytest.approx(2.0 * np.sqrt(np.pi / 2), rel=0.01)


def test_noise_is_added_after_decimation():
    """Its level on the coarse grid does not depend on the factor; noise added before would be averaged away."""
    x = torch.full(HR.shape, 50.0)
    for factor in (2, 4):
        model, _, _ = scanner(factor, ("kspace",) * 3)
        y = degrade(x, model, noise_sigma=1.0, generator=torch.Generator().manual_seed(2))
        assert float(y.std()) == pytest.approx(1.0, rel=0.12)


def test_auto_psf_reads_the_voxel_shape():
    psf, why = auto_psf((1.0, 1.0, 4.0))
    assert [p.kind for p in psf] == ["kspace", "kspace", "gaussian"] and "axis 2" in why
    psf, why = auto_psf((1.0, 1.2, 0.9))
    assert {p.kind for p in psf} == {"kspace"} and "near-isotropic" in why


def test_auto_psf_believes_metadata_more_than_the_voxel_shape():
    psf, why = auto_psf((0.9, 0.9, 3.3), {"SliceThickness": 3.0, "MRAcquisitionType": "2D"})
    assert (psf[2].kind, psf[2].width) == ("gaussian", 3.0) and "SliceThickness" in why
    psf, why = auto_psf((0.9, 0.9, 3.0), {"MRAcquisitionType": "3D"})
    assert {p.kind for p in psf} == {"kspace"} and "MRAcquisitionType 3D" in why
    psf, why = auto_psf((1.0, 1.0, 1.5), {"MRAcquisitionType": "2D"})
    assert [p.kind for p in psf] == ["kspace", "kspace", "gaussian"] and "MRAcquisitionType 2D" in why


def test_parse_psf():
    psf, origin, certain = parse_psf(["kspace", ("gaussian", 5.0), AxisPSF("kspace", 1.4)], (1, 4, 0.7))
    assert [(p.kind, p.width) for p in psf] == [("kspace", 1.0), ("gaussian", 5.0), ("kspace", 1.4)]
    assert certain and origin == "stated by the caller"
    assert parse_psf("auto", (1, 1, 1))[2] is False
    with pytest.raises(UsageError, match="kind must be one of"):
        parse_psf("sinc", (1, 1, 1))
    with pytest.raises(UsageError, match="three entries"):
        parse_psf(["kspace", "kspace"], (1, 1, 1))
    for wrong in (None, 4, [("gaussian",)] * 3, ["kspace", "kspace", 4.0], ["kspace", "kspace", ("gaussian", "x")]):
        with pytest.raises(UsageError, match="psf: expected"):
            parse_psf(wrong, (1, 1, 1))
    with pytest.raises(UsageError, match="width must be from 0.01 to 100 mm, found -1"):
        parse_psf([("kspace", -1.0)] * 3, (1, 1, 1))


@pytest.mark.parametrize("partial,elliptical", [((1, 0.75, 1), False), ((0.6, 0.8, 1), True), ((1, 1, 1), True)])
def test_left_out_kspace_is_its_own_adjoint(partial, elliptical):
    mask = kspace_mask((11, 12, 9), partial, elliptical)
    generator = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.complex64, 1e-5), (torch.complex128, 1e-12)):
        x, y = (torch.randn(2, 11, 12, 9, generator=generator, dtype=dtype) for _ in range(2))
        difference = torch.vdot(sampled(x, mask).flatten(), y.flatten()) - torch.vdot(
            x.flatten(), sampled(y, mask).flatten()
        )
        assert difference.abs() / (x.norm() * y.norm()) < tolerance
    assert torch.allclose(sampled(sampled(x, mask), mask), sampled(x, mask))


def test_partial_fourier_halves_what_it_lacks_and_keeps_the_rest():
    """Of a real wave whose negative frequency was not measured, half is left, in magnitude too."""
    n = 64
    mask = kspace_mask((n, 1, 1), (0.75, 1, 1))
    assert int(mask.sum()) == 48
    for k, gain in ((5, 1.0), (15, 1.0), (16, 1.0), (17, 0.5), (30, 0.5)):
        wave = torch.cos(2 * torch.pi * k * torch.arange(n, dtype=torch.float64) / n)[:, None, None]
        found = sampled(wave, mask)
        assert found.real.abs().max() == pytest.approx(gain, abs=1e-9)
        if gain < 1:
            assert torch.allclose(found.abs(), torch.full_like(wave, 0.5))
    model, lr, _ = scanner(1, ("kspace",) * 3)
    whole = degrade(torch.rand(HR.shape), model, mask=kspace_mask(lr.shape))
    assert whole.shape == HR.shape


def test_zero_filling_adds_voxels_and_nothing_else():
    x = torch.randn(2, 12, 10, 9, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    y = zero_fill(x, (2, 1.5, 1))
    assert y.shape == (2, 24, 15, 9)
    lr = grids.Grid((12, 10, 9), np.eye(4))
    assert grids.plan(lr, factor=(2, 1.5, 1)).shape == y.shape[1:]
    # The band that was measured, read at the old positions by an operator that cuts, is what it was.
    back = ForwardModel.between((24, 15, 9), (0.5, 1 / 1.5, 1), (12, 10, 9), (1, 1, 1), (AxisPSF("kspace", 1.0),) * 3)
    assert (back.forward(y.real) - x.real).abs().max() < 1e-9
    matrices = zero_fill_matrices((12, 10, 9), (2, 1.5, 1))
    z = torch.randn(24, 15, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    forward = apply_axes(x.real[0], matrices)
    backward = apply_axes(z, [None if m is None else m.T for m in matrices])
    assert float((forward * z).sum()) == pytest.approx(float((x.real[0] * backward).sum()), rel=1e-10)


def test_a_gap_between_slices_hides_what_lies_in_it():
    lr = coarse_grid(HR, (1, 1, 4))
    psf = (AxisPSF("kspace", 1), AxisPSF("kspace", 1), AxisPSF("supergaussian", 2.0))
    model = ForwardModel.between(HR.shape, (1, 1, 1), lr.shape, lr.voxel_size, psf)
    centres = grids.axis_positions(32, 8, 4.0)
    seen = [
        float(model.forward(torch.zeros(HR.shape).index_fill_(2, torch.tensor([k]), 1.0)).max()) for k in range(8, 24)
    ]
    away = [float(np.abs(centres - k).min()) for k in range(8, 24)]
    assert min(s for s, d in zip(seen, away) if d < 1) > 5 * max(s for s, d in zip(seen, away) if d > 1)


def test_noise_outside_of_the_measured_part_is_not_there():
    model, lr, _ = scanner(2, ("kspace",) * 3)
    flat = torch.full(HR.shape, 100.0)
    mask = kspace_mask(lr.shape, (1, 0.75, 1))
    levels = [
        float(degrade(flat, model, noise_sigma=1.0, generator=torch.Generator().manual_seed(0), **more).std())
        for more in ({}, {"mask": mask}, {"stored": 2.0})
    ]
    assert levels[1] == pytest.approx(levels[0] * np.sqrt(0.75), rel=0.06)
    assert levels[2] == pytest.approx(levels[0], rel=0.06)


def test_bad_arguments_are_named():
    model, _, _ = scanner(2, ("kspace",) * 3)
    with pytest.raises(UsageError, match="ForwardModel.forward: expected"):
        model.forward(torch.zeros(3, 3, 3))
    with pytest.raises(UsageError, match="noise_sigma"):
        degrade(torch.ones(HR.shape), model, noise_sigma=-1)
    with pytest.raises(UsageError, match="torch.Generator"):
        degrade(torch.ones(HR.shape), model, noise_sigma=1)
    with pytest.raises(UsageError, match="partial must be three numbers above 0.5"):
        kspace_mask((4, 4, 4), (1, 0.4, 1))
    with pytest.raises(UsageError, match="sampled: the mask is"):
        sampled(torch.zeros(4, 4, 4), kspace_mask((4, 4, 5)))
    with pytest.raises(UsageError, match="zero_fill: expected factors of 1 or more"):
        zero_fill(torch.zeros(4, 4, 4), 0.5)
