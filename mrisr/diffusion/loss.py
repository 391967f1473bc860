"""Training losses of the two modes: noise levels, and what a squared error of the residual is multiplied by."""

from __future__ import annotations

import torch


def edm_sigmas(n: int, sigma_data: float, generator: torch.Generator) -> torch.Tensor:
    """Training noise levels [N]: ln(sigma / sigma_data) ~ N(0.3, 1.4^2), wide enough to reach 40 sigma_data."""
    return sigma_data * torch.exp(0.3 + 1.4 * torch.randn(n, generator=generator))


def edm_weight(sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """Weight [N] of mode "sample" (Karras et al. 2022, equation 108): one over c_out squared, so that an error of the
    network's own output counts the same at every noise level."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def mean_weight(n: int, sigma_data: float) -> torch.Tensor:
    """Weight [N] of mode "mean": squared error in units of sigma_data^2, whose minimiser is the posterior mean."""
    return torch.full((n,), 1 / sigma_data**2)
