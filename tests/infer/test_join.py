"""Several scans of one head, one answer: what it is worth on a phantom, what it tells, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import mrisr
from mrisr.errors import InputError, MemoryBudgetError, MrisrWarning, UsageError
from mrisr.evaluate.baselines import cubic
from mrisr.infer.join import run as joining
from mrisr.infer.join.align import align
from mrisr.infer.join.together import Together
from mrisr.physics.psf import parse_psf
from mrisr.physics.stack import StackModel, solve
from mrisr.volume import Volume
from tests.stacks import FINE, phantom, stack

pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (extra join)")
INNER = (slice(6, -6),) * 3
HOW = dict(voxel_size=1.0, threads=1, engine="openvino", return_info=True)


def moves() -> list[np.ndarray]:
    found = []
    for angle, shift in ((0.0, (0, 0, 0)), (2.0, (2, -1, 1)), (-2.0, (-1, 2, -1.5))):
        c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        one = np.eye(4)
        one[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
        one[:3, 3] = np.array(shift) + FINE.center - one[:3, :3] @ FINE.center
        found.append(one)
    return found


def decibels(truth: np.ndarray, image: np.ndarray) -> float:
    error = (truth - image)[INNER].astype(np.float64)
    return float(20 * np.log10(np.percentile(truth, 99.9) / np.sqrt(np.mean(error**2))))


def best_cubic(truth, stacks) -> float:
    return max(decibels(truth, cubic(s.data, s.grid, FINE)) for s in stacks)


@pytest.fixture(scope="module")
def truth():
    return phantom()


@pytest.fixture(scope="module")
def still(truth):
    return [stack(truth, axis) for axis in (2, 0, 1)]


@pytest.fixture(scope="module")
def moved(truth):
    return [stack(truth, axis, m, noise=8.0) for axis, m in zip((2, 0, 1), moves())]


def plainly(stacks, registered: bool = True) -> np.ndarray:
    psfs = [parse_psf("auto", s.voxel_size)[0] for s in stacks]
    found, scale, _ = align(stacks, psfs, Together(registered=registered, force=not registered), 1)
    measured = [joining.measured_on(s, FINE) for s in found]
    x = solve(measured, joining.interpolated(found, FINE), smooth=joining.NEIGHBOURS**-2, iterations=12)
    return x.numpy() * scale.scale + scale.offset


def test_three_stacks_are_worth_more_than_the_best(truth, still):
    best = best_cubic(truth, still)
    assert decibels(truth, plainly(still)) > best + 6
    assert decibels(truth, plainly(still[:2])) > best + 2


def test_a_head_that_moved_is_found_and_nothing_is_won_where_it_is_not_looked_for(truth, moved):
    best = best_cubic(truth, [stack(truth, axis, noise=8.0) for axis in (2, 0, 1)])
    assert decibels(truth, plainly(moved)) > best + 3.5
    assert decibels(truth, plainly(moved, registered=False)) < best + 1


def test_the_answer_is_accounted_for(truth, moved, random_model):
    result, info = mrisr.upscale(moved, model=random_model("local"), reference=1, **HOW)
    assert result.data.shape == FINE.shape and np.allclose(result.affine, FINE.affine)
    assert [s.name for s in info.stacks] == ["axial", "sagittal", "coronal"]
    first = np.linalg.inv(moves()[1])
    at = np.c_[np.argwhere(truth > 300)[::97], np.ones(len(np.argwhere(truth > 300)[::97]))]
    for told, true in zip(info.stacks, moves()):
        off = (at @ (np.array(told.transform) - true @ first).T)[:, :3]
        assert np.linalg.norm(off, axis=1).mean() < 0.3  # mm; they were 1.5 to 4 apart
        assert told.chi2_after < 0.5 * told.chi2_before and told.correlation > 0.97
        assert told.registered == (told.name != "sagittal")
    assert sum(s.weight for s in info.stacks) == pytest.approx(1) and info.consistency[0].applied
    assert info.to_dict()["stacks"][2]["name"] == "coronal" and {"register", "join"} <= set(info.seconds)
    assert [r.acquired_mm for r in info.resolution] == pytest.approx([1, 1, 1])


def test_a_stack_s_point_spread_is_read_as_that_of_one_scan(still, random_model, monkeypatch):
    monkeypatch.setattr("mrisr.infer.facts.slice_profile", lambda scan, size, axis: "supergaussian")
    _, info = mrisr.upscale(still[:2], model=random_model("local"), register=False, **HOW)
    assert all("supergaussian" in s.point_spread for s in info.stacks)


def test_one_alone_is_as_ever(still, random_model):
    how = HOW | {"model": random_model("local"), "return_info": False}
    assert np.array_equal(mrisr.upscale(still[:1], **how).data, mrisr.upscale(still[0], **how).data)


@pytest.mark.parametrize(
    "third, least",
    [
        ({"voxels": (0.8, 0.8, 5.0)}, 1.5),
        ({"voxels": (0.8, 1.3, 3.0)}, 3.0),
        ({"part": (0.3, 0.8)}, 1.5),
        ({"degrees": 15.0}, 2.0),
        ({"degrees": 45.0}, 2.0),
        ({"noise": 80.0}, 0.0),
    ],
    ids=str,
)
def test_a_third_stack_of_another_kind_helps_all_the_same(truth, third, least):
    two = [stack(truth, axis, noise=8.0) for axis in (2, 0)]
    without = decibels(truth, plainly(two))
    assert decibels(truth, plainly([*two, stack(truth, 1, **{"noise": 8.0} | third)])) > without + least


def test_each_stack_s_brightness_is_found(truth, still):
    psfs = [parse_psf("auto", s.voxel_size)[0] for s in still]
    brighter = [v.replace(v.data * np.float32(g)) for v, g in zip(still, (1.0, 1.7, 0.2))]
    plain, others = (align(stacks, psfs, Together(registered=False), 1)[0] for stacks in (still, brighter))
    assert [1 / s.gain for s in others] == pytest.approx([1.0, 1.7, 0.2], rel=0.01)
    for one, other in zip(plain, others):
        assert (one.values - other.values).abs().max() < 1e-5 * one.values.max()
        assert other.noise == pytest.approx(one.noise, rel=1e-3)


def test_work_grows_by_as_much_with_every_stack(still, random_model, monkeypatch):
    passes, reads = [], []
    of_network, of_stack = joining.upscale_volume, StackModel.forward
    monkeypatch.setattr(joining, "upscale_volume", lambda *a: passes.append(1) or of_network(*a))
    monkeypatch.setattr(StackModel, "forward", lambda *a: reads.append(1) or of_stack(*a))
    model, counts = random_model("local"), []
    for stacks in (still[:2], still, [*still, still[0].replace(still[0].data)]):
        passes.clear(), reads.clear()
        mrisr.upscale(stacks, model=model, register=False, **HOW)
        counts.append((len(passes), len(reads) / len(stacks)))
    assert [n for n, _ in counts] == [16, 22, 22]  # as many more for each further orientation
    # Twice before and after for chi2, and a few for each of the rounds of conjugate gradients.
    most = 2 + joining.ITERATIONS + 1 + joining.ALTERNATIONS * (joining.AGAIN + 1)
    assert all(2 < per_stack <= most for _, per_stack in counts)


def test_tiles_exact_and_samples(still, random_model):
    how = HOW | {"model": random_model("local"), "engine": "torch", "register": False}
    how["voxel_size"] = 0.7  # the smallest tile is 48 voxels wide
    whole, info = mrisr.upscale(still[:2], **how)
    assert info.tiles.kind == "whole"
    exact, info = mrisr.upscale(still[:2], tile="exact", **how)
    assert info.tiles.kind == "exact" and np.abs(exact.data - whole.data).max() < 1e-4 * np.ptp(whole.data)
    tiles, info = mrisr.upscale(still[:2], tile=48, **how)
    assert info.tiles.kind == "tiles" and np.abs(tiles.data - whole.data).mean() < 0.01 * np.ptp(whole.data)
    _, info = mrisr.upscale(still[:2], samples=2, **how)
    assert info.std.data.shape == whole.data.shape and info.std.data.max() > 0 and info.samples == 2


def test_what_does_not_fit_is_refused_by_name(truth, still, random_model):
    how = HOW | {"model": random_model("local")}
    shift = still[1].affine.copy()
    shift[0, 3] += 30
    away = Volume(still[1].data, shift, name="away")
    with pytest.raises(InputError, match="^away: does not overlap axial by a third"):
        mrisr.upscale([still[0], away], **how)
    other = Volume(1000 - stack(phantom(7), 0).data, still[1].affine, name="other")
    with pytest.raises(InputError, match="^other: is unlike axial, correlation .* or force the join"):
        mrisr.upscale([still[0], other], **how)
    with pytest.warns(MrisrWarning, match="other: is unlike axial.*joined all the same"):
        _, info = mrisr.upscale([still[0], other], force=True, **how)
    assert any("joined all the same" in text for text in info.warnings)
    series = Volume(np.stack([still[1].data] * 2, axis=3), still[1].affine, name="series")
    with pytest.raises(InputError, match="^series: 2 frames; stacks to join are 3D"):
        mrisr.upscale([still[0], series], **how)


def test_one_frame_of_a_series_is_one_stack(still):
    how = dict(HOW, factor=1, voxel_size=None)
    framed = [Volume(s.data[..., None], s.affine, name=s.name) for s in still[:2]]
    expected, _ = mrisr.upscale(still[:2], **how)
    for given in (framed, [still[0], framed[1]], [framed[0], still[1]]):
        result, _ = mrisr.upscale(given, **how)
        assert np.array_equal(np.squeeze(result.data), expected.data)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"reference": 2}, "reference: expected a number from 0 to 1, found 2"),
        ({"consistency": "off"}, "joined by what they measured"),
        ({"denoise": 1.0}, "leave denoise at 0"),
        ({"ends": "crop"}, "leave ends at"),
        ({"bias": "auto"}, "bias: is of one scan.*mrisr correct"),
        ({"gradnl": "x.grad"}, "gradnl: is of one scan"),
        ({"affine": np.eye(4)}, "affine: is of one scan"),
        ({"register": 1}, "register: expected True or False"),
    ],
)
def test_what_means_nothing_for_several_is_refused_before_anything_is_read(options, text):
    with pytest.raises(UsageError, match=text):
        mrisr.upscale(["nowhere.nii.gz"] * 2, model="no such model", **HOW | options)


def test_lists_that_are_none(still, random_model):
    with pytest.raises(UsageError, match="the list is empty"):
        mrisr.upscale([], model=random_model("local"))
    with pytest.raises(UsageError, match="an array in a list has no place"):
        mrisr.upscale([still[0].data, still[1].data], model=random_model("local"))
    text = r"joining 2 stacks takes .*B, and the budget is \d+[MG]B; raise memory"
    with pytest.raises(MemoryBudgetError, match=text):
        mrisr.upscale(still[:2], model=random_model("local"), **HOW | {"memory": "1MB"})


def test_without_simpleitk_it_says_what_to_install(still, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(InputError, match=r"needs SimpleITK.*pip install '\.\[join\]'.*register=False"):
        plainly(still[:2])
