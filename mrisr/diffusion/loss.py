"""Training losses of the two modes."""

from __future__ import annotations

import torch


def mean_loss(predicted: torch.Tensor, target: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """Squared error of the residual in units of sigma_data^2: its minimiser is the posterior mean."""
    return ((predicted - target) / sigma_data).square().mean()


def edm_sigmas(n: int, sigma_data: float, generator: torch.Generator) -> torch.Tensor:
    """Training noise levels [N]: ln(sigma / sigma_data) ~ N(0.3, 1.4^2), wide enough to reach 40 sigma_data."""
    return sigma_data * torch.exp(0.3 + 1.4 * torch.randn(n, generator=generator))


def edm_loss(denoiser, target, y, cond, sigma, noise, active=None) -> torch.Tensor:
    """Denoising loss with EDM's weight (Karras et al. 2022, equation 108): unit weight on the network's own output.

    target, y, noise: [N, 1, D, H, W]; sigma: [N].
    """
    predicted = denoiser(target + sigma[:, None, None, None, None] * noise, sigma, y, cond, active)
    sd = denoiser.sigma_data
    weight = (sigma**2 + sd**2) / (sigma * sd) ** 2
    return (weight * (predicted - target).square().mean(dim=(1, 2, 3, 4))).mean()
