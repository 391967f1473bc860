"""Everything that is decided before a stage runs, as one frozen value.

`plan_scan` makes a `Plan` of what is known beforehand: grids, point spread, engine, tile rule, memory, consistency. How
much of a frame is head its voxels alone say, so the plan holds the rule and its bounds (a `Route` and its demand), and
`plan_frame` makes a `FramePlan` of the plan and the frame's foreground. Both are functions of their arguments alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mrisr import grid as grids
from mrisr.errors import BackendError
from mrisr.grid import SAME_SPACING, Grid
from mrisr.infer import memory, tiles
from mrisr.infer.corrections import Corrections
from mrisr.infer.engines import Choice, Engine, choose
from mrisr.infer.engines.engine import CAPTURING_CALL
from mrisr.infer.facts import MIRRORINGS, Geometry, Machine, ModelFacts, Options
from mrisr.infer.fade import inner_range, slice_axes
from mrisr.infer.known import KnownModel
from mrisr.ops import arrays
from mrisr.physics.degrade import SLICE_KINDS


@dataclass(frozen=True)
class Route:
    """One way through the network.

    Attributes:
        engine: which one, and why.
        tile: the rule: None (whole where the budget allows, else tiles), a size in stored order, or "exact".
        demand: memory.
        spilling: with the largest maps in a file; None where this route never does that.
    """

    engine: Choice
    tile: int | tuple[int, int, int] | str | None
    demand: memory.Demand
    spilling: memory.Demand | None


@dataclass(frozen=True)
class Consistency:
    """Whether the result is corrected by the scan ("correct"), compared with it ("measure") or neither ("none")."""

    action: str
    why: str


@dataclass(frozen=True)
class Plan:
    """A job. No voxels, no tensors, no engine: two plans can be compared and printed.

    Attributes:
        geometry: of the scan.
        extent: voxels of the target that stay, where slices at its ends are cut off.
        output: the grid of the result.
        machine: memory.
        route: the way every frame begins with.
        layered: that of a frame of which `route` could do tiles only, and from then on; None: no frame can need one.
        on_arrays: the stages work on NumPy arrays, and need no PyTorch.
        displaced: the scan has no band that is exact along the axes, because its geometry is corrected.
        warnings: for the user.
    """

    geometry: Geometry
    model: ModelFacts
    options: Options
    extent: tuple[slice, slice, slice]
    output: Grid
    machine: Machine
    route: Route
    layered: Route | None
    on_arrays: bool
    displaced: bool
    consistency: Consistency
    warnings: tuple[str, ...]

    @property
    def mirrorings(self) -> tuple[tuple[int, ...], ...]:
        return MIRRORINGS[self.options.ensemble]

    @property
    def filters(self) -> bool:
        return self.options.filters(self.displaced)

    @property
    def denoise(self) -> float:
        """How much of the noise the network is to take out: all, for a pilot, where it has learnt that; else none."""
        return float(self.model.denoises) if self.filters else self.options.denoise


@dataclass(frozen=True)
class Pass:
    """The network over one frame once, mirrored along some stored axes or none.

    Attributes:
        mirrored: the axes.
        tiles: its pieces, on the mirrored grid.
        spill: the largest maps lie in a file.
        memory: bytes that the job takes at most.
    """

    mirrored: tuple[int, ...]
    tiles: tiles.TilePlan
    spill: bool
    memory: int


@dataclass(frozen=True)
class FramePlan:
    """What runs for one frame: by which route, and every pass of it; the plain one first."""

    route: Route
    passes: tuple[Pass, ...]

    @property
    def memory(self) -> int:
        """Bytes that it takes at most."""
        return max(p.memory for p in self.passes)


def choose_engine(options: Options, model: Any) -> Choice:
    """The engine and why it; exact tiling goes layer by layer, which only one engine can."""
    net = model if isinstance(model, KnownModel) else model.denoiser.net
    if options.tile != tiles.EXACT:
        return choose(options.engine, options.device, net, options.threads, model.plan, options.precision)
    if options.engine not in ("auto", "torch"):
        raise BackendError(
            f"tile: 'exact' runs the network layer by layer, which engine {options.engine!r} cannot; use "
            "engine='torch' or 'auto', or another tile"
        )
    why = "asked for" if options.engine == "torch" else "auto: tile='exact' runs layer by layer"
    return _layered_choice(options, net, why)


def _layered_choice(options: Options, net, why: str) -> Choice:
    return replace(choose("torch", options.device, net, options.threads, precision=options.precision), why=why)


def source_of(choice: Choice, model: Any) -> Any:
    """What an engine is made of: the network, or a model of which it needs no more than the graph."""
    if not isinstance(model, KnownModel):
        return model.denoiser.net
    return model if choice.name == "openvino" else model.network()


def is_plain(choice: Choice, corrections: Corrections, options: Options) -> bool:
    """Whether the job may run on NumPy arrays, as far as nothing but what was asked for says it: the network in
    OpenVINO, mode "mean", a scan without corrections, no tiles, and the native core for the rest."""
    simple = options.mode == "mean" and options.tile is None and options.consistency != "on"
    corrected = corrections.displaces or corrections.shades
    return choice.name == "openvino" and simple and not corrected and arrays.missing() is None


def plan_scan(
    geometry: Geometry,
    corrections: Corrections,
    model: Any,
    options: Options,
    choice: Choice,
    engine: Engine,
    free: Machine,
) -> Plan:
    """The plan of a job.

    Args:
        corrections: what is known of the scan's distortions; its fields are not looked at.
        model: a `mrisr.weights.registry.LoadedModel`, or a `KnownModel`.
        choice: from `choose_engine`.
        engine: what became of it; asked for its tile and its memory.

    Raises:
        MemoryBudgetError: not even the smallest tile fits, or with exact tiling, not the volumes.
        UsageError: the tile is none; samples are wanted, or the network alone is to remove noise, and it has not learnt
            that.
    """
    facts = ModelFacts.of(model)
    facts.check_learnt(options, corrections.displaces)
    shape, needs = geometry.target.shape, _needs(geometry, corrections, facts, options, free)
    tile = options.tile
    if tile is None and engine.tile is not None:
        tile = tuple(engine.tile[geometry.order.index(axis)] for axis in range(3))
    if tile is not None and tile != tiles.EXACT:
        tiles.check_tile(tile, facts.align)
    needs["captured"] = engine.capturable and _runs(geometry, options) >= CAPTURING_CALL
    spilling = None
    if tile == tiles.EXACT or facts.norm == "group":  # what does not fit into memory goes into a file
        spilling = memory.demand(engine.cost, maps=engine.map_bytes(shape, spill=True), **needs)
    route = Route(choice, tile, memory.demand(engine.cost, maps=engine.map_bytes(shape), **needs), spilling)
    _refuse_what_cannot_fit(geometry, facts, free, route)
    layered, whole = None, _whole_fits(shape, free, route)
    if options.engine == "auto" and tile is None and not engine.layered and not whole:
        layered = _layered(model, options, shape, needs)
    consistency = _consistency(geometry, corrections, options.consistency)
    extent = _extent(geometry, options.ends)
    return Plan(
        geometry=geometry,
        model=facts,
        options=options,
        extent=extent,
        output=_cut(geometry.target, extent),
        machine=free,
        route=route,
        layered=layered,
        on_arrays=engine.takes_arrays
        and whole
        and is_plain(choice, corrections, options)
        and consistency.action != "correct",
        displaced=corrections.displaces,
        consistency=consistency,
        warnings=tuple(dict.fromkeys(_range_warnings(geometry, facts))),
    )


def _whole_fits(shape: tiles.Triple, free: Machine, route: Route) -> bool:
    """Whether a frame that is all head runs in one piece."""
    whole = int(np.prod([tiles.round_up(n) for n in shape]))
    return route.tile is None and whole <= route.demand.tile_voxels(free.budget)


def _layered(model: Any, options: Options, shape: tiles.Triple, needs: dict[str, Any]) -> Route | None:
    """The way layer by layer, of a network that can go it."""
    from mrisr.infer.engines.program import map_bytes
    from mrisr.nn.unet import UNet

    net = model.network() if isinstance(model, KnownModel) else model.denoiser.net
    if not isinstance(net, UNet):
        return None
    why = "auto: layer by layer, because the budget holds no piece of the whole head"
    there = _layered_choice(options, net, why)
    both = [map_bytes(net, shape, there.device.type, spill) for spill in (False, True)]
    return Route(there, tiles.EXACT, *(memory.demand(memory.COSTS["torch"], maps=m, **needs) for m in both))


def _needs(
    geometry: Geometry, corrections: Corrections, facts: ModelFacts, options: Options, free: Machine
) -> dict[str, Any]:
    """What `memory.demand` asks of a job, whatever the route."""
    return dict(
        resident_bytes=free.resident_bytes,
        source_voxels=int(np.prod(geometry.source.shape)),
        target_voxels=int(np.prod(geometry.target.shape)),
        width=facts.width,
        weight_bytes=facts.weight_bytes,
        frames=geometry.frames if options.holds_frames else 1,
        samples=options.samples,
        steps=options.steps,
        ensemble=options.ensemble,
        state=options.mode != "mean",
        reordered=geometry.order != (0, 1, 2),
        corrected=_wants_correction(geometry, options.consistency),
        start_copies=corrections.start_copies(geometry.target.shape),
        source_copies=corrections.source_copies,
        points=corrections.points_bytes,
    )


def _runs(geometry: Geometry, options: Options) -> int:
    """How often the loop runs."""
    return geometry.frames * options.samples * options.ensemble


def _refuse_what_cannot_fit(geometry: Geometry, facts: ModelFacts, free: Machine, route: Route) -> None:
    """MemoryBudgetError here, before any volume exists, where not even the smallest piece would fit."""
    shape = geometry.target.shape
    if route.spilling is not None:
        _check_spilling(shape, facts, free, route.spilling)
        return
    smallest = int(np.prod([min(tiles.smallest_tile(facts.align), tiles.round_up(n)) for n in shape]))
    if route.demand.tile_voxels(free.budget) < smallest:
        memory.refuse(free.budget, route.demand, smallest, "smallest tile")


def _check_spilling(shape: tiles.Triple, facts: ModelFacts, free: Machine, need: memory.Demand) -> None:
    """How much of the grid is head is known later; where the volumes alone are too much, all of it surely fits."""
    if need.tile_voxels(free.budget) < 1:
        whole = int(np.prod([tiles.round_up(n) for n in shape]))
        memory.refuse(free.budget, need, whole, "whole grid", _way_out(facts))


def _way_out(facts: ModelFacts) -> str:
    """What else to do where exact tiling does not fit."""
    return "" if facts.norm == "group" else ", or leave tile at its default (blended tiles need less)"


def _wants_correction(geometry: Geometry, choice: str) -> bool:
    return choice == "on" or (choice == "auto" and geometry.psf_certain)


def _consistency(geometry: Geometry, corrections: Corrections, choice: str) -> Consistency:
    if corrections.displaces:
        why = "off: the scan is displaced by its gradients, so that no model along the axes gives it back"
        return Consistency("none", "switched off" if choice == "off" else why)
    if _wants_correction(geometry, choice):
        certain = f"the point spread is certain: {geometry.psf_from}"
        return Consistency("correct", "asked for" if choice == "on" else certain)
    if choice == "off":
        return Consistency("measure", "switched off")
    reason = "stated to be unknown" if "stated" in geometry.psf_from else f"only {geometry.psf_from}"
    return Consistency("measure", f"off, because the point spread is {reason}; state psf= to correct the result")


def _range_warnings(geometry: Geometry, facts: ModelFacts) -> Iterator[str]:
    source, target = geometry.source, geometry.target
    ratio = grids.ratios(source, target)  # new / old spacing
    finer = [a for a in range(3) if ratio[a] > 1 + SAME_SPACING]
    if finer:
        sizes = " x ".join(f"{v:.3g}" for v in source.voxel_size)
        yield (
            f"the input ({sizes} mm) is already finer than the target along axis "
            f"{', '.join(map(str, finer))}: detail is removed there; ask for a smaller voxel_size to keep it"
        )
    for axis, (psf, size) in enumerate(zip(geometry.psf, target.voxel_size)):
        kind = "slice" if psf.kind in SLICE_KINDS else "isotropic"
        low, high = facts.trained_range.get(kind, (0.0, np.inf))
        step = psf.width / size
        if step > high * (1 + SAME_SPACING):
            yield (
                f"axis {axis}: {psf.width:.3g} mm acquired to {size:.3g} mm is {step:.2f}x finer, and "
                f"{facts.name} was trained on {low:g}x to {high:g}x ({kind}): do not rely on it; ask "
                "for a coarser voxel_size"
            )


def _extent(geometry: Geometry, ends: str) -> tuple[slice, slice, slice]:
    """Voxels of the target that stay; with ends="crop" those up to the centres of the end slices."""
    source, target = geometry.source, geometry.target
    ratio = grids.ratios(source, target)
    cut = (sliced and ends == "crop" for sliced in slice_axes(geometry.psf))
    return tuple(
        inner_range(n, m, r) if crops else slice(0, m) for n, m, r, crops in zip(source.shape, target.shape, ratio, cut)
    )


def _cut(grid: Grid, extent: tuple[slice, slice, slice]) -> Grid:
    if all(k == slice(0, n) for k, n in zip(extent, grid.shape)):
        return grid
    start = np.eye(4)
    start[:3, 3] = [k.start for k in extent]
    return Grid(tuple(k.stop - k.start for k in extent), grid.affine @ start)


def plan_frame(plan: Plan, foregrounds: Sequence[np.ndarray], route: Route | None = None) -> FramePlan:
    """What runs for a frame; in one piece where its head fits, else as the route says.

    Args:
        foregrounds: of the start, mirrored as each of `plan.mirrorings` says: `mrisr.physics.foreground.bricks`.
        route: of the frame before; None: the first frame. A scan that has gone over to layer by layer stays with it,
            so that two engines never hold memory at once.

    Raises:
        MemoryBudgetError: the head, or a tile of the stated size, does not fit.
        BackendError: the network normalises over the whole head and tiles are asked for.
    """
    route = plan.route if route is None else route
    pieces = [_pieces(plan, route, foreground) for foreground in foregrounds]
    if plan.layered is not None and route is not plan.layered and any(p.kind == "tiles" for p in pieces):
        # It gives what one piece gives, and sooner than blended tiles (benchmarks/results/exact_tiling.json).
        whole = [_pieces(plan, plan.layered, foreground) for foreground in foregrounds]
        most = plan.layered.demand.tile_voxels(plan.machine.budget)
        if all(p.tile_voxels <= most for p in whole):
            route, pieces = plan.layered, whole
    return FramePlan(route, tuple(_pass(plan, route, axes, p) for axes, p in zip(plan.mirrorings, pieces, strict=True)))


def _pieces(plan: Plan, route: Route, foreground: np.ndarray) -> tiles.TilePlan:
    shape, cut = plan.geometry.target.shape, dict(align=plan.model.align, overlap=plan.model.overlap)
    most = route.demand.tile_voxels(plan.machine.budget)
    pieces = tiles.plan(shape, foreground, tile=route.tile, max_voxels=most, **cut)
    if pieces.kind != "tiles" or plan.model.norm != "group":
        return pieces
    if route.tile is not None:
        raise BackendError(
            f"tile: {plan.model.name} normalises over the whole head, which tiles would each do for themselves; "
            "use tile='exact' or None"
        )
    return tiles.plan(shape, foreground, tile=tiles.EXACT, **cut)


def _pass(plan: Plan, route: Route, mirrored: tuple[int, ...], pieces: tiles.TilePlan) -> Pass:
    free, need, exact = plan.machine, route.demand, pieces.kind == tiles.EXACT
    spill = exact and pieces.tile_voxels > need.tile_voxels(free.budget)
    if spill:
        need = route.spilling
        _check_spilling(plan.geometry.target.shape, plan.model, free, need)
    if pieces.tile_voxels > need.tile_voxels(free.budget):
        what, way_out = ("head", _way_out(plan.model)) if exact else ("tile", "")
        memory.refuse(free.budget, need, pieces.tile_voxels, what, way_out)
    return Pass(mirrored, pieces, spill, need.peak(pieces.tile_voxels))
