"""Stacks in, one volume out: align, join by their forward models, and let the network say what none has measured.

A few times by turns. The joint solution goes to the network in several views (`views`), each a scan as it knows them:
cut to what the finest of the stacks resolves along every axis, times a little, so that what is stated is so; and in
slices, as each stack would have seen it. Each view hides something else and is wrong elsewhere: the mean of the answers
is what the solution is expected to be where the stacks say nothing, and where they are noisy; then they have their say
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mrisr import grid as grids
from mrisr.errors import InputError, MemoryBudgetError, UsageError
from mrisr.grid import Grid
from mrisr.infer import memory
from mrisr.infer.facts import ModelFacts, Options, psf_of
from mrisr.infer.info import AxisResolution, ConsistencyInfo, GridInfo, Info, StackInfo
from mrisr.infer.join.align import Aligned, align
from mrisr.infer.join.together import Together
from mrisr.infer.progress import Report
from mrisr.infer.run import Scan, give, upscale_volume
from mrisr.ops.resample import resample3d
from mrisr.physics.degrade import SLICE_KINDS, ForwardModel
from mrisr.physics.foreground import certain, masked_background
from mrisr.physics.intensity import Scale
from mrisr.physics.psf import PSF, AxisPSF
from mrisr.physics.stack import Measured, StackModel, nearest_axes, solve, within
from mrisr.volume import Volume

ALTERNATIONS = 4  # of the network and the stacks
PARTS = (1.0, 0.5)  # of a stack's slices that views are of
CUT = 1.5  # what the network is shown resolves so many times what the finest stack does
# Standard deviations, as parts of the intensity scale: of the truth around the network's answer to one view, and around
# its answer to several where these agree; and of the difference of neighbouring voxels.
FIRST, AGREED, NEIGHBOURS = 0.10, 0.03, 0.30
APART = 6.0  # times the variance of those answers, which is added to the square of the second
ITERATIONS, AGAIN = 12, 6  # of conjugate gradients, at first and after every answer
VOLUMES = 15.0  # float32 target volumes alive at once


def join_volumes(
    volumes: Sequence[Volume],
    target: Grid,
    model: Any,
    options: Options,
    how: Together,
    report: Report,
    mask: np.ndarray | None = None,
) -> tuple[Volume, Info]:
    """Bring several scans of one head onto `target`, in the intensity units of the reference: (result, account).

    Args:
        target: from `mrisr.grid.plan` of the reference's grid.
        options: as `check_options` takes them.
        mask: the head, bool, on the reference's grid: outside of it the result is 0.

    Raises:
        InputError: a stack does not fit. MemoryBudgetError.
    """
    _check_memory(volumes, target, options)
    volumes = [_one_image(v) for v in volumes]
    with report.stage("register"):
        psfs = [psf_of(v, options.psf) for v in volumes]
        stacks, scale, texts = align(volumes, [psf for psf, *_ in psfs], how, options.threads)
        messages = give([], texts)
    with report.stage("join"), torch.inference_mode():
        measured = [measured_on(s, target) for s in stacks]
        begin = interpolated(stacks, target)
        before = [_chi2(m, begin) for m in measured]
        x = solve(measured, begin, smooth=NEIGHBOURS**-2, iterations=ITERATIONS, tick=report.tick)
        del begin
    width = finest(stacks, target)
    groups = views(stacks, target, width)
    once = replace(options, mode="mean", steps=1, samples=1)
    trust: float | torch.Tensor = FIRST**-2
    for rest in reversed(range(ALTERNATIONS)):
        settings = once if rest else options
        # The first view is enough to begin with; and a mean of samples of several would have no texture.
        every = rest < ALTERNATIONS - 1 and settings.mode == "mean"
        views_of_run = groups if every else groups[:1]
        prior, spread, info = _network(
            x, target, views_of_run, scale, model, settings, report, stacks[how.reference].volume
        )
        with report.stage("join"), torch.inference_mode():
            trust = trust if spread is None else trust_of(spread)
            x = solve(measured, prior, prior=prior, trust=trust, iterations=AGAIN, tick=report.tick)
    with report.stage("join"), torch.inference_mode():
        after = [_chi2(m, x) for m in measured]
    result = _finish(x, stacks, target, scale, mask, how.reference, options.nonnegative, info.std)
    chi2 = list(zip(before, after))
    return result, _account(info, stacks, psfs, width, target, chi2, messages, how, scale)


def _one_image(volume: Volume) -> Volume:
    """A 4D scan of one frame is an image, as it is elsewhere. InputError where there are more."""
    if volume.data.ndim == 3:
        return volume
    frames = volume.data.shape[3]
    if frames > 1:
        raise InputError(f"{volume.name}: {frames} frames; stacks to join are 3D, take one frame of it")
    return volume.replace(volume.data[..., 0])


def _finish(x, stacks, target: Grid, scale: Scale, mask, reference: int, nonnegative: bool, std) -> Volume:
    """The result in the units of the reference; what is known outside of the head is set, in the spread too."""
    data = (x * scale.scale + scale.offset).numpy()
    outside = _outside(stacks, target, mask, reference)
    if outside is not None:
        data[outside[0]] = outside[1]
        if std is not None:
            std.data[outside[0]] = 0
    if nonnegative:
        np.maximum(data, 0, out=data)
    return stacks[reference].volume.replace(data, target.affine)


def check_options(options: Options) -> None:
    """UsageError for what means nothing where several scans are joined."""
    if options.consistency == "off":
        raise UsageError('join: stacks are joined by what they measured; leave consistency at "auto"')
    if options.denoise:
        raise UsageError("join: how much noise goes, the noise of the stacks decides; leave denoise at 0")
    if options.ends != "fade":
        raise UsageError(
            f'join: what lies beyond the ends of one stack others measure; leave ends at "fade", found {options.ends!r}'
        )


def _check_memory(volumes: Sequence[Volume], target: Grid, options: Options) -> None:
    """MemoryBudgetError before anything is made; the network's own need is planned when its turn comes."""
    budget = memory.parse_budget(options.memory)
    if budget is None:
        budget = memory.default_budget(torch.device("cpu"))
    voxels = VOLUMES * float(np.prod(target.shape)) + 4.0 * sum(v.data.size for v in volumes)
    need = memory.resident() + int(4 * voxels)
    if need > budget:
        raise MemoryBudgetError(
            f"memory: joining {len(volumes)} stacks takes {memory.show(need, up=True)}, and the budget is "
            f"{memory.show(budget)}; raise memory, or ask for a coarser voxel_size"
        )


def measured_on(stack: Aligned, target: Grid) -> Measured:
    """A stack as the solver sees it, weighted by its noise, where it sees nothing but the target."""
    model = StackModel.of(target, stack.volume.grid, stack.psf, stack.motion)
    return Measured(model, stack.values, model.covered().float().div_(stack.noise**2))


def interpolated(stacks: Sequence[Aligned], target: Grid) -> torch.Tensor:
    """The mean of the stacks' cubic interpolations, each within its own field of view: float32 [X, Y, Z]."""
    total, count = torch.zeros(target.shape), torch.zeros(target.shape)
    for s in stacks:
        index = np.linalg.inv(s.volume.affine) @ s.motion @ target.affine
        inside = within(index, target.shape, s.volume.grid.shape)
        total += inside * resample3d(s.values, target.shape, index, order=3)
        count += inside
    return total.div_(count.clamp_(min=1))


def finest(stacks: Sequence[Aligned], target: Grid) -> tuple[float, float, float]:
    """What the finest stack resolves along each axis of the target, mm."""
    width = [np.inf] * 3
    for s in stacks:
        order = nearest_axes(np.linalg.inv(target.affine) @ np.linalg.inv(s.motion) @ s.volume.affine)
        for axis, a in enumerate(order):
            width[a] = min(width[a], max(s.psf[axis].width, s.volume.voxel_size[axis]))
    return tuple(max(float(w), v) for w, v in zip(width, target.voxel_size))


def views(stacks: Sequence[Aligned], target: Grid, width) -> list[list[tuple[PSF, Grid]]]:
    """How the network is shown the joint solution: (point spread along the target's axes, grid), in groups that count
    alike: what the finest of the stacks resolves; slices as each of them has; slices half as thick.

    Args:
        width: of `finest`.
    """
    groups = [[(tuple(AxisPSF("kspace", CUT * w) for w in width), target)]]
    for part in PARTS:
        of_part = []
        for s in stacks:
            order = nearest_axes(np.linalg.inv(target.affine) @ np.linalg.inv(s.motion) @ s.volume.affine)
            for axis, (profile, size) in enumerate(zip(s.psf, s.volume.voxel_size)):
                a = order[axis]
                if profile.kind not in SLICE_KINDS or part * size <= target.voxel_size[a]:
                    continue
                psf, sizes = [AxisPSF("kspace", w) for w in width], list(target.voxel_size)
                psf[a], sizes[a] = replace(profile, width=part * profile.width), part * size
                view = tuple(psf), grids.plan(target, voxel_size=tuple(sizes))
                of_part += [] if view in of_part else [view]
        groups += [of_part] if of_part else []
    return groups


def _network(
    x: torch.Tensor, target: Grid, groups, scale: Scale, model: Any, options: Options, report: Report, like: Volume
) -> tuple[torch.Tensor, torch.Tensor | None, Info]:
    """What the network makes of the joint solution: the mean over the views of it, their variance (None of one), and
    the account of the first."""
    denoise = 1.0 if ModelFacts.of(model).denoises else 0.0
    mean, spread, first = torch.zeros_like(x), torch.zeros_like(x) if sum(map(len, groups)) > 1 else None, None
    weight = 0.0  # so far, of the weights of the views, whose sum is 1
    for group in groups:
        part = 1 / (len(group) * len(groups))
        for psf, grid in group:
            acquisition = ForwardModel.between(target.shape, target.voxel_size, grid.shape, grid.voxel_size, psf)
            values = acquisition.forward(x).mul_(scale.scale).add_(scale.offset).numpy()
            plain = replace(options, psf=psf, denoise=denoise, network_alone=True)
            plain = replace(plain, consistency="off", ends="full", nonnegative=False)
            scan = Scan(Volume(values, grid.affine, name=like.name, from_outside=False))
            result, info = upscale_volume(scan, target, model, plain, report)
            weight += part
            delta = torch.from_numpy(result.data).sub_(scale.offset).div_(scale.scale).sub_(mean)
            mean.add_(delta, alpha=part / weight)
            if spread is not None:  # Welford: no difference of large squares
                spread.addcmul_(delta, delta, value=part * (1 - part / weight))
            first = info if first is None else first
    return mean, spread, first


def trust_of(spread: torch.Tensor) -> torch.Tensor:
    """How far the mean of several answers of the network counts, 1 / variance, from the variance of the answers: where
    they differ it errs more (on training scans their spread and the error of their mean correlate by 0.7)."""
    around = torch.nn.functional.avg_pool3d(spread[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    return around.mul_(APART).add_(AGREED**2).reciprocal_()


def _chi2(stack: Measured, x: torch.Tensor) -> float:
    """Mean squared residual over the noise's variance, where the stack shows tissue that the target holds."""
    where = certain(stack.values) & (stack.weight > 0)
    if not where.any():
        return 0.0
    residual = (stack.values - stack.model.forward(x)).square_().mul_(stack.weight)
    return float(residual[where].double().mean())


def _outside(stacks: Sequence[Aligned], target: Grid, mask: np.ndarray | None, reference: int):
    """(voxels whose value is known, the value): outside of the mask, or where most stacks have been masked."""
    masks = [masked_background(s.volume.data) for s in stacks]
    value = 0.0 if masks[reference] is None else masks[reference].value
    if mask is not None:
        index = np.linalg.inv(stacks[reference].volume.affine) @ target.affine
        return resample3d(torch.from_numpy(~mask).float(), target.shape, index, order=1).numpy() > 0.5, value
    if masks[reference] is None:
        return None
    votes, count = torch.zeros(target.shape), torch.zeros(target.shape)
    for s, background in zip(stacks, masks):
        if background is None:
            continue
        index = np.linalg.inv(s.volume.affine) @ s.motion @ target.affine
        inside = within(index, target.shape, s.volume.grid.shape)
        votes += inside * resample3d(torch.from_numpy(background.mask).float(), target.shape, index, order=1)
        count += inside
    return (votes > 0.5 * count).numpy() & (count > 0).numpy(), value


def _account(info: Info, stacks, psfs, width, target: Grid, chi2, messages, how: Together, scale: Scale) -> Info:
    """The account of the last answer, as one of the whole."""
    reference = stacks[how.reference]
    total = sum(s.noise**-2 for s in stacks)
    of_stacks = tuple(
        StackInfo(
            name=s.volume.name,
            grid=GridInfo.of(s.volume.grid),
            point_spread=origin,
            transform=tuple(tuple(map(float, row)) for row in s.motion),
            registered=how.registered and s is not reference,
            correlation=s.correlation,
            overlap=s.overlap,
            gain=s.gain,
            noise_sigma=s.noise,
            weight=s.noise**-2 / total,
            chi2_before=before,
            chi2_after=after,
        )
        for s, (_, origin, _), (before, after) in zip(stacks, psfs, chi2)
    )
    why = f"joined by the forward models of {len(stacks)} stacks"
    resolution = tuple(
        AxisResolution("kspace", w, stored, v, min(0.5 / w, 0.5 / v), 0.5 / v)
        for w, stored, v in zip(width, reference.volume.voxel_size, target.voxel_size)
    )
    return replace(
        info,
        input=GridInfo.of(reference.volume.grid),
        denoise=0.0,
        resolution=resolution,
        resolution_from=f"the finest of {len(stacks)} stacks along each axis; each {psfs[how.reference][1]}",
        consistency=(ConsistencyInfo(True, why, *chi2[how.reference], reference.noise),),
        intensity=((scale.offset, scale.scale),),
        warnings=[*messages, *info.warnings],
        std=None if info.std is None else reference.volume.replace(info.std.data, target.affine),
        std_scale=None,
        stacks=of_stacks,
    )
