"""From the start y to the residual: the network on the pieces of a plan, the solver's steps, the samples.

Everything the loop needs lies on the device before it starts, and with one piece it waits for nothing. On a CUDA device
the loop over one piece, or else the network on a tile, may therefore run as a CUDA graph (`mrisr.infer.graph`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import numpy as np
import torch

from mrisr.diffusion.precond import Denoiser
from mrisr.diffusion.sampler import solve, solver_for
from mrisr.infer import tiles
from mrisr.nn.condition import SAMPLE, Condition
from mrisr.ops.noise import normal_noise
from mrisr.ops.tiles import gather
from mrisr.physics.degrade import band_matrices, mean_matrices, outside_band


def residual(job, plan: tiles.TilePlan, y: torch.Tensor, cond: Condition, report: Callable[[float], None]):
    """(mean residual over the samples, their standard deviation or None).

    Args:
        job: a `mrisr.infer.pipeline.Job`.
        y: [X, Y, Z], the normalised start on the target grid.
        report: called with the fraction done.
    """
    options, base = job.options, job.model.denoiser
    if options.mode == "mean":
        denoise = _denoiser(job, plan, y.device, report)
        return _by_graph(job, plan, partial(denoise, sigma=None))(None, y=y, cond=cond), None
    done, total = 0, options.steps * options.samples

    def tick(fraction):
        report(min(1.0, (done + fraction) / total))

    denoise = _denoiser(job, plan, y.device, tick)
    few = job.model.meta.get("few_steps", ())
    solver, told = solver_for(options.steps, few, base.sigma_min, base.sigma_max)
    solver, cond = solver.to(y), cond.with_mode(SAMPLE, told)

    def loop(x, y, cond):
        def step(x, sigma):
            nonlocal done
            x0 = denoise(x, sigma=sigma, y=y, cond=cond)
            done += 1
            return x0

        return solve(step, x, solver)

    run = _by_graph(job, plan, loop)
    mean = spread = None
    for k in range(options.samples):
        x = normal_noise(y.shape, seed=options.seed, sample=k, device=y.device).mul_(solver.levels[0])
        x = run(x, y=y, cond=cond)
        done = (k + 1) * options.steps  # a graph does not count
        tick(0.0)
        if mean is None:
            mean, spread = x, torch.zeros_like(x)
            continue
        delta = x - mean  # Welford: no difference of large squares
        mean += delta / (k + 1)
        spread += delta * (x - mean)
    if options.samples == 1:
        return mean, None
    return mean, spread.div_(options.samples - 1).sqrt_()


def _denoiser(job, plan: tiles.TilePlan, device: torch.device, tick) -> Callable:
    """denoise(x or None, sigma, y, cond) -> x0 on the whole target grid; x None stands for the mean mode's zero."""
    # The network knows slices along its last axis only; everything outside of here is in stored order.
    order, back = job.order, tuple(int(i) for i in np.argsort(job.order))
    how = {}
    if job.engine.name == "torch" and plan.kind != "tiles":
        how = {"exact": plan.kind == tiles.EXACT, "spill": job.spill, "tick": tick}
    network = job.engine.prepare(tuple(plan.tile[i] for i in order), **how)
    if job.graphs is not None and plan.kind == "tiles":
        network = partial(job.graphs.run, ("network", plan.tile), network)
    denoise = Denoiser(network, job.model.denoiser.sigma_data)

    # In the processed box only: it moves with the head, so that air around it changes nothing.
    inside = tuple(slice(a, min(b, n)) for a, b, n in zip(*plan.box, plan.shape))
    grid = [s.stop - s.start for s in inside], job.target.voxel_size, job.psf
    # What was displaced, or averaged over slices, has no band that is exact (so in training): its local mean is kept.
    band = None if job.options.corrections.displaces else band_matrices(*grid)
    band = tuple(torch.as_tensor(m, device=device) for m in band or mean_matrices(*grid))
    weights = tiles.weights_on(plan, device)

    def shown(volume, start):
        return gather(volume, start, plan.tile).permute(order).contiguous()[None, None]

    def told(cond, start):
        if cond.guidance is None:
            return cond
        bricks = [slice(start[i] // tiles.BRICK, (start[i] + plan.tile[i]) // tiles.BRICK) for i in order]
        return replace(cond, guidance=cond.guidance[(..., *bricks)].contiguous())

    def run(x, sigma, y, cond):
        def piece(start):
            if x is None:
                found = denoise.mean(shown(y, start), told(cond, start))
            else:
                found = denoise(shown(x, start), sigma, shown(y, start), told(cond, start))
            return found[0, 0].permute(back).contiguous()

        seams = tiles.Seams(plan)
        found = tiles.blend(plan, piece, torch.zeros_like(y), tick, seams, weights)
        job.seam = seams.largest
        processed = found[inside]
        processed.copy_(outside_band(processed, band))
        return found

    return run


def _by_graph(job, plan: tiles.TilePlan, loop: Callable) -> Callable:
    """loop(x, y=, cond=), through the job's graphs where it has any and one piece is all there is."""
    if job.graphs is None or plan.kind != "whole":
        return loop

    def run(x, y, cond):
        names = [f.name for f in fields(cond) if isinstance(getattr(cond, f.name), torch.Tensor)]

        def of_tensors(x, y, *parts):
            return loop(x, y=y, cond=replace(cond, **dict(zip(names, parts, strict=True))))

        return job.graphs.run(("loop", plan.box), of_tensors, x, y, *(getattr(cond, name) for name in names))

    return run
