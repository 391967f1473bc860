"""The preview: right planes, right sides, right proportions, whole files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mrisr import preview
from mrisr.errors import GeometryError, OutputError

CUT = {"sagittal": 0, "coronal": 1, "axial": 2}


def _affine(order, signs, size=(1.0, 1.0, 1.0)):
    """Stored axis k runs along canonical axis order[k] in direction signs[k]."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for stored, (canonical, sign) in enumerate(zip(order, signs, strict=True)):
        affine[canonical, stored] = sign * size[stored]
    return affine


def _planes(data, affine, window=(0.0, 1.0)):
    view = preview._View(preview.Panel("x", data, affine), window)
    centre = view.centre_of_mass()
    samples = [np.arange(view.low[k] + 0.5, view.high[k]) for k in range(3)]
    return {name: view.plane(name, centre, samples) for name in CUT}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_right_is_on_the_left_and_front_and_head_are_where_the_letters_say(order, signs):
    """One bright voxel per direction, told apart by its brightness, in every storage order."""
    canonical = np.zeros((9, 9, 9), np.float32)  # left-right, posterior-anterior, inferior-superior
    canonical[4, 4, 4] = 1.0
    canonical[8, 4, 4], canonical[0, 4, 4] = (
        0.3,
        0.3,
    )  # right, left: equal, so that the middle stays the centre
    canonical[4, 8, 4], canonical[4, 4, 8] = 0.3, 0.3
    canonical[4, 0, 4], canonical[4, 4, 0] = 0.3, 0.3
    canonical[8, 4, 4] = 0.31  # right
    canonical[4, 8, 4] = 0.32  # anterior
    canonical[4, 4, 8] = 0.33  # superior
    stored = np.transpose(canonical, order)[tuple(slice(None, None, s) for s in signs)]
    planes = _planes(stored, _affine(order, signs))
    right, front, top = (round(255 * v) for v in (0.31, 0.32, 0.33))
    assert planes["axial"][4, 0] == right and planes["axial"][0, 4] == front
    assert planes["coronal"][4, 0] == right and planes["coronal"][0, 4] == top
    assert planes["sagittal"][4, 0] == front and planes["sagittal"][0, 4] == top


def test_thick_slices_keep_their_proportions():
    data = np.random.default_rng(0).random((20, 20, 5)).astype(np.float32)
    planes = _planes(data, _affine((0, 1, 2), (1, 1, 1), (1.0, 1.0, 4.0)))
    assert planes["coronal"].shape == (20, 20)
    assert (planes["coronal"][0:4] == planes["coronal"][0]).all()


def test_interpolation_is_exact_on_ramps_and_centre_aligned():
    source = _affine((0, 1, 2), (1, -1, 1), (2.0, 2.0, 3.0))
    x, y, z = np.meshgrid(*(np.arange(n) for n in (40, 42, 38)), indexing="ij")
    ratio = np.array([0.5, 0.5, 1 / 3])
    count = np.array([80, 84, 114])
    between = np.diag([*ratio, 1.0])
    between[:3, 3] = 0.5 * (np.array([39, 41, 37]) - (count - 1) * ratio)
    out = preview.interpolate((x + 2 * y - z).astype(np.float32), source, count, source @ between)
    expected = sum(
        w * (between[k, 3] + ratio[k] * np.arange(count[k])).reshape([-1 if a == k else 1 for a in range(3)])
        for k, w in enumerate((1, 2, -1))
    )
    inner = (slice(24, -24), slice(24, -24), slice(36, -36))  # edges are repeated, which is no ramp
    assert np.abs(out - expected)[inner].max() < 1e-4
    with pytest.raises(GeometryError, match="not parallel"):
        preview.interpolate(x, source, count, _affine((1, 0, 2), (1, 1, 1)))


def test_it_is_the_cubic_that_results_are_judged_by():
    from mrisr.evaluate.baselines import BASELINES
    from mrisr.grid import Grid, plan

    data = np.random.default_rng(1).random((12, 10, 8)).astype(np.float32)
    coarse = Grid(data.shape, np.diag([2.0, 2.0, 3.0, 1.0]))
    fine = plan(coarse, factor=(2, 1.7, 3))
    expected = BASELINES["cubic"](data, coarse, fine)
    assert np.abs(preview.interpolate(data, coarse.affine, fine.shape, fine.affine) - expected).max() < 1e-5


def test_difference_is_grey_where_nothing_changed_and_pictures_have_three_columns(tmp_path):
    data = np.random.default_rng(0).random((24, 30, 26)).astype(np.float32)
    affine = np.eye(4)
    sheet = preview.upscale_sheet(data, affine, data, affine)
    column = sheet.width // 3
    grey = np.asarray(sheet)[60:100, 2 * column + 60 : 2 * column + 100]
    assert set(np.unique(grey)) <= {127, 128}
    path = tmp_path / "p.png"
    preview.save(sheet, path)
    with Image.open(path) as read:
        assert read.format == "PNG" and read.size == sheet.size
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_a_zoomed_view_is_of_the_brain_and_not_of_the_neck(signs):
    """A ball (the brain) on a column (neck and shoulders) that holds three times as much."""
    x, y, z = np.mgrid[-80:80:40j, -100:100:50j, -260:100:90j]  # mm; voxels of 4 mm
    ball = x**2 + y**2 + (z - 25) ** 2 < 65**2
    neck = (np.abs(x) < 70) & (np.abs(y + 40) < 60) & (z < -60)
    head = np.where(ball, 1.0, np.where(neck, 1.5, 0.0)).astype(np.float32)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = -80, -100, -260
    for axis, sign in enumerate(signs):
        if sign < 0:
            head = np.flip(head, axis)
            affine[:3, 3] += affine[:3, axis] * (head.shape[axis] - 1)
            affine[:3, axis] *= -1
    view = preview._View(preview.Panel("x", head, affine), (0.0, 1.5))
    assert np.abs(np.array(view.brain_centre()) - (0, 0, 25)).max() < 8
    part = preview.brain(head, affine, 80.0)
    assert all(20 <= n <= 21 for n in part.shape) and part.max() == 1.0
    panel = preview.Panel("x", head, affine, (0.0, 1.0))
    sheet = preview.contact_sheet([panel], zoom=80.0, planes=("axial",))
    assert sheet.width == 20 * preview._MOST_TIMES and np.asarray(sheet)[60:100, 60:100].min() == 255


def test_the_first_frame_of_4d_is_shown():
    data = np.random.default_rng(0).random((16, 16, 16, 2)).astype(np.float32)
    both = preview.upscale_sheet(data, np.eye(4), data, np.eye(4))
    assert both.tobytes() == preview.upscale_sheet(data[..., 0], np.eye(4), data[..., 0], np.eye(4)).tobytes()


def test_unwritable_target_is_one_clear_error(tmp_path):
    with pytest.raises(OutputError, match="no directory"):
        preview.save(Image.new("L", (4, 4)), tmp_path / "nowhere" / "p.png")
