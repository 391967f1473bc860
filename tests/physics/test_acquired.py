"""How finely a scan was acquired: zero-filling is found, and nothing else is taken for it."""

import numpy as np
import pytest
import torch

from mrisr.errors import UsageError
from mrisr.grid import Grid
from mrisr.io import nifti
from mrisr.physics.acquired import estimate_acquired, slice_profile
from mrisr.physics.degrade import ForwardModel, coarse_grid, degrade, kspace_mask
from mrisr.physics.psf import AxisPSF, auto_psf
from tests import real_data

SHAPE = (96, 100, 92)


@pytest.fixture(scope="module")
def fine():
    """Sharp tissue borders at random places: power that falls off as that of anatomy does."""
    rng = np.random.default_rng(0)
    field = torch.from_numpy(rng.normal(size=SHAPE)).float()
    frequency = torch.sqrt(sum(torch.fft.fftfreq(n)[i] ** 2 for n, i in zip(SHAPE, np.ix_(*map(range, SHAPE)))))
    smooth = torch.fft.ifftn(torch.fft.fftn(field) / (0.01 + frequency) ** 1.8).real
    line = [np.linspace(-1, 1, n)[i] for n, i in zip(SHAPE, np.ix_(*map(range, SHAPE)))]
    inside = torch.from_numpy(sum(v**2 for v in line) < 0.8)
    return torch.where(inside, torch.where(smooth > smooth.median(), 700.0, 400.0), torch.tensor(0.0))


def scanned(fine, kind="kspace", width=1.0, window="box", noise=0.02, stored=1.0, partial=None, factor=1.2):
    """A scan, rounded to whole numbers as scanners do."""
    grid = Grid(SHAPE, np.eye(4))
    coarse = coarse_grid(grid, factor)
    psf = (AxisPSF(kind, width * factor, window if kind == "kspace" else "box"),) * 3
    model = ForwardModel.between(SHAPE, grid.voxel_size, coarse.shape, coarse.voxel_size, psf)
    mask = None if partial is None else kspace_mask(coarse.shape, partial)
    generator = torch.Generator().manual_seed(1)
    scan = degrade(fine, model, noise_sigma=noise * 550, generator=generator, mask=mask, stored=stored)
    return scan.round().numpy()


@pytest.mark.parametrize("stored", [1.3, 1.5, (2.0, 1.0, 1.4)])
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_zero_filling_is_found_and_measured(fine, stored, noise):
    found = estimate_acquired(scanned(fine, noise=noise, stored=stored), (0.8, 0.8, 0.8))
    for axis, factor in zip(found, np.broadcast_to(stored, 3)):
        assert axis.certain == (factor > 1)
        assert axis.zero_fill == pytest.approx(factor, rel=0.025)
        assert axis.width == pytest.approx(0.8 * axis.zero_fill)


@pytest.mark.parametrize(
    "scan",
    [
        dict(),
        dict(noise=0.0),
        dict(noise=0.1),
        dict(window="hann"),
        dict(window="tukey"),
        dict(kind="gaussian", width=1.2),
        dict(kind="gaussian", width=2.0, noise=0.005),
        dict(kind="supergaussian", width=1.5),
        dict(partial=(1.0, 0.75, 1.0)),
    ],
    ids=str,
)
def test_nothing_else_is_taken_for_it(fine, scan):
    for axis in estimate_acquired(scanned(fine, **scan), (1, 1, 1)):
        assert (axis.certain, axis.cut, axis.width) == (False, 1.0, 1.0), axis


def test_short_axes_and_flat_volumes_are_left_alone():
    assert not any(axis.certain for axis in estimate_acquired(torch.rand(20, 24, 30), (1, 1, 4)))
    assert not any(axis.certain for axis in estimate_acquired(np.zeros((60, 60, 60)), (1, 1, 1)))
    assert not any(axis.certain for axis in estimate_acquired(np.random.default_rng(0).random((60, 60, 60)), (1, 1, 1)))
    with pytest.raises(UsageError, match="estimate_acquired: expected a scan"):
        estimate_acquired(np.zeros((60, 60)), (1, 1, 1))


@real_data.needs_scans
@pytest.mark.parametrize(
    ("name", "filled", "cut"),
    [
        ("flair_1mm_p26", (False, False, False), 1.0),
        ("t1w_1mm_c", (False, False, False), 1.0),
        ("clinical2d_p12_study2_flair", (True, False, False), pytest.approx(0.675, abs=0.075)),
        ("t1w_1p33mm_lh04", (True, False, False), pytest.approx(0.75, rel=0.02)),
    ],
)
def test_scans_of_people(name, filled, cut):
    """Their README: the clinical ones are zero-filled along the first axis, above 0.7 of the band or so; voxels of 1 x
    1.33 x 1.33 mm were 1.33 mm along all three."""
    path = real_data.SCANS / f"{name}.nii.gz"
    if not path.is_file():
        pytest.skip(f"the scan {path.name} is not beside this checkout")
    found = estimate_acquired(nifti.read(path).data, (1, 1, 1))
    assert tuple(axis.certain for axis in found) == filled
    assert found[0].cut == cut


@pytest.mark.parametrize("slices", [3, 12])
def test_an_implant_is_no_zero_filling(fine, slices):
    """Its outline has edges in the spectrum, stronger than all the tissue's."""
    scan = np.repeat(fine.numpy()[:48, :56, 40:41], slices, axis=2)
    scan += 20 * np.random.default_rng(0).standard_normal(scan.shape).astype(np.float32)
    scan[22:28, 24:32, slices // 2] = 32767
    assert not any(axis.certain for axis in estimate_acquired(scan, (1.4, 1.4, 5.0)))


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("kind", ["gaussian", "supergaussian", "kspace"])
@pytest.mark.parametrize("noise", [0.0, 0.04])
def test_the_profile_of_slices_is_told(fine, kind, axis, noise):
    factors = [1.0, 1.0, 1.0]
    factors[axis] = 3.0
    coarse = coarse_grid(Grid(SHAPE, np.eye(4)), factors)
    psf = [AxisPSF("kspace", 1.0)] * 3
    psf[axis] = AxisPSF(kind, 3.0)
    model = ForwardModel.between(SHAPE, (1, 1, 1), coarse.shape, coarse.voxel_size, tuple(psf))
    scan = degrade(fine, model, noise_sigma=noise * 550, generator=torch.Generator().manual_seed(2)).round().numpy()
    assert slice_profile(scan, coarse.voxel_size, axis) == kind


def test_no_profile_is_made_up():
    head = np.random.default_rng(0).random((60, 60, 19)).astype(np.float32)
    assert slice_profile(head, (1, 1, 4), 2) is None  # too few slices
    assert slice_profile(head, (1, 1, 1.2), 0) is None  # nothing finer beside them
    assert slice_profile(np.zeros((60, 60, 30), np.float32), (1, 1, 4), 2) is None
    with pytest.raises(UsageError, match="slice_tilt: expected a scan"):
        slice_profile(np.zeros((60, 60)), (1, 1, 4), 2)


@pytest.mark.parametrize(
    ("voxel", "measured", "kinds"),
    [
        ((0.75, 1.5, 1.5), (1.5, 1.5, 1.5), "kkk"),  # one axis filled: the others are no slices
        ((0.5, 0.5, 1.0), (1.0, 1.0, 1.0), "kkk"),  # both of a plane, as 3D scans are stored
        ((0.5, 0.5, 4.0), (1.0, 1.0, 4.0), "kkg"),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 2.0), "kkk"),  # a slab, filled across its slices
        ((0.5, 0.5, 1.0), (0.5, 0.5, 1.0), "kkg"),
    ],
)
def test_slices_are_told_by_what_was_measured(voxel, measured, kinds):
    for given in (dict(spectrum=measured), dict(meta={"AcquiredVoxelSize": list(measured)})):
        psf, _ = auto_psf(voxel, **given)
        assert "".join(p.kind[0] for p in psf) == kinds
        assert tuple(p.width for p in psf) == measured
    assert auto_psf((0.5, 0.5, 1.0), {"MRAcquisitionType": "2D"}, (1.0, 1.0, 1.0))[0][2].kind == "gaussian"


def test_what_the_header_says_counts_more():
    kinds = lambda meta, found: tuple(p.kind for p in auto_psf((1, 1, 4), meta, None, (None, None, found))[0])  # noqa: E731
    assert kinds({}, None) == kinds({}, "gaussian") == ("kspace", "kspace", "gaussian")
    assert kinds({}, "kspace") == ("kspace",) * 3
    assert kinds({"MRAcquisitionType": "2D"}, "kspace") == ("kspace", "kspace", "supergaussian")
    assert kinds({"MRAcquisitionType": "3D"}, "gaussian") == ("kspace",) * 3
    _, why = auto_psf((1, 1, 4), {"SliceThickness": 3.5}, None, (None, None, "supergaussian"))
    assert "the spectrum (axis 2: supergaussian)" in why and "SliceThickness" in why
