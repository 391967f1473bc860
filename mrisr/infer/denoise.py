"""From the start y to the residual: the network on the pieces of a plan, the solver's steps, samples and mirrorings.

Everything the loop needs lies on the device before it starts, and with one piece it waits for nothing. On a CUDA device
the loop over one piece, or else the network on a tile, may therefore run as a CUDA graph
(`mrisr.infer.engines.graph`).

With an ensemble the network also sees the scan mirrored, and the answers, mirrored back, are averaged: training mirrors
at random, so every mirrored answer is as good as the plain one; where they differ, the difference is the network's own,
and the average has less of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mrisr.infer import tiles
from mrisr.infer.engines import Engine
from mrisr.infer.plan import FramePlan, Pass, Plan
from mrisr.nn.vector import GUIDANCE_CHANNELS, GUIDANCE_STRIDE, SAMPLE
from mrisr.ops.either import flipped, gather, permuted, zeros_like
from mrisr.physics.degrade import band_matrices, mean_matrices, outside_band

if TYPE_CHECKING:
    import torch

    from mrisr.infer.engines import Network
    from mrisr.infer.engines.graph import Graphs
    from mrisr.nn.condition import Condition

    Volume = torch.Tensor | np.ndarray

Tick = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class Residual:
    """What the network adds to the start, float32 [X, Y, Z] on the target grid.

    Attributes:
        mean: over samples, or mirrorings.
        std: voxel-wise standard deviation of the samples, or None.
        seam: largest difference between neighbouring tiles, in the units of y; None where no two met.
    """

    mean: Volume
    std: Volume | None
    seam: float | None


def denoise(
    engine: Engine,
    plan: Plan,
    frame: FramePlan,
    y: Volume,
    conditions: Sequence[Condition | np.ndarray],
    tick: Tick,
    graphs: Graphs | None = None,
) -> Residual:
    """The residual of one frame, averaged over the passes of its plan.

    Args:
        engine: of `frame.route`.
        y: [X, Y, Z], the normalised start on the target grid; the residual is of its kind.
        conditions: of every pass; where y is an array, the vectors of them.
        tick: called with the fraction done.
        graphs: of a CUDA device.
    """
    passes = frame.passes
    if len(passes) == 1:
        return _residual(engine, plan, passes[0], y, conditions[0], tick, graphs)
    total, seams = zeros_like(y), []
    for k, (run, cond) in enumerate(zip(passes, conditions, strict=True)):
        part = partial(_part, tick, k, len(passes))
        answer = _residual(engine, plan, run, flipped(y, run.mirrored), cond, part, graphs)
        total += flipped(answer.mean, run.mirrored)
        seams += [] if answer.seam is None else [answer.seam]
        del answer
    total /= len(passes)
    return Residual(total, None, max(seams, default=None))  # of the average it is at most that


def _part(tick: Tick, k: int, count: int, fraction: float) -> None:
    tick((k + fraction) / count)


def _residual(
    engine: Engine, plan: Plan, run: Pass, y: Volume, cond: Condition | np.ndarray, tick: Tick, graphs: Graphs | None
) -> Residual:
    """Of one pass: the mean, or the samples' mean and standard deviation."""
    if plan.options.mode != "mean":
        return _sampled(engine, plan, run, y, cond, tick, graphs)
    network = PieceNetwork(engine, plan, run, _device_of(y), tick, graphs)
    loop = _captured(graphs, run.tiles, partial(network, sigma=None))
    return Residual(loop(None, y=y, cond=cond), None, network.seam)


def _sampled(
    engine: Engine, plan: Plan, run: Pass, y: torch.Tensor, cond: Condition, tick: Tick, graphs: Graphs | None
) -> Residual:
    import torch

    from mrisr.diffusion.sampler import solve, solver_for
    from mrisr.ops.noise import normal_noise

    options = plan.options
    steps, samples = options.steps, options.samples
    count, total = 0, steps * samples

    def tick_all(fraction: float) -> None:
        tick(min(1.0, (count + fraction) / total))

    network = PieceNetwork(engine, plan, run, y.device, tick_all, graphs)
    limits = network.denoiser.sigma_min, network.denoiser.sigma_max
    solver, step_count = solver_for(steps, plan.model.few_steps, *limits)
    solver, cond = solver.to(y), cond.with_mode(SAMPLE, step_count)

    def loop(x, y, cond):
        def evaluate(x, sigma):
            nonlocal count
            x0 = network(x, sigma=sigma, y=y, cond=cond)
            count += 1
            return x0

        return solve(evaluate, x, solver)

    sample = _captured(graphs, run.tiles, loop)
    mean = spread = None
    for k in range(samples):
        x = normal_noise(y.shape, seed=options.seed, sample=k, device=y.device).mul_(solver.levels[0])
        x = sample(x, y=y, cond=cond)
        count = (k + 1) * steps  # a graph does not count
        tick_all(0.0)
        if mean is None:
            mean, spread = x, torch.zeros_like(x)
            continue
        delta = x - mean  # Welford: no difference of large squares
        mean += delta / (k + 1)
        spread += delta * (x - mean)
    return Residual(mean, None if samples == 1 else spread.div_(samples - 1).sqrt_(), network.seam)


def _device_of(y: Volume) -> torch.device | None:
    """None: an array."""
    return None if isinstance(y, np.ndarray) else y.device


class PieceNetwork:
    """(x or None, sigma, y, cond) -> x0 on the whole target grid, piece by piece; x None is the mean mode's zero.

    Attributes:
        seam: of the last evaluation.
    """

    def __init__(
        self, engine: Engine, plan: Plan, run: Pass, device: torch.device | None, tick: Tick, graphs: Graphs | None
    ) -> None:
        geometry, pieces = plan.geometry, run.tiles
        # The network knows slices along its last axis only; everything outside of here is in stored order.
        self.order, self.back = geometry.order, tuple(int(i) for i in np.argsort(geometry.order))
        self.pieces, self.tick, self.seam = pieces, tick, None
        network = engine.prepare(
            tuple(pieces.tile[i] for i in self.order),
            exact=pieces.kind == tiles.EXACT,
            spill=run.spill,
            tick=None if pieces.kind == "tiles" else tick,
        )
        if graphs is not None and pieces.kind == "tiles":
            network = partial(graphs.run, ("network", pieces.tile), network)
        self.denoiser = _denoiser(network, plan, device)
        # In the processed box only: it moves with the head, so that air around it changes nothing.
        self.inside = tuple(slice(a, min(b, n)) for a, b, n in zip(*pieces.box, pieces.shape))
        grid = [s.stop - s.start for s in self.inside], geometry.target.voxel_size, geometry.psf
        # What was displaced, or averaged over slices, has no band that is exact (so in training): its local mean stays.
        band = None if plan.displaced else band_matrices(*grid)
        self.band = None if band is None else _on_device(band, device)
        self.denoise, self.local_mean = plan.denoise, None
        if band is None or self.denoise:  # noise has no local mean: what the network would change there is brightness
            self.local_mean = _on_device(mean_matrices(*grid), device)
        self.weights = tiles.weights_on(pieces, device)

    def __call__(self, x, sigma, y: Volume, cond: Condition | np.ndarray) -> Volume:
        seams = tiles.Seams(self.pieces)
        run = partial(self._piece, x, sigma, y, cond)
        x0 = tiles.blend(self.pieces, run, zeros_like(y), self.tick, seams, self.weights)
        self.seam = seams.largest
        processed = x0[self.inside]
        processed[...] = outside_band(outside_band(processed, self.band, self.denoise), self.local_mean)
        return x0

    def _piece(self, x, sigma, y: Volume, cond: Condition | np.ndarray, start: tiles.Triple) -> Volume:
        if x is None:
            x0 = self.denoiser.mean(self._piece_of(y, start), self._condition(cond, start))
        else:
            x0 = self.denoiser(self._piece_of(x, start), sigma, self._piece_of(y, start), self._condition(cond, start))
        return permuted(x0[0, 0], self.back)

    def _piece_of(self, volume: Volume, start: tiles.Triple) -> Volume:
        return permuted(gather(volume, start, self.pieces.tile), self.order)[None, None]

    def _condition(self, cond: Condition | np.ndarray, start: tiles.Triple) -> Condition | np.ndarray:
        """Of a piece: the guidance there."""
        if isinstance(cond, np.ndarray) or cond.guidance is None:
            return cond
        size = self.pieces.tile
        bricks = [slice(start[i] // tiles.BRICK, (start[i] + size[i]) // tiles.BRICK) for i in self.order]
        return replace(cond, guidance=cond.guidance[(..., *bricks)].contiguous())


class _MeanOfArrays:
    """The mode "mean" of `mrisr.diffusion.precond.Denoiser` on arrays, without guidance."""

    def __init__(self, network: Network, scale: float) -> None:
        self.network, self.scale = network, np.float32(scale)

    def mean(self, y: np.ndarray, vector: np.ndarray) -> np.ndarray:
        coarse = (n // GUIDANCE_STRIDE for n in y.shape[2:])
        f = self.network(np.zeros_like(y), y, vector, np.zeros((1, GUIDANCE_CHANNELS, *coarse), np.float32))
        f *= self.scale
        return f


def _denoiser(network: Network, plan: Plan, device: torch.device | None):
    if device is None:
        return _MeanOfArrays(network, plan.model.mean_scale)
    from mrisr.diffusion.precond import Denoiser

    return Denoiser(network, plan.model.sigma_data)


def _on_device(matrices: Sequence[np.ndarray], device: torch.device | None) -> tuple:
    if device is None:
        return tuple(matrices)
    import torch

    return tuple(torch.as_tensor(m, device=device) for m in matrices)


def _captured(graphs: Graphs | None, pieces: tiles.TilePlan, loop: Callable) -> Callable:
    """loop(x, y=, cond=), through the graphs where there are any and one piece is all there is."""
    if graphs is None or pieces.kind != "whole":
        return loop
    import torch

    def run(x, y, cond):
        tensors = {f.name: getattr(cond, f.name) for f in fields(cond)}
        tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}

        def of_tensors(x, y, *parts):
            return loop(x, y=y, cond=replace(cond, **dict(zip(tensors, parts, strict=True))))

        return graphs.run(("loop", pieces.box), of_tensors, x, y, *tensors.values())

    return run
