"""EDM: the table of coefficients, and samplers against a problem whose ODE has a closed form."""

import math
from dataclasses import replace

import pytest
import torch

from mrisr.diffusion.loss import edm_sigmas, edm_weight, mean_weight
from mrisr.diffusion.precond import Denoiser
from mrisr.diffusion.sampler import ddim_solver, dpmpp_2m, heun, solve, solver_for
from mrisr.diffusion.schedule import karras_sigmas, nested_sigmas
from mrisr.errors import UsageError
from mrisr.nn.condition import Condition
from mrisr.ops.noise import normal_noise
from mrisr.physics.psf import AxisPSF

COND = Condition.of_acquisition((AxisPSF("kspace", 2.0),) * 3, (1, 1, 1), 0.01, stored=(2, 2, 2))


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


def test_weights_make_every_noise_level_count_the_same():
    denoiser, sigma = Denoiser(torch.nn.Identity(), 0.1), edm_sigmas(64, 0.1, torch.Generator().manual_seed(0))
    assert sigma.max() / sigma.min() > 100
    c_out = denoiser.coefficients(sigma)[1]
    assert torch.allclose(edm_weight(sigma, 0.1) * c_out**2, torch.ones(64), rtol=1e-5)
    # Mode "mean" is the limit of large sigma: all of the residual is the network's own output.
    assert torch.allclose(edm_weight(torch.tensor([1e4]), 0.1), mean_weight(1, 0.1), rtol=1e-5)


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


def textbook_2m(denoise, x, sigmas):
    """Lu et al. 2022, algorithm 2, as written there: in the half log-SNR lambda = -log sigma."""
    before, step_before = None, None
    for sigma, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist()):
        x0 = denoise(x, sigma)
        if following == 0:
            return x0
        step = math.log(sigma / following)
        ratio = None if before is None else step_before / step
        corrected = x0 if before is None else (1 + 1 / (2 * ratio)) * x0 - 1 / (2 * ratio) * before
        x = following / sigma * x - math.expm1(-step) * corrected
        before, step_before = x0, step
    return x


def textbook_heun(denoise, x, sigmas):
    for sigma, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist()):
        slope = (x - denoise(x, sigma)) / sigma
        euler = x + (following - sigma) * slope
        if following > 0:
            other = (euler - denoise(euler, following)) / following
            euler = x + (following - sigma) * (slope + other) / 2
        x = euler
    return x


@pytest.mark.parametrize(("sampler", "textbook"), [(dpmpp_2m, textbook_2m), (heun, textbook_heun)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_tables_are_the_textbook(sampler, textbook, steps):
    x = 2.0 * torch.randn(9, 10, 11, generator=torch.Generator().manual_seed(0))

    def denoise(x, sigma):
        return torch.tanh(x / (1 + sigma))

    for low, dtype, tolerance in ((0.001, torch.float64, 1e-12), (0.05, torch.float32, 1e-6)):
        whole = karras_sigmas(steps, low, 2.0)
        for sigmas in (whole, whole[:-1]):  # to zero, and stopped before
            found, expected = sampler(denoise, x.to(dtype), sigmas), textbook(denoise, x.to(dtype), sigmas)
            # Rounding is that of numbers as large as the start.
            assert found.dtype == dtype and float((found - expected).abs().max() / x.abs().max()) < tolerance


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_the_product_s_solver_holds_x0_to_what_the_first_noise_reaches(steps):
    """Nothing changes where no x0 is larger; one that went astray is held, also by the last step, and infinities are
    not hidden."""
    plan, told = solver_for(steps, (1, 4), 0.002, 3.0)
    assert plan.limit == 3.0 and told == (0 if steps == 7 else steps)
    x = 3.0 * normal_noise((3, 4, 5), seed=2)

    def calm(x, sigma):
        return 0.1 * torch.tanh(x)

    torch.testing.assert_close(solve(calm, x, plan), solve(calm, x, replace(plan, limit=None)), rtol=0, atol=0)
    astray = [solve(lambda x, sigma, v=value: torch.full_like(x, v), x, plan) for value in (50.0, -50.0, math.inf)]
    assert (astray[0] <= 3.0 + 1e-5).all() and (astray[1] >= -3.0 - 1e-5).all()
    assert not astray[2].isfinite().any()


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_sde_has_the_marginals_of_the_data(eta):
    mu, s, shape = 0.3, 0.5, (40, 40, 40)

    def denoise(x, sigma):
        return mu + s**2 / (s**2 + sigma**2) * (x - mu)

    sigmas = karras_sigmas(30, 0.02, 10.0)
    start = mu + math.hypot(10.0, s) * normal_noise(shape, seed=1)
    found = dpmpp_2m(denoise, start, sigmas, eta=eta, seed=1).double()
    assert float(found.mean()) == pytest.approx(mu, abs=0.01) and float(found.std()) == pytest.approx(s, abs=0.01)
    again = dpmpp_2m(denoise, start, sigmas, eta=eta, seed=1).double()
    other = dpmpp_2m(denoise, start, sigmas, eta=eta, seed=1, sample=1).double()
    assert torch.equal(found, again) and float((found - other).abs().mean()) > 0.1


def test_nested_levels_are_every_second_of_twice_as_many():
    for steps in (1, 2, 4, 8):
        coarse, fine = nested_sigmas(steps, 0.02, 40.0), nested_sigmas(2 * steps, 0.02, 40.0)
        torch.testing.assert_close(coarse, fine[::2], rtol=1e-12, atol=0)
        assert float(coarse[0]) == pytest.approx(40) and float(coarse[-1]) == 0
    with pytest.raises(UsageError, match="steps"):
        nested_sigmas(0, 0.02, 40.0)


def test_ddim_steps_follow_the_ode_to_first_order():
    """D(x, s) = x / (1 + s^2): the ODE has x(0) = x / sqrt(1 + s^2)."""
    x = torch.ones(1, 1, 2, 2, 2, dtype=torch.float64)
    errors = []
    for steps in (64, 128):
        sigmas = nested_sigmas(steps, 1e-3, 10.0)
        found = solve(lambda x, sigma: x / (1 + sigma**2), x, ddim_solver(sigmas))
        errors.append(abs(float(found.mean()) - 1 / math.sqrt(101)))
    assert errors[1] < 0.6 * errors[0] < 0.02
