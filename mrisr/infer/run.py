"""One scan, from its voxels to its finer voxels and the account of them: the stages in order."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mrisr.errors import MemoryBudgetError, MrisrWarning
from mrisr.grid import Grid
from mrisr.infer import memory
from mrisr.infer.account import account, engine_info
from mrisr.infer.back_projection import restore_signal
from mrisr.infer.corrections import Corrections, Corrector, check_consistency, estimate_field
from mrisr.infer.denoise import denoise
from mrisr.infer.engines import Engine, make
from mrisr.infer.facts import Geometry, Machine, Options
from mrisr.infer.finish import FrameResult, fade, finish, make_consistent
from mrisr.infer.info import Info
from mrisr.infer.plan import FramePlan, Plan, Route, choose_engine, is_plain, plan_frame, plan_scan, source_of
from mrisr.infer.progress import Report
from mrisr.infer.start import conditions, foregrounds, start
from mrisr.physics.degrade import ForwardModel
from mrisr.volume import Frames, Volume

if TYPE_CHECKING:
    from mrisr.infer.engines.graph import Graphs


@dataclass(frozen=True, eq=False)
class Scan:
    """What came in: the voxels, and what is known of them.

    Attributes:
        volume: 3D, or 4D (each frame on its own).
        corrections: of its distortions.
        mask: the head, bool [X, Y, Z] on the scan's grid, or None.
    """

    volume: Volume
    corrections: Corrections = Corrections()
    mask: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Stages:
    """What every frame needs: made once, never written to."""

    scan: Scan
    plan: Plan
    corrector: Corrector
    forward: ForwardModel
    report: Report


def upscale_volume(
    scan: Scan,
    target: Grid,
    model: Any,
    options: Options,
    report: Report,
    messages: Sequence[str] = (),
    geometry: Geometry | None = None,
) -> tuple[Volume, Info]:
    """Bring a scan onto `target`: (result in the input's intensity units, the account).

    Args:
        target: from `mrisr.grid.plan(volume.grid, ...)`.
        model: `mrisr.load_model(...)`: a LoadedModel, or a `mrisr.infer.known.KnownModel`.
        messages: warnings of this scan that were given already; they go into the account, and are not given again.
        geometry: `Geometry.of` the scan, target and options, where that is known; it looks at voxels.

    Raises:
        MemoryBudgetError, BackendError, UsageError.
    """
    with report.stage("prepare"):
        geometry = geometry or Geometry.of(scan.volume, target, options.psf)
        stages, engine = _prepare(scan, geometry, model, options, report)
        plan, volume, messages = stages.plan, scan.volume, give(list(messages), stages.plan.warnings)
    if scan.corrections.estimates:
        with report.stage("bias"):
            field = estimate_field(volume.data, volume.grid, options.threads)
            stages = replace(stages, corrector=stages.corrector.with_field(field))
    results: list[FrameResult] = []
    with closing(Runner(plan.route, engine, model)) as runner, _without_autograd(plan):
        if volume.data.ndim == 3:  # what the frame has is the result: no second copy of it is made
            results.append(_frame(stages, runner, volume.data, messages))
            out, std = results[0].image, results[0].std
        else:
            shape = target.shape + volume.data.shape[3:]
            out = np.empty(shape, np.float32) if options.holds_frames else None
            std = np.empty(shape, np.float32) if options.samples > 1 else None
            for t, data in enumerate(volume.frames()):
                result = _frame(stages, runner, data, messages)
                report.frame(t, result.image[plan.extent], plan.output.affine)
                results.append(_stored(result, *(None if v is None else v[..., t] for v in (out, std))))
                del result  # its voxels, which are in `out` now, or whoever was told has them
        account_of_engine = engine_info(runner.engine, plan, results, runner.graphs)
    info = account(plan, results, account_of_engine, stages.corrector, messages, report.seconds)
    out, std = (None if v is None else np.ascontiguousarray(v[plan.extent]) for v in (out, std))
    if std is not None:
        info.std = volume.replace(std, plan.output.affine)
    if out is None:
        out = Frames((*plan.output.shape, *volume.data.shape[3:]))
    return volume.replace(out, plan.output.affine), info


def _prepare(scan: Scan, geometry: Geometry, model: Any, options: Options, report: Report) -> tuple[Stages, Engine]:
    corrections, target = scan.corrections, geometry.target
    check_consistency(corrections, options.consistency)
    budget = memory.parse_budget(options.memory)
    choice = choose_engine(options, model)
    plain = is_plain(choice, corrections, options)
    if not plain:
        _load_torch()
    engine = make(choice, source_of(choice, model), model.plan)

    def planned() -> Plan:
        return plan_scan(geometry, corrections, model, options, choice, engine, Machine.of(engine, budget))

    try:
        plan = planned()
    except MemoryBudgetError:
        if not plain:
            raise
        plan = None
    if plain and (plan is None or not plan.on_arrays):  # more memory is held with PyTorch, without which it is no way
        _load_torch()
        plan = planned()
    source, psf = geometry.source, geometry.psf
    device = None if plan.on_arrays else engine.device
    corrector = Corrector(corrections, source, target, psf, ends=options.ends, learnt=plan.model.learnt, device=device)
    forward = ForwardModel.between(target.shape, target.voxel_size, source.shape, source.voxel_size, psf)
    return Stages(scan, plan, corrector, forward, report), engine


def _load_torch() -> None:
    """Before memory is looked at."""
    import torch  # noqa: F401


def _without_autograd(plan: Plan) -> AbstractContextManager:
    if plan.on_arrays:
        return nullcontext()
    import torch

    return torch.inference_mode()


def _frame(stages: Stages, runner: Runner, data: np.ndarray, messages: list[str]) -> FrameResult:
    """One 3D volume; what it warns of is added to `messages`."""
    plan, corrector, report = stages.plan, stages.corrector, stages.report
    with report.stage("start"):
        frame, y = start(data, stages.scan.mask, corrector)
        give(messages, frame.warnings)
        frame_plan = plan_frame(plan, foregrounds(y, plan.mirrorings, runner.engine.threads), runner.route)
        engine = runner.follow(frame_plan.route)
        conds = conditions(plan, frame, corrector)
    with report.stage("network"):
        residual = denoise(engine, plan, frame_plan, y, conds, report.tick, runner.graphs)
        engine.release()  # what follows needs memory of its own
    with report.stage("consistency"):
        y += residual.mean
        image, std, seam = y, residual.std, residual.seam
        del residual, y
        image, texts = restore_signal(image, frame, plan, stages.forward, corrector, engine.threads)
        give(messages, texts)
        image, chi2, texts = make_consistent(image, frame, plan, stages.forward)
        give(messages, texts)
        image = fade(image, std, frame, corrector, engine.threads)
    with report.stage("finish"):
        image, std, seam = finish(image, std, seam, frame, corrector, plan.options.nonnegative)
    scale = frame.scale.offset, frame.scale.scale
    return FrameResult(image, std, frame_plan, seam, chi2, scale, _spilled(engine, frame_plan), frame.displacement)


def _spilled(engine: Engine, frame_plan: FramePlan) -> int:
    return max(engine.spill_bytes(p.tiles.tile) if p.spill else 0 for p in frame_plan.passes)


def _stored(result: FrameResult, out: np.ndarray | None, std: np.ndarray | None) -> FrameResult:
    """The result with its voxels where they belong; without them where that is nowhere."""
    if out is not None:
        out[...] = result.image
    if std is not None:
        std[...] = result.std
    return replace(result, image=out, std=std)


def give(messages: list[str], texts: Iterable[str]) -> list[str]:
    """Give every warning once, and note it."""
    for text in texts:
        if text not in messages:
            messages.append(text)
            warnings.warn(text, MrisrWarning, stacklevel=2)
    return messages


class Runner:
    """The engine of the route that the frames are on, one at a time."""

    def __init__(self, route: Route, engine: Engine, model: Any) -> None:
        self.route, self.engine, self._model = route, engine, model
        self.graphs = _graphs_for(engine)

    def follow(self, route: Route) -> Engine:
        """The engine of a route; that of the one before has given its memory back."""
        if route is not self.route:
            self.engine.release()
            self.engine = make(route.engine, source_of(route.engine, self._model), self._model.plan)
            self.route, self.graphs = route, _graphs_for(self.engine)
        return self.engine

    def close(self) -> None:
        if self.graphs is not None:
            self.graphs.clear()
        self.engine.release()


def _graphs_for(engine: Engine) -> Graphs | None:
    """Of an engine whose work can be captured; None for every other."""
    if not engine.capturable:
        return None
    from mrisr.infer.engines.graph import Graphs

    return Graphs(engine.device)
