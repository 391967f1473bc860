"""Samplers of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma.

`heun` and `dpmpp_2m` are pure functions of (denoise, x, sigmas): denoise(x, sigma) -> x0 with the conditioning already
bound, x the starting noise sigma_0 * normal, sigmas from `mrisr.diffusion.schedule`. Each returns the sample x at
sigma = 0. Every step is linear in x, x0, the x0 before and noise, so a sampler is a table of coefficients (a `Solver`)
and one loop, `solve`, over the operator `mrisr.ops.sampling.sampler_step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from mrisr.diffusion.schedule import karras_sigmas, nested_sigmas
from mrisr.ops.sampling import clocks, sampler_step

Denoise = Callable[[torch.Tensor, float], torch.Tensor]


@dataclass(frozen=True)
class Solver:
    """What a sampler computes.

    Attributes:
        levels: sigma of every evaluation of the denoiser.
        table: [evaluations, 4], the rows of `mrisr.ops.sampling.sampler_step`; float64 until `to`.
        clocks: int64 [evaluations, 3]; with noise, sample and seed decide its numbers.
        noise: the last column is used.
        to_zero: the last evaluation is the result; its step is left out where nothing is clamped.
        limit: x0 is held to [-limit, limit]; None: it is not.
    """

    levels: tuple[float, ...]
    table: torch.Tensor
    clocks: torch.Tensor
    noise: bool
    to_zero: bool
    limit: float | None = None

    @classmethod
    def of_rows(cls, levels, rows, to_zero: bool, sample: int = 0, seed: int = 0) -> Solver:
        """rows: (a, b, c, d) of every evaluation, for a denoiser that gives x0."""
        table = torch.tensor(list(rows), dtype=torch.float64)
        noise = any(row[3] != 0 for row in rows)
        return cls(tuple(levels), table, clocks(len(table), sample=sample, seed=seed), noise, to_zero)

    def to(self, like: torch.Tensor) -> Solver:
        """The same with its table and clocks where `like` is, in its dtype: `solve` then copies nothing."""
        return replace(self, table=self.table.to(like), clocks=self.clocks.to(like.device))


def heun_solver(sigmas) -> Solver:
    """Second-order Heun steps (Karras et al. 2022, algorithm 1 without churn); the last, to 0, is Euler's.

    With r = following / sigma the first half is x' = r x + (1 - r) x0. The second needs x no more: eliminated, it is
    x'' = x' + (1 - r) / (2 r) (x0' - x0).
    """
    sigmas = [float(s) for s in sigmas]
    levels, rows = [], []
    for sigma, following in zip(sigmas[:-1], sigmas[1:]):
        r = following / sigma
        levels.append(sigma)
        rows.append((r, 1 - r, 0.0, 0.0))
        if following > 0:
            half = 0.5 * (1 - r) / r
            levels.append(following)
            rows.append((1.0, half, -half, 0.0))
    return Solver.of_rows(levels, rows, sigmas[-1] == 0)


def ddim_solver(sigmas) -> Solver:
    """First-order steps (Song et al. 2021, arXiv 2010.02502, equation 12): those that step halving teaches."""
    sigmas = [float(s) for s in sigmas]
    ratios = [following / sigma for sigma, following in zip(sigmas[:-1], sigmas[1:])]
    return Solver.of_rows(sigmas[:-1], [(r, 1 - r, 0.0, 0.0) for r in ratios], sigmas[-1] == 0)


def dpmpp_2m_solver(sigmas, *, eta: float = 0.0, sample: int = 0, seed: int = 0) -> Solver:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order, one evaluation a step.

    eta: 0 is the ODE; 1 the reverse SDE of the same marginals (their section 6, SDE-DPM-Solver++), with the noise of
    (seed, sample, step, voxel).
    """
    sigmas = [float(s) for s in sigmas]
    rows, before = [], None
    for sigma, following in zip(sigmas[:-1], sigmas[1:]):
        if following == 0:
            rows.append((0.0, 1.0, 0.0, 0.0))
            break
        step = math.log(sigma / following)
        gain = -math.expm1(-(1 + eta) * step)
        weight = 0.0 if before is None else step / (2 * before)
        rows.append(
            (
                following / sigma * math.exp(-eta * step),
                gain * (1 + weight),
                -gain * weight,
                following * math.sqrt(-math.expm1(-2 * eta * step)),
            )
        )
        before = step
    return Solver.of_rows(sigmas[: len(rows)], rows, sigmas[-1] == 0, sample, seed)


def solver_for(steps: int, few_steps, sigma_min: float, sigma_max: float) -> tuple[Solver, int]:
    """(solver, n) for `steps` steps of a network that was distilled to the numbers of steps in `few_steps`.

    x0 is held to what the first step's noise reaches: no residual is larger, and one evaluation that went astray then
    spoils its own step only. What overflowed stays infinite, and is seen.

    n is the number of steps that the network has to be told of (`Condition.steps`): `steps` where it was distilled to
    them, 0 where it is a denoiser of the ODE.
    """
    if steps in few_steps:
        return replace(ddim_solver(nested_sigmas(steps, sigma_min, sigma_max)), limit=sigma_max), steps
    return replace(dpmpp_2m_solver(karras_sigmas(steps, sigma_min, sigma_max)), limit=sigma_max), 0


def solve(evaluate: Denoise, x: torch.Tensor, solver: Solver) -> torch.Tensor:
    """Run a solver; evaluate(x, sigma) gives x0.

    On a GPU nothing here waits for it, and where the solver was moved there beforehand, nothing is copied to it: the
    loop can be captured in a CUDA graph.
    """
    solver, before = solver.to(x), None
    bounds = None if solver.limit is None else (-solver.limit, solver.limit)
    for step, level in enumerate(solver.levels):
        answer = evaluate(x, level)
        if solver.to_zero and bounds is None and step == len(solver.levels) - 1:
            return answer
        how = dict(before=before, clamp=bounds, noise=solver.noise)
        x, before = sampler_step(x, answer, solver.table, solver.clocks[step], **how)
    return x


def heun(denoise: Denoise, x: torch.Tensor, sigmas) -> torch.Tensor:
    """See `heun_solver`."""
    return solve(denoise, x, heun_solver(sigmas))


def dpmpp_2m(denoise: Denoise, x: torch.Tensor, sigmas, *, eta: float = 0.0, sample: int = 0, seed: int = 0):
    """See `dpmpp_2m_solver`."""
    return solve(denoise, x, dpmpp_2m_solver(sigmas, eta=eta, sample=sample, seed=seed))
