"""What stands where the network cannot know, with the shipped weights: end slices, air, masked backgrounds."""

from __future__ import annotations

from functools import cache

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

import mrisr
from mrisr import grid as grids
from mrisr import native
from mrisr.infer import finish
from mrisr.infer.corrections import Corrections, Corrector, Displacement
from mrisr.infer.fade import Limits
from mrisr.infer.start import Frame
from mrisr.physics.intensity import Scale
from mrisr.physics.psf import auto_psf
from mrisr.weights import registry
from tests import real_data

pytestmark = [
    pytest.mark.filterwarnings("ignore::mrisr.errors.MrisrWarning"),
    pytest.mark.skipif("base" not in registry.available(), reason="no weights are shipped"),
]


def cubic(data, info):
    source, target = info.input, info.target
    at = (grids.axis_positions(n, m, t / s) for n, m, s, t in zip(
        data.shape, target.shape, source.voxel_size, target.voxel_size))  # fmt: skip
    return ndimage.map_coordinates(data, np.stack(np.meshgrid(*at, indexing="ij")), order=3, mode="nearest")


@cache
def real_slices(name):
    """(a crop of the first eight slices, the result, cubic interpolation)."""
    path = real_data.SCANS / f"{name}.nii.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name}: set MRISR_SHARED to the folder that holds data/train")
    image = nib.load(path)
    data = np.ascontiguousarray(image.dataobj[40:136, 60:156, :8], dtype=np.float32)
    result, info = mrisr.upscale(data, affine=image.affine, threads=1, return_info=True)
    return data, result, cubic(data, info)


@real_data.needs_scans
@pytest.mark.parametrize("name", ["clinical2d_p12_study2_flair", "clinical2d_p19_study2_t1w"])
def test_end_slices_of_real_scans_are_no_wilder_than_cubic(name):
    _, result, plain = real_slices(name)
    for k in (0, 1, 2, 3, -4, -3, -2, -1):
        assert result[..., k].std() <= 1.3 * plain[..., k].std()


@real_data.needs_scans
@pytest.mark.parametrize("name", ["clinical2d_p12_study2_flair", "clinical2d_p19_study2_t1w"])
def test_values_stay_near_those_of_the_scan(name):
    data, result, _ = real_slices(name)
    assert result.min() / data.max() >= -0.15 and result.max() / data.max() <= 1.2


@real_data.needs_scans
def test_negatives_are_not_more_frequent_than_cubics():
    _, result, plain = real_slices("clinical2d_p19_study2_t1w")
    assert (result < 0).mean() <= (plain < 0).mean()


def test_limits_hold_the_answer_and_leave_interpolation_alone():
    plain = torch.tensor([100.0, 100.0, 100.0, -5.0, -5.0, 1300.0, 100.0]).reshape(7, 1, 1)
    answer = torch.tensor([-30.0, 4.0, 50.0, -90.0, -2.0, 1250.0, 5000.0]).reshape(7, 1, 1)
    limits = Limits.of(torch.tensor([2.0, 1000.0]), zero=0.0)
    assert (limits.floor, limits.ceiling) == (0.0, 1150.0)
    held = limits.hold(answer.clone(), plain).flatten().tolist()
    assert held == [10.0, 10.0, 50.0, -5.0, -2.0, 1250.0, 1150.0]
    whole = Limits.of(torch.tensor([-200.0, 800.0]), zero=0.0)  # a scan that goes below no signal
    assert whole.floor == -200.0 and torch.equal(whole.hold(plain.clone(), plain), plain)


def test_limits_keep_the_units_of_the_scan():
    """Normalised, with another zero, the same voxels are held at the same values."""
    rng = torch.Generator().manual_seed(0)
    scan, plain, answer = (1000 * torch.rand(40, 3, 3, generator=rng) for _ in range(3))
    answer = 4 * (answer - 500)
    held = Limits.of(scan, 0.0).hold(answer.clone(), plain)
    there = [(v - 20) / 700 for v in (scan, plain, answer)]
    again = Limits.of(there[0], -20 / 700).hold(there[2], there[1]) * 700 + 20
    assert torch.allclose(held, again, atol=1e-3) and not torch.equal(held, answer)


@pytest.mark.skipif(native.reason() is not None, reason="the native core was not built: PyTorch is the one way")
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize(
    ("shape", "size", "wanted"),
    [
        ((21, 26, 18), (1.0, 1.0, 1.0), 0.7),  # the second axis first
        ((30, 24, 7), (0.9, 1.1, 4.0), 0.8),  # end slices; the first axis first
        ((7, 24, 30), (4.0, 1.0, 1.0), (1.0, 0.8, 0.6)),  # the first axis last
        ((23, 24, 20), (1.0, 1.0, 1.0), (1.0, 1.0, 0.6)),  # nothing changes along it
        ((23, 24, 20), (1.0, 1.0, 1.0), 1.0),  # nor along any
        ((33, 20, 22), (0.5, 1.0, 1.0), (1.3, 0.7, 1.0)),  # fewer voxels than before
    ],
)
def test_the_native_core_fades_as_pytorch_does(shape, size, wanted, threads):
    rng = np.random.default_rng(3)
    scan = torch.from_numpy(np.clip(rng.normal(0.5, 0.4, shape), -0.1, 1).astype(np.float32))
    scan[:, :6] *= 0.02  # air
    source = grids.Grid(shape, np.diag([*size, 1.0]))
    target = grids.plan(source, voxel_size=wanted)
    psf = auto_psf(size)[0]
    corrector = Corrector(Corrections(), source, target, psf)
    frame = Frame(scan, Scale(-0.02, 1.0), 0.02, None, Displacement(), ())
    image, spread = (torch.from_numpy(rng.normal(0.5, 0.6, target.shape).astype(np.float32)) for _ in range(2))
    image[1, 2, 3] = torch.nan
    ours = image.clone(), spread.clone()
    assert finish._native(ours[0], corrector)
    finish.fade(*ours, frame, corrector, threads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finish, "_native", lambda *_: False)
        plain = finish.fade(image, spread, frame, corrector, threads)
    for found, expected in zip(ours, (plain, spread)):
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found.nan_to_num(), expected.nan_to_num())
    assert ours[0].isnan().sum() == 1 and (ours[1] == 0).any() and (ours[1] != 0).any()


@pytest.mark.skipif(native.reason() is not None, reason="the native core was not built")
def test_fading_says_what_does_not_fit():
    refused = pytest.raises(ValueError, match="without a matrix axis 1 must stay as it is: 5, 6")
    image, scan, head = np.zeros((4, 6, 6), np.float32), np.zeros((4, 5, 6), np.float32), np.ones((4, 5, 6), np.uint8)
    with refused:
        native.module().fade(
            image.ctypes.data, 0, scan.ctypes.data, head.ctypes.data, scan.shape, image.shape, *[[0] * 3] * 3,
            1e-9, 0.0, 1.0, 0.1, 1,
        )  # fmt: skip


def test_the_head_does_not_depend_on_what_the_background_was_filled_with(head):
    """1e6 is no neighbour of tissue: nothing at the head's rim is drawn towards it."""
    scan = head((40, 44, 12), noise=5.0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in scan.shape), indexing="ij"))
    inside = (grid[:2] ** 2).sum(0) < 0.4
    how = dict(input_voxel_size=(1.4, 1.4, 4.0), voxel_size=(0.7, 0.7, 1.0), threads=1)
    darkest = float(scan[inside].min())
    results = {v: mrisr.upscale(np.where(inside, scan, v).astype(np.float32), **how) for v in (darkest, 1e6)}
    outside = results[1e6] == 1e6
    assert 0.4 < outside.mean() < 0.9 and (results[darkest][outside] == np.float32(darkest)).all()
    assert np.array_equal(results[darkest][~outside], results[1e6][~outside])


def test_a_masked_background_stays_exactly_that_and_cropped_ends_go(head):
    scan = head((40, 44, 12), noise=5.0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in scan.shape), indexing="ij"))
    inside = (grid[:2] ** 2).sum(0) < 0.4
    stripped = np.where(inside, scan, 0).astype(np.float32)
    how = dict(input_voxel_size=(1.4, 1.4, 4.0), voxel_size=(0.7, 0.7, 1.0), threads=1)
    result = mrisr.upscale(stripped, **how)
    outside = ~ndimage.binary_dilation(inside.repeat(2, 0).repeat(2, 1).repeat(4, 2), iterations=2)
    assert outside.any() and not result[outside].any() and (result == 0).mean() > 0.4
    assert result.min() < 0 and mrisr.upscale(stripped, nonnegative=True, **how).min() >= 0
    by_mask = mrisr.upscale(scan, mask=inside, **how)
    assert not by_mask[outside].any()
    cropped, info = mrisr.upscale(stripped, ends="crop", return_info=True, **how)
    assert cropped.shape == info.target.shape and np.array_equal(cropped, result[..., 2:-2])
