"""Tiling: every voxel once, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mrisr.errors import UsageError
from mrisr.infer import tiles
from mrisr.ops.tiles import gather
from mrisr.physics.foreground import bricks

sizes = st.integers(1, 150)


def covered(plan: tiles.TilePlan) -> torch.Tensor:
    """What comes back when every piece holds ones."""
    return tiles.blend(plan, lambda start: torch.ones(plan.tile), torch.zeros(plan.shape))


@settings(max_examples=60, deadline=None)
@given(shape=st.tuples(sizes, sizes, sizes), tile=st.integers(48, 130))
def test_constant_in_constant_out(shape, tile):
    result = covered(tiles.plan(shape, tile=tile))
    assert (result - 1).abs().max() <= 1e-6


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(sizes, sizes, sizes), most=st.integers(48**3, 130**3))
def test_budgeted_tiles_cover_and_keep_to_the_limit(shape, most):
    plan = tiles.plan(shape, max_voxels=most)
    assert np.prod(plan.tile) <= most
    assert (covered(plan) - 1).abs().max() <= 1e-6


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), size=st.integers(6, 30), align=st.sampled_from([8, 64]))
def test_pieces_start_on_the_grid_of_the_volume(n, size, align):
    size = max(size, tiles.smallest_tile(align) // 8)
    axis = tiles.cut_axis(8 * n, 8 * size, align=align)
    assert all(start % align == 0 for start in axis.starts)
    assert axis.starts[-1] + axis.size >= 8 * n
    total = np.zeros(axis.starts[-1] + axis.size)
    for start, weights in zip(axis.starts, axis.weights):
        assert weights.min() >= 0
        total[start : start + axis.size] += weights
    assert np.abs(total - 1).max() < 1e-6


def test_weights_are_zero_where_padding_was_seen():
    axis = tiles.cut_axis(200, 96)
    for k, weights in enumerate(axis.weights):
        if k > 0:
            assert not weights[: tiles.TRIM].any()
        if k < len(axis.starts) - 1:
            assert not weights[-tiles.TRIM :].any()


def test_blend_reproduces_any_volume():
    x = torch.randn(101, 67, 50)
    plan = tiles.plan(x.shape, tile=48)
    assert plan.kind == "tiles"
    back = tiles.blend(plan, lambda start: gather(x, start, plan.tile), torch.zeros_like(x))
    assert (back - x).abs().max() < 1e-5


def test_volume_smaller_than_a_tile_is_one_padded_piece():
    plan = tiles.plan((19, 7, 30), tile=96)
    assert (plan.kind, plan.tile, plan.count) == ("whole", (24, 8, 32), 1)
    assert (covered(plan) == 1).all()


def test_padding_repeats_the_edge_and_never_wraps():
    x = torch.arange(2 * 3 * 5, dtype=torch.float32).reshape(2, 3, 5)
    piece = gather(x, (0, 0, 0), (8, 8, 8))
    assert torch.equal(piece[:2, :3, :5], x)
    assert torch.equal(piece[5, 6, :5], x[-1, -1]) and (piece[0, 0, 5:] == x[0, 0, -1]).all()


def block(shape, low, high):
    x = torch.zeros(shape)
    x[tuple(slice(a, b) for a, b in zip(low, high))] = 0.8
    return x


def test_air_is_skipped_and_foreground_is_not():
    x = block((200, 160, 120), (60, 60, 40), (120, 100, 80))
    foreground = bricks(x)
    plan = tiles.plan(x.shape, foreground)
    assert plan.kind == "whole" and plan.active_fraction < 0.4
    result = covered(plan)
    inside = tuple(slice(a - 8, b + 8) for a, b in zip((60, 60, 40), (120, 100, 80)))
    assert (result[inside] == 1).all()
    assert result[0].abs().max() == 0 and result[-1].abs().max() == 0


def test_residual_fades_at_a_box_face_in_air():
    x = block((200, 200, 200), (80, 80, 80), (120, 120, 120))
    result = covered(tiles.plan(x.shape, bricks(x)))
    line = result[:, 100, 100]
    assert line[0] == 0 and line[100] == 1
    assert line.diff().abs().max() < 0.3  # a sin^2 over 8 voxels, no step
    assert line.diff()[:100].min() >= 0


def test_no_fade_where_the_head_is_cut_by_the_field_of_view():
    x = block((100, 100, 100), (30, 30, 0), (70, 70, 100))
    result = covered(tiles.plan(x.shape, bricks(x)))
    assert (result[50, 50] == 1).all()


def test_empty_tiles_are_skipped():
    x = block((240, 240, 240), (10, 10, 10), (40, 40, 40)) + block((240, 240, 240), (200, 200, 200), (230, 230, 230))
    plan = tiles.plan(x.shape, bricks(x), tile=64)
    assert 2 <= len(plan.active) < plan.count / 2
    result = covered(plan)
    assert (result[5:45, 5:45, 5:45] > 0.999999).all() and (result[195:235, 195:235, 195:235] > 0.999999).all()


def test_noise_specks_are_air_and_a_thin_bright_rim_is_not():
    x = 0.02 * torch.rand(96, 96, 96)
    x[50, 50, 50] = 1.0
    assert not bricks(x).any()
    x[20, 10:80, 10:80] = 0.9
    assert bricks(x)[2, 2:9, 2:9].all()


def test_nothing_but_air_is_taken_whole():
    plan = tiles.plan((40, 40, 40), np.zeros((5, 5, 5), bool))
    assert plan.active_fraction == 1.0


@pytest.mark.parametrize("tile", [0, 47, -96, 96.5, "96", True, (96, 96), (96, 96, 20)])
def test_impossible_tiles_are_refused(tile):
    with pytest.raises(UsageError, match="tile: expected"):
        tiles.plan((100, 100, 100), tile=tile)


def test_the_cheapest_tile_computes_less_than_a_cube_would():
    extent = (240, 280, 232)
    size = tiles.cheapest_tile(extent, 128**3)

    def cost(sizes):
        return np.prod([s * len(tiles.cut_axis(n, s).starts) for n, s in zip(extent, sizes)])

    assert np.prod(size) <= 128**3
    assert cost(size) < cost((128, 128, 128))


def test_networks_that_look_further_share_more_where_tiles_are_large_enough():
    assert [tiles.shared(size, tiles.FAR_OVERLAP) for size in (48, 56, 64, 80, 128)] == [24, 24, 32, 40, 40]
    assert [tiles.shared(size, tiles.OVERLAP) for size in (48, 80, 128)] == [24] * 3
    near, far = (tiles.plan((200, 90, 48), tile=80, overlap=o) for o in (tiles.OVERLAP, tiles.FAR_OVERLAP))
    assert far.axes[0].starts[1] == 40 and near.axes[0].starts[1] == 56 and near.axes[2].starts == far.axes[2].starts
    covered_by = sum(
        np.pad(w, (s, far.box[1][0] - s - len(w))) for s, w in zip(far.axes[0].starts, far.axes[0].weights)
    )
    np.testing.assert_allclose(covered_by, 1, atol=1e-6)
