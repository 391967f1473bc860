"""EDM preconditioning of the residual x = HR - y (Karras et al. 2022, arXiv 2206.00364, table 1)."""

from __future__ import annotations

import torch
from torch import nn

SIGMA_MAX_RATIO = 40.0  # sigma_max / sigma_data
SIGMA_MIN_RATIO = 0.02  # sigma_min / sigma_data


def mean_constants(sigma_data: float) -> tuple[float, float]:
    """What mode "mean" needs of the preconditioning: (log(sigma / sigma_data), c_out) at sigma_max, in float32."""
    sigma = torch.full((1,), SIGMA_MAX_RATIO * sigma_data, dtype=torch.float32)
    return float(torch.log(sigma / sigma_data)), float(coefficients(sigma, sigma_data)[1])


def coefficients(sigma: torch.Tensor, sigma_data: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(c_skip, c_out, c_in) for sigma of any shape."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total.rsqrt()


class Denoiser(nn.Module):
    """denoise(x, sigma, y, cond) -> x0, around a raw network F.

    D(x; sigma) = c_skip x + c_out F(c_in x, y, vector), with
    c_skip = sd^2 / (s^2 + sd^2), c_out = s sd / sqrt(s^2 + sd^2), c_in = 1 / sqrt(s^2 + sd^2).

    Attributes:
        net: `mrisr.nn.unet.UNet` or anything with its interface.
        sigma_data: standard deviation of the residual, normalised intensities.
    """

    def __init__(self, net: nn.Module, sigma_data: float):
        super().__init__()
        self.net = net
        self.sigma_data = float(sigma_data)

    @property
    def sigma_max(self) -> float:
        return SIGMA_MAX_RATIO * self.sigma_data

    @property
    def sigma_min(self) -> float:
        return SIGMA_MIN_RATIO * self.sigma_data

    def forward(self, x, sigma, y, cond, active=None):
        """x, y: [N, 1, D, H, W]; sigma: float or [N]; cond: a `mrisr.nn.condition.Condition`. Returns x0 like x."""
        c_skip, c_out, _ = self._coefficients_at(sigma, y)[1]
        return c_skip * x + c_out * self.output(x, sigma, y, cond, active).to(x.dtype)

    def output(self, x, sigma, y, cond, active=None):
        """F alone, the network's raw output."""
        sigma, (_, _, c_in) = self._coefficients_at(sigma, y)
        vector = cond.vector(sigma, self.sigma_data)
        return self.net(c_in * x, y, vector, cond.guidance_for(y.shape[2:]), active)

    def _coefficients_at(self, sigma, y):
        if not isinstance(sigma, torch.Tensor):  # written by a kernel: a copy from the host would be waited for
            sigma = torch.full((), float(sigma), device=y.device)
        sigma = sigma.to(device=y.device, dtype=torch.float32).expand(y.shape[0])
        return sigma, tuple(c[:, None, None, None, None] for c in self.coefficients(sigma))

    def coefficients(self, sigma: torch.Tensor):
        """(c_skip, c_out, c_in) for sigma of any shape."""
        return coefficients(sigma, self.sigma_data)

    def mean(self, y, cond, active=None):
        """The posterior mean of the residual: one step from x = 0 at sigma_max, no noise anywhere."""
        sigma = torch.full(y.shape[:1], self.sigma_max, dtype=torch.float32, device=y.device)
        vector = cond.with_mode(0).vector(sigma, self.sigma_data)
        nothing = y.new_zeros(1).expand(y.shape)  # a zero volume that takes no memory
        f = self.net(nothing, y, vector, cond.guidance_for(y.shape[2:]), active)
        c_out = self.coefficients(sigma)[1][:, None, None, None, None]
        return f.to(y.dtype).mul_(c_out) if torch.is_inference_mode_enabled() else c_out * f.to(y.dtype)
