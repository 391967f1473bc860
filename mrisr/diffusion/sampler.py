"""Deterministic samplers of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma.

Pure functions of (denoise, x, sigmas): denoise(x, sigma) -> x0 with the conditioning already bound, x the starting
noise sigma_0 * normal, sigmas from `mrisr.diffusion.schedule`. Each returns the sample x at sigma = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

Denoise = Callable[[torch.Tensor, float], torch.Tensor]


def heun(denoise: Denoise, x: torch.Tensor, sigmas) -> torch.Tensor:
    """Second-order Heun steps (Karras et al. 2022, algorithm 1 without churn); the last, to 0, is Euler's."""
    sigmas = [float(s) for s in sigmas]
    for sigma, following in zip(sigmas[:-1], sigmas[1:]):
        slope = (x - denoise(x, sigma)) / sigma
        predicted = x + (following - sigma) * slope
        if following > 0:
            slope = 0.5 * (slope + (predicted - denoise(predicted, following)) / following)
            predicted = x + (following - sigma) * slope
        x = predicted
    return x


def dpmpp_2m(denoise: Denoise, x: torch.Tensor, sigmas) -> torch.Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order, one evaluation a step."""
    sigmas = [float(s) for s in sigmas]
    before, step_before = None, None
    for sigma, following in zip(sigmas[:-1], sigmas[1:]):
        x0 = denoise(x, sigma)
        if following == 0:
            return x0
        step = math.log(sigma / following)
        corrected = x0
        if before is not None:
            weight = step / (2 * step_before)
            corrected = (1 + weight) * x0 - weight * before
        x = (following / sigma) * x - math.expm1(-step) * corrected
        before, step_before = x0, step
    return x
