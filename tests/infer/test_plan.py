"""What is decided before a voxel is touched, and what each frame adds to it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

import mrisr
from mrisr import grid as grids
from mrisr.errors import MemoryBudgetError, UsageError
from mrisr.infer import engines, memory
from mrisr.infer.corrections import Corrections
from mrisr.infer.facts import Geometry, Machine, Options
from mrisr.infer.memory import COSTS, MB
from mrisr.infer.plan import choose_engine, plan_frame, plan_scan
from mrisr.volume import Volume

SHAPE = (64, 64, 64)
FREE = Machine(10**10, 500 * MB)


def planned(model, head, budget=FREE.budget, engine=None, **options):
    volume = Volume(head(SHAPE), np.eye(4))
    given = Options(threads=1, **options)
    choice = choose_engine(given, model)
    engine = engine or engines.make(choice, model.denoiser.net)
    geometry = Geometry.of(volume, grids.plan(volume.grid, factor=2), given.psf)
    return plan_scan(geometry, Corrections(), model, given, choice, engine, replace(FREE, budget=budget))


def foreground(bricks=16):
    """Of 16^3 bricks, those of a cube in the corner."""
    found = np.zeros((16, 16, 16), bool)
    found[:bricks, :bricks, :bricks] = True
    return found


class Plain(engines.Engine):
    """States what has no default, and nothing else."""

    name, cost, device, threads, precision, precision_why = "plain", COSTS["openvino"], torch.device("cpu"), 1, "", ""


def test_a_plan_is_a_value(random_model, head):
    plan = planned(random_model("local"), head)
    assert plan == planned(random_model("local"), head) and plan != planned(random_model("local"), head, seed=1)
    assert (plan.route.engine.name, plan.layered, plan.output.shape) == ("openvino", None, (128,) * 3)
    short = planned(random_model("local"), head, budget=plan.route.demand.peak(128**3) - MB)
    assert short.layered.engine.name == "torch" and plan.on_arrays and not short.on_arrays
    with pytest.raises(FrozenInstanceError):
        plan.layered = None
    assert "tensor(" not in repr(plan) and "array(" not in repr(replace(plan, geometry=None, output=None))


def test_an_engine_need_state_only_what_has_no_default(random_model, head):
    plain = Plain()
    assert (plain.tile, plain.layered, plain.capturable) == (None, False, False)
    assert plain.map_bytes((8, 8, 8)) is None and plain.spill_bytes((8, 8, 8)) == 0 and plain.release() is None
    plan = planned(random_model("local"), head, engine=plain)
    assert plan_frame(plan, [foreground()]).passes[0].tiles.kind == "whole"


def test_a_stated_tile_is_looked_at_before_the_scan_is(random_model, head):
    with pytest.raises(UsageError, match="tile: expected None"):
        planned(random_model("local"), head, tile=8)


def test_a_head_too_large_goes_layer_by_layer_and_so_does_the_rest(random_model, head):
    plan = planned(random_model("local"), head)
    whole = plan_frame(plan, [foreground()])
    layered = planned(random_model("local"), head, budget=whole.memory - MB).layered.demand.peak(128**3)
    assert whole.route is plan.route and plan.layered is None and layered < whole.memory
    tight = planned(random_model("local"), head, budget=layered + MB)
    first, second = plan_frame(tight, [foreground(2)]), plan_frame(tight, [foreground()])
    assert (first.route, first.passes[0].tiles.kind) == (tight.route, "whole")
    assert (second.route, second.passes[0].tiles.kind, second.passes[0].spill) == (tight.layered, "exact", False)
    after = plan_frame(tight, [foreground(2)], second.route)
    assert (after.route, after.passes[0].tiles.kind) == (tight.layered, "exact")
    smaller = planned(random_model("local"), head, budget=layered - 20 * MB)
    assert plan_frame(smaller, [foreground()]).passes[0].tiles.kind == "tiles"


def test_every_mirroring_has_pieces_of_its_own(random_model, head):
    plan = planned(random_model("local"), head, ensemble=2)
    seen = [foreground(3), foreground(3)[::-1, ::-1, ::-1]]
    frame = plan_frame(plan, seen)
    assert [p.mirrored for p in frame.passes] == [(), (0, 1, 2)]
    assert frame.passes[0].tiles.box != frame.passes[1].tiles.box and frame.memory == frame.passes[0].memory


def test_what_spills_and_what_cannot_fit_is_known_from_the_plan(random_model, head):
    plan = planned(random_model("local"), head, tile="exact")
    assert plan.route.spilling.peak(128**3) < plan.route.demand.peak(128**3) and plan.layered is None
    tight = planned(random_model("local"), head, tile="exact", budget=plan.route.spilling.peak(128**3) + MB)
    assert plan_frame(tight, [foreground()]).passes[0].spill
    with pytest.raises(MemoryBudgetError, match="whole grid"):
        planned(random_model("local"), head, tile="exact", budget=510 * MB)


def test_the_account_of_a_series_is_of_all_its_frames(random_model, head, monkeypatch):
    monkeypatch.setattr(memory, "resident", lambda: 500 * MB)
    large, small = head((48, 40, 36), air=0.1), np.pad(head((24, 20, 18), seed=1), ((12, 12), (10, 10), (9, 9)))
    how = dict(model=random_model("local"), input_voxel_size=1.0, factor=2, tile=56, threads=1, return_info=True)
    _, info = mrisr.upscale(np.stack([large, small], -1), **how)
    alone = [mrisr.upscale(frame, **how)[1] for frame in (large, small)]
    assert info.frame_tiles == tuple(a.tiles for a in alone) and not alone[0].frame_tiles
    assert info.tiles.count == alone[0].tiles.count > alone[1].tiles.count
    assert info.tiles.seam_error == max(a.tiles.seam_error or 0 for a in alone)
    assert info.memory_expected >= max(a.memory_expected for a in alone)
    _, info = mrisr.upscale(np.stack([large, large], -1), **how)
    assert info.frame_tiles == () and info.tiles == alone[0].tiles
