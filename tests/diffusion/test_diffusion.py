"""EDM: the table of coefficients, and samplers against a problem whose ODE has a closed form."""

import math

import pytest
import torch

from mrisr.diffusion.loss import edm_loss, edm_sigmas, mean_loss
from mrisr.diffusion.precond import Denoiser
from mrisr.diffusion.sampler import dpmpp_2m, heun
from mrisr.diffusion.schedule import karras_sigmas
from mrisr.errors import UsageError
from mrisr.nn.condition import Condition
from mrisr.physics.psf import AxisPSF

COND = Condition.of_acquisition((AxisPSF("kspace", 2.0),) * 3, (1, 1, 1), 0.01)


class Recorder(torch.nn.Module):
    def forward(self, x, y, vector, guidance, active=None):
        self.x, self.vector = x, vector
        return torch.full_like(y, 0.25)


def test_preconditioning_is_edms_table_1():
    net, sd = Recorder(), 0.08
    denoiser = Denoiser(net, sd)
    x, y, sigma = torch.randn(1, 1, 8, 8, 8), torch.randn(1, 1, 8, 8, 8), 0.3
    out = denoiser(x, sigma, y, COND)
    norm = math.sqrt(sigma**2 + sd**2)
    assert torch.allclose(net.x, x / norm, rtol=1e-5)
    assert torch.allclose(out, x * sd**2 / norm**2 + 0.25 * sigma * sd / norm, rtol=1e-5, atol=1e-7)


def test_the_mean_mode_starts_from_nothing_at_sigma_max():
    net = Recorder()
    denoiser = Denoiser(net, 0.1)
    denoiser.mean(torch.randn(1, 1, 8, 8, 8), COND)
    assert not net.x.any() and net.vector[0, 1] == 0
    assert float(net.vector[0, 0]) == pytest.approx(math.log(40) / 4)


def test_a_perfect_network_has_no_loss():
    class Perfect(torch.nn.Module):
        sigma_data = 0.1

        def forward(self, x, sigma, y, cond, active=None):
            return y

    target = torch.randn(3, 1, 4, 4, 4)
    sigma = edm_sigmas(3, 0.1, torch.Generator().manual_seed(0))
    assert float(edm_loss(Perfect(), target, target, None, sigma, torch.randn_like(target))) == 0
    assert float(mean_loss(target, target + 0.1, 0.1)) == pytest.approx(1.0, rel=1e-4)


def test_schedule():
    sigmas = karras_sigmas(5, 0.002, 4.0)
    assert len(sigmas) == 6 and float(sigmas[0]) == pytest.approx(4.0) and sigmas[-1] == 0
    assert float(sigmas[-2]) == pytest.approx(0.002) and bool((sigmas.diff() < 0).all())
    assert karras_sigmas(1, 0.1, 2.0).tolist() == pytest.approx([2.0, 0.0])
    with pytest.raises(UsageError, match="at least 1"):
        karras_sigmas(0, 0.1, 1.0)
    with pytest.raises(UsageError, match="sigma_min < sigma_max"):
        karras_sigmas(3, 1.0, 0.1)


def gaussian_error(sampler, steps, mu=0.3, s=0.5, top=10.0):
    """Data N(mu, s^2): D = mu + s^2 / (s^2 + sigma^2) (x - mu); the ODE scales x - mu by sqrt(s^2 + sigma^2)."""
    x = torch.linspace(-20, 20, 41, dtype=torch.float64)

    def denoise(x, sigma):
        return mu + s**2 / (s**2 + sigma**2) * (x - mu)

    low = 0.02
    sigmas = karras_sigmas(steps, low, top)
    found = sampler(denoise, x, sigmas)
    at_low = mu + (x - mu) * math.sqrt((s**2 + low**2) / (s**2 + top**2))
    exact = denoise(at_low, low)  # both samplers end with one step to D at the last level
    return float((found - exact).abs().max())


@pytest.mark.parametrize("sampler", [heun, dpmpp_2m])
def test_samplers_converge_at_second_order(sampler):
    coarse, fine = gaussian_error(sampler, 20), gaussian_error(sampler, 40)
    assert fine < 0.02 and coarse / fine > 2.8


@pytest.mark.parametrize("sampler", [heun, dpmpp_2m])
def test_one_step_is_the_denoiser(sampler):
    x = torch.randn(4)
    assert torch.allclose(sampler(lambda x, sigma: 0.5 * x, x, karras_sigmas(1, 0.1, 2.0)), 0.5 * x)


def test_evaluations_per_step():
    for sampler, expected in ((heun, 2 * 6 - 1), (dpmpp_2m, 6)):
        calls = []
        sampler(lambda x, sigma, calls=calls: calls.append(sigma) or 0.9 * x, torch.ones(2), karras_sigmas(6, 0.1, 2.0))
        assert len(calls) == expected
