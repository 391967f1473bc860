"""Noise levels of the sampler (Karras et al. 2022, equation 5)."""

from __future__ import annotations

import torch

from mrisr.errors import UsageError


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> torch.Tensor:
    """Decreasing noise levels, float64 [steps + 1]: sigma_max first, then down to sigma_min, and 0 last.

    With one step: [sigma_max, 0].
    """
    if steps < 1:
        raise UsageError(f"steps: expected at least 1, found {steps}")
    if not 0 < sigma_min < sigma_max:
        raise UsageError(f"karras_sigmas: expected 0 < sigma_min < sigma_max, found {sigma_min}, {sigma_max}")
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])
