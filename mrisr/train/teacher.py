"""What one training step of a directly trained network is: a teacher's, and the base student's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mrisr.data.patches import Batch, PatchSampler
from mrisr.data.scanners import ScannerClass
from mrisr.diffusion.loss import edm_sigmas, edm_weight, mean_weight
from mrisr.diffusion.precond import SIGMA_MAX_RATIO
from mrisr.nn.vector import MEAN, SAMPLE
from mrisr.train.batches import Draws

PROBES = 256  # pairs that measure the residual before training


@dataclass(frozen=True)
class ResidualPower:
    """Mean square of the residual: over all scanners, and of each class that was met."""

    overall: float
    of_class: dict[ScannerClass, float]

    def state(self) -> dict[str, float]:
        """As a checkpoint holds it: by the names of the classes, and "" for all of them."""
        return {**{str(kind): value for kind, value in self.of_class.items()}, "": self.overall}

    @classmethod
    def from_state(cls, table: dict[str, float]) -> ResidualPower:
        """ValueError where a name is no scanner class."""
        return cls(table[""], {ScannerClass.parse(name): value for name, value in table.items() if name})


def measure_residual(sampler: PatchSampler, patch: int = 32) -> tuple[float, ResidualPower]:
    """(sigma_data, power of the residual per scanner class), from fixed pairs far from those trained on."""
    sums: dict[ScannerClass, list[float]] = {}
    for index in range(PROBES):
        probe = Batch.of([sampler.pair(2**40 + index, patch)])
        sums.setdefault(probe.kinds[0], []).append(float(probe.target.square().mean()))
    overall = float(np.mean([v for values in sums.values() for v in values]))
    # Few pairs of a class say little: shrink towards the overall mean.
    of_class = {k: (sum(v) + 2 * overall) / (len(v) + 2) for k, v in sums.items()}
    return overall**0.5, ResidualPower(overall, of_class)


def class_weights(kinds: Sequence[ScannerClass], power: ResidualPower) -> torch.Tensor:
    """Weights [N] that make a relative gain worth the same for every scanner class (a dB is a dB).

    They depend on the class only, never on the pair, so that the minimiser stays the posterior mean.
    """
    return torch.tensor([power.overall / power.of_class.get(kind, power.overall) for kind in kinds])


def step_loss(
    denoiser,
    batch: Batch,
    power: ResidualPower,
    *,
    sigma_data: float,
    mode: int,
    draws: Draws,
    loss: str = "l2",
) -> torch.Tensor:
    """The loss of one batch in one mode; `denoiser` may be wrapped (DDP). `loss` is that of the mean mode."""
    weight = class_weights(batch.kinds, power).to(batch.y.device)
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
