"""What one training step of a directly trained network is: a teacher's, and the base student's."""

from __future__ import annotations

import numpy as np
import torch

from mrisr.data.patches import Batch, PatchSampler
from mrisr.diffusion.loss import edm_sigmas, edm_weight, mean_weight
from mrisr.diffusion.precond import SIGMA_MAX_RATIO
from mrisr.nn.condition import MEAN, SAMPLE
from mrisr.train.batches import Draws

PROBES = 256  # pairs that measure the residual before training


def measure_residual(sampler: PatchSampler, patch: int = 32) -> tuple[float, dict[str, float]]:
    """(sigma_data, mean square of the residual per scanner class), from fixed pairs far from those trained on."""
    sums: dict[str, list[float]] = {}
    for index in range(PROBES):
        probe = Batch.of([sampler.pair(2**40 + index, patch)])
        sums.setdefault(probe.kinds[0], []).append(float(probe.target.square().mean()))
    overall = float(np.mean([v for values in sums.values() for v in values]))
    # Few pairs of a class say little: shrink towards the overall mean.
    table = {k: (sum(v) + 2 * overall) / (len(v) + 2) for k, v in sums.items()}
    return overall**0.5, {**table, "": overall}


def class_weights(kinds, table: dict[str, float]) -> torch.Tensor:
    """Weights [N] that make a relative gain worth the same for every scanner class (a dB is a dB).

    They depend on the class only, never on the pair, so that the minimiser stays the posterior mean.
    """
    return torch.tensor([table[""] / table.get(kind, table[""]) for kind in kinds])


def step_loss(
    denoiser, batch: Batch, table, *, sigma_data: float, mode: int, draws: Draws, loss: str = "l2"
) -> torch.Tensor:
    """The loss of one batch in one mode; `denoiser` may be wrapped (DDP). `loss` is that of the mean mode."""
    weight = class_weights(batch.kinds, table).to(batch.y.device)
    cond = batch.cond.with_mode(mode)
    n = len(batch.kinds)
    if mode == MEAN:
        sigma = torch.full((n,), SIGMA_MAX_RATIO * sigma_data)
        x, gain = torch.zeros_like(batch.target), mean_weight(n, sigma_data)
    else:
        assert mode == SAMPLE
        sigma = torch.cat([edm_sigmas(1, sigma_data, g) for g in draws.generators(1)])
        x = batch.target + sigma.to(batch.target)[:, None, None, None, None] * draws.normal(batch.target)
        gain = edm_weight(sigma, sigma_data)
    predicted = denoiser(x, sigma.to(batch.y.device), batch.y, cond)
    error = batch.outside_band(predicted.float()) - batch.target
    return weighed(error, weight, gain, loss if mode == MEAN else "l2")


def weighed(error: torch.Tensor, weight: torch.Tensor, gain: torch.Tensor, loss: str = "l2") -> torch.Tensor:
    """Mean over a batch of errors [N, 1, D, H, W], squared ("l2") or absolute ("l1"); weight, gain: [N], of squares."""
    if loss == "l1":
        error, weight, gain = error.abs(), weight.sqrt(), gain.sqrt()
    else:
        error = error.square()
    return (weight * gain.to(weight) * error.mean(dim=(1, 2, 3, 4))).mean()
