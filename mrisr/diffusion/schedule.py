"""Noise levels of the sampler (Karras et al. 2022, equation 5)."""

from __future__ import annotations

import torch

from mrisr.errors import UsageError


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> torch.Tensor:
    """Decreasing noise levels, float64 [steps + 1]: sigma_max first, then down to sigma_min, and 0 last.

    With one step: [sigma_max, 0].
    """
    return _levels(torch.linspace(0, 1, max(1, steps), dtype=torch.float64), steps, sigma_min, sigma_max, rho)


def nested_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> torch.Tensor:
    """Decreasing noise levels, float64 [steps + 1], of a distilled student: 0 last, from where `karras_sigmas` would
    have sigma_min.

    Every second level of 2n steps is a level of n steps, so that one step of a student is two of its teacher
    (Salimans and Ho 2022, arXiv 2202.00512), and no step is spent on sigma_min, where nothing is left to remove.
    """
    return _levels(torch.arange(steps, dtype=torch.float64) / max(1, steps), steps, sigma_min, sigma_max, rho)


def _levels(ramp, steps: int, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    if steps < 1:
        raise UsageError(f"steps: expected at least 1, found {steps}")
    if not 0 < sigma_min < sigma_max:
        raise UsageError(f"sigmas: expected 0 < sigma_min < sigma_max, found {sigma_min}, {sigma_max}")
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])
