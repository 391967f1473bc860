"""Averaging over mirrorings: what is mirrored going in is mirrored coming out, and nothing else changes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import mrisr
from mrisr.errors import UsageError
from mrisr.infer.facts import MIRRORINGS

SHAPE = (26, 30, 22)  # at 1.5x: 39 x 45 x 33 voxels, of which no axis is a whole number of bricks


def run(scan, model, **options):
    given = {"factor": 1.5, "input_voxel_size": 1.0, "threads": 1, "engine": "torch", "return_info": True, **options}
    return mrisr.upscale(scan, model=model, **given)


@pytest.fixture(scope="module")
def scan(head):
    # Off the middle, so that the box around the head is another one for the mirrored scan.
    return np.ascontiguousarray(np.pad(head((20, 24, 18)), ((6, 0), (0, 6), (4, 0)), constant_values=1.0))


def off(a, b):
    return np.abs(a - b).max() / (np.percentile(a, 99.9) - np.percentile(a, 0.1))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_mirroring_the_scan_mirrors_the_result(random_model, scan, count):
    model = random_model("local")
    result, info = run(scan, model, ensemble=count)
    plain, _ = run(scan, model)
    assert info.ensemble == count and info.mode == "mean" and info.to_dict()["ensemble"] == count
    assert off(result, plain) > 1e-3  # random weights prefer a side
    for axes in MIRRORINGS[count][1:]:
        mirrored, _ = run(np.ascontiguousarray(np.flip(scan, axes)), model, ensemble=count)
        assert off(np.flip(mirrored, axes), result) < 2e-6, axes


@pytest.mark.parametrize("count", MIRRORINGS)
def test_mirrorings_are_a_group_that_no_order_of_axes_changes(count):
    members = {frozenset(axes) for axes in MIRRORINGS[count]}
    assert len(members) == count == len(MIRRORINGS[count]) and frozenset() in members
    assert {a ^ b for a in members for b in members} == members
    for order in itertools.permutations(range(3)):
        assert {frozenset(order[axis] for axis in axes) for axes in members} == members


def test_it_is_repeatable_and_tiles_and_exact_know_it(random_model, scan):
    model = random_model("local")
    first, info = run(scan, model, ensemble=2)
    again, _ = run(scan, model, ensemble=2, seed=5)
    exact, exact_info = run(scan, model, ensemble=2, tile="exact")
    assert np.array_equal(first, again) and off(exact, first) < 1e-5
    assert (info.tiles.kind, exact_info.tiles.kind) == ("whole", "exact")
    large = np.kron(scan, np.ones((2, 2, 2), np.float32))
    tiled, tiled_info = run(large, model, ensemble=2, tile=64)
    assert tiled_info.tiles.kind == "tiles" and tiled_info.tiles.seam_error is not None
    assert tiled.shape == (78, 90, 66)


def test_progress_runs_through_all_of_them(random_model, scan):
    seen = []
    run(scan, random_model("local"), ensemble=4, progress=lambda stage, f: seen.append(f) if stage == "network" else 0)
    assert seen == sorted(seen) and seen[-1] == 1.0
    assert sum(0.2 < f < 0.9 for f in seen) >= 3


@pytest.mark.parametrize("count", [0, 3, 16, True, "8", None])
def test_other_counts_are_refused(random_model, scan, count):
    with pytest.raises(UsageError, match="ensemble: expected one of 1, 2, 4, 8"):
        run(scan, random_model("local"), ensemble=count)


@pytest.mark.parametrize("options", [{"mode": "sample"}, {"steps": 2}, {"samples": 3}])
def test_samples_are_not_mirrored(random_model, scan, options):
    with pytest.raises(UsageError, match='ensemble: 2 mirrorings are averaged in mode "mean" only'):
        run(scan, random_model("local"), ensemble=2, **options)
