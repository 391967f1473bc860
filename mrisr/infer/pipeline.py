"""One scan on one target grid: scale, start, network, consistency, unscale, and the account of it all."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from mrisr import environment
from mrisr import grid as grids
from mrisr.errors import BackendError, MrisrWarning
from mrisr.grid import SAME_SPACING, Grid
from mrisr.infer import engines, memory, mirrors, tiles
from mrisr.infer.corrections import Corrections, Corrector, check_consistency, learnt
from mrisr.infer.fade import Fade, inner_range, slice_axes
from mrisr.infer.graph import CAPTURING_CALL, Graphs, graphs_for
from mrisr.infer.info import (
    ConsistencyInfo,
    EngineInfo,
    GridInfo,
    Info,
    TileInfo,
    resolution,
)
from mrisr.infer.progress import Report
from mrisr.nn.condition import MEAN, SAMPLE, Condition, canonical_order
from mrisr.physics.consistency import correct, residual_chi2
from mrisr.physics.degrade import SLICE_KINDS, ForwardModel
from mrisr.physics.foreground import Background, masked_background, tissue
from mrisr.physics.intensity import OUTLIER, estimate_noise, robust_range, robust_scale
from mrisr.physics.psf import PSF, parse_psf
from mrisr.volume import Volume

WINDOW_ALIGN = 64  # attention windows are 8^3 at 1/8 resolution, counted from the volume's origin


@dataclass(frozen=True)
class Options:
    """The arguments of `mrisr.upscale` that say how; already checked by `mrisr.api`."""

    device: str = "auto"
    engine: str = "auto"
    threads: int | None = None
    precision: str = "auto"
    mode: str = "mean"
    steps: int = 1
    samples: int = 1
    seed: int = 0
    ensemble: int = 1
    psf: Any = "auto"
    consistency: str = "auto"
    memory: str | int | None = None
    tile: int | tuple[int, int, int] | str | None = None
    corrections: Corrections = Corrections()
    ends: str = "fade"
    mask: np.ndarray | None = None  # bool [X, Y, Z] on the scan's grid: the head
    nonnegative: bool = False


@dataclass
class Job:
    """What all frames of a scan share."""

    source: Grid
    target: Grid
    model: Any  # a mrisr.weights.registry.LoadedModel
    options: Options
    engine: engines.Engine
    why: str
    psf: PSF
    psf_from: str
    psf_certain: bool
    budget: int
    held: int
    frames: int
    report: Report
    order: tuple[int, int, int] = (0, 1, 2)  # of the axes, as the network sees them
    corrector: Corrector | None = None
    fade: Fade | None = None
    forward: ForwardModel | None = None
    need: memory.Demand | None = None
    expected: int = 0
    plan: tiles.TilePlan | None = None
    graphs: Graphs | None = None  # of a CUDA device
    spill: bool = False
    seam: float | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def net(self) -> torch.nn.Module:
        return self.model.denoiser.net

    def told(self, cond: Condition, mirrored: tuple[int, ...] = ()) -> Condition:
        """`cond` with what the network is told of corrections to the target, mirrored along stored axes or not."""
        return self.corrector.told_to(cond, self.order, mirrored)

    @property
    def align(self) -> int:
        """What starts of tiles are multiples of."""
        return WINDOW_ALIGN if self.net.config.attention else tiles.BRICK


def upscale_volume(volume: Volume, target: Grid, model: Any, options: Options, report: Report) -> tuple[Volume, Info]:
    """Bring `volume` onto `target`: (result in the input's intensity units, the account).

    Args:
        volume: 3D, or 4D (each frame on its own).
        target: from `mrisr.grid.plan(volume.grid, ...)`.
        model: `mrisr.load_model(...)`: a LoadedModel.

    Raises:
        MemoryBudgetError, BackendError, UsageError.
    """
    with report.stage("prepare"):
        job = _prepare(volume, target, model, options, report)
    if options.corrections.estimates:
        with report.stage("bias"):
            job.corrector.estimate_field(volume.data, options.threads)
    shape = target.shape + volume.data.shape[3:]
    out = np.empty(shape, np.float32)
    std = np.empty(shape, np.float32) if options.samples > 1 else None
    notes, scales = [], []
    try:
        for t, frame in enumerate(volume.frames()):
            where = (..., t) if volume.data.ndim == 4 else ...
            with torch.inference_mode():
                note, scale = _frame(job, frame, out[where], None if std is None else std[where])
            notes.append(note)
            scales.append(scale)
    finally:
        if job.graphs is not None:
            job.graphs.clear()
        job.engine.release()
    out, std, job.target = _kept_slices(job, out, std)
    info = _info(job, notes, scales)
    if std is not None:
        info.std = volume.replace(std, job.target.affine)
    return volume.replace(out, job.target.affine), info


def _kept_slices(job: Job, out: np.ndarray, std: np.ndarray | None):
    """Result, spread and target grid, with ends="crop" without what lies beyond the centre of an end slice."""
    target = job.target
    if job.options.ends != "crop":
        return out, std, target
    ratio, start = grids.ratios(job.source, target), np.eye(4)
    kept = tuple(
        inner_range(n, m, r) if sliced else slice(0, m)
        for n, m, r, sliced in zip(job.source.shape, target.shape, ratio, slice_axes(job.psf))
    )
    start[:3, 3] = [k.start for k in kept]
    out, std = (None if v is None else np.ascontiguousarray(v[kept]) for v in (out, std))
    return out, std, Grid(out.shape[:3], target.affine @ start)


def _prepare(volume: Volume, target: Grid, model: Any, options: Options, report: Report) -> Job:
    source, given = volume.grid, options.corrections
    check_consistency(given, options.consistency)
    psf, psf_from, certain = parse_psf(options.psf, source.voxel_size, volume.meta)
    budget = memory.parse_budget(options.memory)
    engine, why = _engine(options, model)
    if budget is None:
        budget = memory.default_budget(engine.device)
    held = memory.resident() if engine.device.type == "cpu" else 0
    frames = volume.data.shape[3] if volume.data.ndim == 4 else 1
    job = Job(source, target, model, options, engine, why, psf, psf_from, certain, budget, held, frames, report)
    job.graphs = graphs_for(engine)
    job.order = canonical_order(psf, target.voxel_size)
    job.need = _demand(job)
    job.corrector = Corrector(given, source, target, psf, learnt(model.meta), engine.device)
    job.fade = Fade.between(source, target, psf, options.ends)
    job.forward = ForwardModel.between(target.shape, target.voxel_size, source.shape, source.voxel_size, psf)
    _warn_about_range(job)
    return job


def _engine(options: Options, model: Any) -> tuple[engines.Engine, str]:
    """The engine and why it; exact tiling goes layer by layer, which only one engine can."""
    if options.tile != tiles.EXACT:
        plan = getattr(model, "plan", None)
        return engines.choose(
            options.engine, options.device, model.denoiser.net, options.threads, plan, options.precision
        )
    if options.engine not in ("auto", "torch"):
        raise BackendError(
            f"tile: 'exact' runs the network layer by layer, which engine {options.engine!r} cannot; use "
            "engine='torch' or 'auto', or another tile"
        )
    engine, why = engines.choose(
        "torch", options.device, model.denoiser.net, options.threads, precision=options.precision
    )
    return engine, why if options.engine == "torch" else "auto: tile='exact' runs layer by layer"


def _warn_about_range(job: Job) -> None:
    ratio = grids.ratios(job.source, job.target)  # new / old spacing
    finer = [a for a in range(3) if ratio[a] > 1 + SAME_SPACING]
    if finer:
        sizes = " x ".join(f"{v:.3g}" for v in job.source.voxel_size)
        _warn(
            job,
            f"the input ({sizes} mm) is already finer than the target along axis "
            f"{', '.join(map(str, finer))}: detail is removed there; ask for a smaller voxel_size to keep it",
        )
    trained = job.model.meta.get("trained_range", {})
    for axis, (psf, target) in enumerate(zip(job.psf, job.target.voxel_size)):
        kind = "slice" if psf.kind in SLICE_KINDS else "isotropic"
        low, high = trained.get(kind, (0.0, np.inf))
        step = psf.width / target
        if step > high * (1 + SAME_SPACING):
            _warn(
                job,
                f"axis {axis}: {psf.width:.3g} mm acquired to {target:.3g} mm is {step:.2f}x finer, and "
                f"{job.model.name} was trained on {low:g}x to {high:g}x ({kind}): do not rely on it; ask "
                "for a coarser voxel_size",
            )


def _warn(job: Job, text: str) -> None:
    if text not in job.warnings:
        job.warnings.append(text)
        warnings.warn(text, MrisrWarning, stacklevel=2)


def _frame(job: Job, data: np.ndarray, out: np.ndarray, std: np.ndarray | None):
    """One 3D volume into `out` (and `std`): (ConsistencyInfo, (offset, scale))."""
    report, device = job.report, job.engine.device
    with report.stage("start"):
        flat = job.corrector.unshaded(data)
        found = robust_scale(flat)
        offset, scale = found.offset, found.scale
        if found.outliers:
            _warn(job, _outliers(found))
        background = _background(job, data)
        lr = (torch.from_numpy(np.ascontiguousarray(flat)) - offset).div_(scale)
        # Of the scan as it was acquired: dividing by a field makes the noise uneven, which the network is told apart.
        noise = estimate_noise(lr if flat is data else (torch.from_numpy(data) - offset).div_(scale))
        lr = lr.to(device)
        y = job.corrector.start(lr)
        for doubt in job.corrector.doubts:
            _warn(job, doubt)
        plan = _plan(job, y)
        mode = SAMPLE if job.options.mode == "sample" else MEAN
        known = (job.psf, job.target.voxel_size, job.source.voxel_size)
        psf, voxel_size, stored = (tuple(v[i] for i in job.order) for v in known)
        cond = Condition.of_acquisition(psf, voxel_size, noise, stored=stored, mode=mode, device=device)
    with report.stage("network"):
        residual, spread = mirrors.residual(job, plan, y, cond, partial(_plan, job))
        job.engine.release()  # what follows needs memory of its own
    with report.stage("consistency"):
        result = y.add_(residual)
        del residual, y
        result, note = _consistent(job, result, lr, noise)
        result = _faded(job, result, lr, spread)
    with report.stage("finish"):
        if job.seam is not None:
            job.seam /= robust_range(result)
        out[...] = job.corrector.reshaded(result.mul_(scale).add_(offset)).cpu().numpy()
        if std is not None:
            std[...] = job.corrector.reshaded(spread.mul_(scale)).cpu().numpy()
        if background is not None:
            outside = job.corrector.background(job.fade, torch.from_numpy(background.mask).to(lr)).cpu().numpy()
            out[outside] = background.value
            if std is not None:
                std[outside] = 0
        if job.options.nonnegative:
            np.maximum(out, 0, out=out)
    return note, (offset, scale)


def _outliers(found) -> str:
    return (
        f"the brightest {100 * found.outliers:.2g} % of the foreground are over {OUTLIER:g} times as bright as the "
        "rest (an implant, a vessel, spikes?): the intensity scale was taken without them; look at the result there"
    )


def _background(job: Job, data: np.ndarray) -> Background | None:
    """What is to be one exact value in the result: outside of the stated mask, or else what the scan has masked."""
    found = masked_background(data)
    if job.options.mask is None:
        return found
    return Background(~job.options.mask, 0.0 if found is None else found.value)


def _faded(job: Job, result: torch.Tensor, lr: torch.Tensor, spread: torch.Tensor | None) -> torch.Tensor:
    """The result (in place), with plain interpolation in air and beyond the end slices."""
    head = tissue(lr.cpu().numpy(), job.fade.open_axes, max(1, job.engine.threads))
    weights = job.corrector.weights(job.fade, torch.from_numpy(head).to(lr))
    plain = job.corrector.interpolated(job.fade, lr)
    if spread is not None:
        spread *= weights
    return result.sub_(plain).mul_(weights).add_(plain)


def _plan(job: Job, y: torch.Tensor) -> tiles.TilePlan:
    """Whole box or tiles, by the budget; every frame has the box of its own foreground."""
    foreground = tiles.foreground_bricks(y)
    need, most = job.need, job.need.tile_voxels(job.budget)
    given = _engines_tile(job) if job.options.tile is None else job.options.tile
    plan = tiles.plan(job.target.shape, foreground, tile=given, max_voxels=most, align=job.align)
    if plan.kind == "tiles" and given is None and _layer_by_layer(job, foreground):
        return _plan(job, y)
    if plan.kind == "tiles" and job.net.config.norm == "group":
        if given is not None:
            raise BackendError(
                f"tile: {job.model.name} normalises over the whole head, which tiles would each do for themselves; "
                "use tile='exact' or None"
            )
        plan = tiles.plan(job.target.shape, foreground, tile=tiles.EXACT, align=job.align)
    voxels = int(np.prod(plan.tile))
    job.spill = plan.kind == tiles.EXACT and voxels > most
    if job.spill:
        need = _demand(job, spill=True)
        most = need.tile_voxels(job.budget)
    if voxels > most:
        exact = plan.kind == tiles.EXACT
        memory.refuse(job.budget, need, voxels, "head" if exact else "tile", _way_out(job) if exact else "")
    job.expected = max(job.expected, need.peak(voxels))
    job.plan = plan
    return plan


def _layer_by_layer(job: Job, foreground) -> bool:
    """Whether the job goes on with the PyTorch engine layer by layer, where the budget holds no whole head.

    It gives what one piece gives, and sooner than blended tiles (benchmarks/results/exact_tiling.json).
    """
    if job.options.engine != "auto" or job.engine.name != "openvino":
        return False
    how = replace(job.options, tile=tiles.EXACT)
    engine, _ = _engine(how, job.model)
    other = replace(job, engine=engine, options=how)
    plan = tiles.plan(job.target.shape, foreground, tile=tiles.EXACT, align=job.align)
    need = _need(other)
    if need.tile_voxels(job.budget) < int(np.prod(plan.tile)):
        return False
    job.engine.release()
    job.engine, job.options, job.need = engine, how, need
    job.why = "auto: layer by layer, because the budget holds no piece of the whole head"
    return True


def _engines_tile(job: Job) -> tuple[int, int, int] | None:
    """The piece that an engine is built for, in stored order; None where it takes any."""
    tile = getattr(job.engine, "tile", None)
    return None if tile is None else tuple(tile[job.order.index(axis)] for axis in range(3))


def _need(job: Job, spill: bool = False) -> memory.Demand:
    """What the job needs, whether that is there or not."""
    config = job.net.config
    return memory.demand(
        job.engine.name,
        held=job.held,
        source_voxels=int(np.prod(job.source.shape)),
        target_voxels=int(np.prod(job.target.shape)),
        width=config.widths[0],
        weight_bytes=4 * sum(p.numel() for p in job.net.parameters()),
        frames=job.frames,
        samples=job.options.samples,
        steps=job.options.steps,
        ensemble=job.options.ensemble,
        maps=job.engine.map_bytes(job.target.shape, spill) if hasattr(job.engine, "map_bytes") else None,
        state=job.options.mode != "mean",
        reordered=job.order != (0, 1, 2),
        corrected=job.options.consistency == "on" or (job.options.consistency == "auto" and job.psf_certain),
        captured=job.graphs is not None and _runs(job) >= CAPTURING_CALL,
        start_copies=job.options.corrections.start_copies(job.target.shape),
        source_copies=job.options.corrections.source_copies,
        points=job.options.corrections.points_bytes,
    )


def _demand(job: Job, spill: bool = False) -> memory.Demand:
    """What the job needs; refused here, before any volume exists, where not even the smallest tile would fit."""
    need, config = _need(job, spill), job.net.config
    if not spill and (job.options.tile == tiles.EXACT or config.norm == "group"):
        _demand(job, spill=True)  # what does not fit into memory goes into a file
        return need
    if (
        spill
    ):  # how much of the grid is head is known later; where the volumes alone are too much, all of it surely fits
        if need.tile_voxels(job.budget) < 1:
            whole = int(np.prod([tiles.round_up(n) for n in job.target.shape]))
            memory.refuse(job.budget, need, whole, "whole grid", _way_out(job))
        return need
    smallest = int(np.prod([min(tiles.smallest_tile(job.align), tiles.round_up(n)) for n in job.target.shape]))
    if need.tile_voxels(job.budget) < smallest:
        memory.refuse(job.budget, need, smallest, "smallest tile")
    return need


def _way_out(job: Job) -> str:
    """What else to do where exact tiling does not fit."""
    return "" if job.net.config.norm == "group" else ", or leave tile at its default (blended tiles need less)"


def _consistent(job: Job, result: torch.Tensor, lr: torch.Tensor, noise: float | None):
    """The result, corrected where that is asked for or certain, and what was done and why."""
    wanted = job.options.consistency
    if job.options.corrections.displaces:
        why = "off: the scan is displaced by its gradients, so that no model along the axes gives it back"
        return result, ConsistencyInfo(False, "switched off" if wanted == "off" else why)
    if noise is None:
        return result, ConsistencyInfo(False, "too little foreground to know the noise, hence when to stop")
    if wanted == "on" or (wanted == "auto" and job.psf_certain):
        done = correct(result, lr, job.forward, noise)
        why = "asked for" if wanted == "on" else f"the point spread is certain: {job.psf_from}"
        if not done.applied:
            why += "; not needed, the result explains the input to within its noise"
        return done.image, ConsistencyInfo(done.applied, why, done.chi2_before, done.chi2_after, noise)
    why = "switched off"
    if wanted != "off":
        known = "stated to be unknown" if "stated" in job.psf_from else f"only {job.psf_from}"
        why = f"off, because the point spread is {known}; state psf= to correct the result"
    chi2 = residual_chi2(result, lr, job.forward, noise)
    return result, ConsistencyInfo(False, why, chi2, chi2, noise)


def _info(job: Job, notes: list[ConsistencyInfo], scales: list[tuple[float, float]]) -> Info:
    plan, options, engine = job.plan, job.options, job.engine
    return Info(
        input=GridInfo.of(job.source),
        target=GridInfo.of(job.target),
        frames=job.frames,
        model=job.model.name,
        weights=job.model.sha256,
        card=None if job.model.card is None else str(job.model.card),
        engine=EngineInfo(
            engine.name, str(engine.device), engine.threads, engine.precision, _why(job), engine.precision_why
        ),
        mode=options.mode,
        steps=options.steps,
        samples=options.samples,
        seed=options.seed,
        ensemble=options.ensemble,
        resolution=resolution(job.psf, job.source.voxel_size, job.target.voxel_size),
        resolution_from=job.psf_from,
        tiles=TileInfo(
            plan.kind,
            plan.tile,
            plan.count,
            len(plan.active),
            plan.active_fraction,
            plan.box,
            _seam_note(plan),
            engine.spilled(plan.tile) if job.spill else 0,
            job.seam,
        ),
        consistency=tuple(notes),
        intensity=tuple(scales),
        memory_budget=job.budget,
        memory_expected=job.expected,
        seconds=dict(job.report.seconds),
        warnings=list(job.warnings),
        std_scale=_std_scale(job),
        gradnl=job.corrector.gradnl_info(job.model.name),
        bias=job.corrector.bias_info(job.model.name),
        versions=environment.versions(name for name in environment.LIBRARIES if name in sys.modules),
    )


def _std_scale(job: Job) -> dict[float, float] | None:
    """The conformal factors of these weights for these samples and steps."""
    for entry in job.model.meta.get("uncertainty", ()):
        if (entry["samples"], entry["steps"]) == (job.options.samples, job.options.steps):
            return {float(level): float(factor) for level, factor in entry["scale"].items()}
    return None


def _runs(job: Job) -> int:
    """How often the loop runs."""
    return job.frames * job.options.samples * job.options.ensemble


def _why(job: Job) -> str:
    return job.why if job.graphs is None else f"{job.why}; {job.graphs.note()}"


def _seam_note(plan: tiles.TilePlan) -> str:
    if plan.kind == "whole":
        return "one piece: no seams; outside of the box (air) the result is plain interpolation"
    if plan.kind == tiles.EXACT:
        return "layer by layer: the result of one piece, no seams; outside of the box (air) plain interpolation"
    return (
        f"tiles share {tiles.OVERLAP} voxels, of which the outer {tiles.TRIM} are dropped and the rest "
        f"blended; the difference from one piece is what the network sees beyond that"
    )
