"""The account of a run: `Info` of the plan and of what became of every frame."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mrisr import environment
from mrisr.infer import tiles
from mrisr.infer.back_projection import share_of
from mrisr.infer.corrections import Corrector
from mrisr.infer.engines import Engine
from mrisr.infer.finish import FrameResult
from mrisr.infer.info import EngineInfo, GridInfo, Info, TileInfo, resolution
from mrisr.infer.plan import Plan

if TYPE_CHECKING:
    from mrisr.infer.engines.graph import Graphs


def account(
    plan: Plan,
    results: Sequence[FrameResult],
    engine: EngineInfo,
    corrector: Corrector,
    warnings: Sequence[str],
    seconds: dict[str, float],
) -> Info:
    """results: of every frame, in order; warnings: that were given."""
    geometry, model, options = plan.geometry, plan.model, plan.options
    of_frames = tuple(tile_info(r, model.overlap) for r in results)
    return Info(
        input=GridInfo.of(geometry.source),
        target=GridInfo.of(plan.output),
        frames=geometry.frames,
        model=model.name,
        weights=model.sha256,
        card=model.card,
        network=model.network,
        engine=engine,
        mode=options.mode,
        steps=options.steps,
        samples=options.samples,
        seed=options.seed,
        ensemble=options.ensemble,
        denoise=options.denoise,
        resolution=resolution(geometry.psf, geometry.source.voxel_size, geometry.target.voxel_size),
        resolution_from=geometry.psf_from,
        tiles=all_frames(of_frames),
        frame_tiles=of_frames if len(set(of_frames)) > 1 else (),
        back_projection=share_of(plan),
        consistency=tuple(r.chi2 for r in results),
        intensity=tuple(r.scale for r in results),
        memory_budget=plan.machine.budget,
        memory_expected=max(r.plan.memory for r in results),
        seconds=dict(seconds),
        warnings=list(warnings),
        std_scale=model.std_scale.get((options.samples, options.steps)),
        gradnl=corrector.gradnl_info(results[-1].displacement, model.name),
        bias=corrector.bias_info(model.name),
        versions=environment.versions(name for name in environment.LIBRARIES if name in sys.modules),
    )


def engine_info(engine: Engine, plan: Plan, results: Sequence[FrameResult], graphs: Graphs | None) -> EngineInfo:
    """Of the engine that ran the last frame, and why it; where another ran the first frames, how many."""
    routes = [r.plan.route for r in results]
    why = routes[-1].engine.why
    before = sum(route is not routes[-1] for route in routes)
    if before:
        why += f" (from frame {before + 1} on; {plan.route.engine.name} before)"
    if graphs is not None:
        why += f"; {graphs.note()}"
    return EngineInfo(engine.name, str(engine.device), engine.threads, engine.precision, why, engine.precision_why)


def tile_info(result: FrameResult, overlap: int) -> TileInfo:
    """Of one frame: its plain pass (mirrored ones are like it), and the worst seam of all passes."""
    pieces = result.plan.passes[0].tiles
    return TileInfo(
        kind=pieces.kind,
        size=pieces.tile,
        count=pieces.count,
        computed=len(pieces.active),
        active_fraction=pieces.active_fraction,
        box=pieces.box,
        seam=_seam_note(pieces, overlap),
        spilled=result.spill_bytes,
        seam_error=result.seam,
    )


def all_frames(frames: Sequence[TileInfo]) -> TileInfo:
    """The frame that took most voxels, with the largest seam and the largest file of any frame."""
    largest = max(frames, key=lambda t: t.active_fraction)
    seams = [t.seam_error for t in frames if t.seam_error is not None]
    return replace(largest, spilled=max(t.spilled for t in frames), seam_error=max(seams, default=None))


def _seam_note(pieces: tiles.TilePlan, overlap: int) -> str:
    if pieces.kind == "whole":
        return "one piece: no seams; outside of the box (air) the result is plain interpolation"
    if pieces.kind == tiles.EXACT:
        return "layer by layer: the result of one piece, no seams; outside of the box (air) plain interpolation"
    shared = min(tiles.shared(a.size, overlap) for a in pieces.axes if len(a.starts) > 1)
    return (
        f"tiles share {shared} voxels, of which the outer {tiles.TRIM} are dropped and the rest "
        f"blended; the difference from one piece is what the network sees beyond that"
    )
