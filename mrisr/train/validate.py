"""Deterministic validation on people who are not trained on: the protocol's kinds of scans on a central block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mrisr import grid as grids
from mrisr.data.volumes import TrainingVolume
from mrisr.diffusion.sampler import solve, solver_for
from mrisr.evaluate import metrics
from mrisr.evaluate.cases import TRAINING, Case
from mrisr.nn.condition import Condition
from mrisr.nn.vector import SAMPLE
from mrisr.ops.noise import normal_noise
from mrisr.ops.resample import apply_axes, interpolation_matrix
from mrisr.physics.degrade import (
    SLICE_KINDS,
    ForwardModel,
    band_matrices,
    coarse_grid,
    degrade,
    outside_band,
    start_matrices,
)
from mrisr.physics.foreground import certain
from mrisr.physics.intensity import estimate_noise
from mrisr.physics.psf import AxisPSF

BLOCK, MARGIN = 96, 16
SAMPLED = ("iso2", "thick4")  # cases on which numbers of steps are validated


@dataclass(frozen=True)
class Block:
    """A validation case on the middle of one volume.

    target, y and cubic (its error) are [1, 1, B, B, B]; mask like them; data_range a number;
    band of `band_matrices`; edge: cycles per voxel that the scan reaches along each axis.
    """

    name: str
    target: torch.Tensor
    y: torch.Tensor
    cubic: torch.Tensor
    mask: torch.Tensor
    cond: Condition
    data_range: float
    band: tuple | None
    edge: tuple[float, float, float]

    def psnr(self, error: torch.Tensor) -> float:
        """PSNR in the mask, dB, of an image with this error."""
        return float(10 * torch.log10(self.data_range**2 / error[self.mask].square().mean()))

    def gain(self, predicted: torch.Tensor) -> float:
        """PSNR of a residual above that of cubic interpolation, dB."""
        return self.psnr(self.target - predicted) - self.psnr(self.cubic)

    def beyond(self, predicted: torch.Tensor) -> tuple[float, float]:
        """Beyond what the scan acquired: (area of the Fourier shell correlation, amplitude over the reference's).

        An amplitude that falls while the PSNR rises is over-smoothing; one above 1 is invention.
        """
        reference, image, mask = ((v[0, 0].cpu()) for v in (self.y + self.target, self.y + predicted, self.mask))
        area = metrics.fsc(reference, image, mask, band=self.edge).area
        inner = tuple(slice(n // 8, n - n // 8) for n in reference.shape)
        band = _beyond_filter(reference[inner].shape, self.edge)
        power = [
            float((torch.fft.rfftn(v[inner] - v[inner].mean()).abs().square() * band).sum()) for v in (image, reference)
        ]
        return area, (power[0] / max(power[1], 1e-12)) ** 0.5


def validation_cases(volumes: list[TrainingVolume], block: int = BLOCK, seed: int = 7, families=()) -> list[Block]:
    """Every case of `TRAINING` of every volume; volumes smaller than the block and its margin are taken whole.

    families: of scanners (`mrisr.data.scanners.FAMILIES`), the cases of these alone, unless there are none; () for all.
    """
    some = [case for case in TRAINING.values() if not families or _families(case) & set(families)]
    return [_block(volume, case, block, seed) for volume in volumes for case in some or TRAINING.values()]


def _families(case: Case) -> set[str]:
    """Which a case stands for."""
    return {"slice"} if any(kind in SLICE_KINDS for kind in case.profile) else {"iso", "aniso"}


def _block(volume: TrainingVolume, case: Case, block: int, seed: int) -> Block:
    shape = volume.data.shape
    spans = [min(n, block + 2 * MARGIN) for n in shape]
    x = volume.data[tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(shape, spans))]
    hr = grids.Grid(tuple(x.shape), np.eye(4))
    psf = tuple(AxisPSF(kind, float(f)) for kind, f in zip(case.profile, case.factor))
    lr = coarse_grid(hr, case.factor)
    model = ForwardModel.between(hr.shape, (1, 1, 1), lr.shape, lr.voxel_size, psf)
    median = float(x[certain(x)].median())
    generator = torch.Generator().manual_seed(seed)
    scan = degrade(x, model, noise_sigma=case.noise * median, generator=generator)
    y = apply_axes(scan, start_matrices(lr.shape, lr.voxel_size, hr.shape, (1, 1, 1), psf))
    cubic = apply_axes(
        scan,
        [interpolation_matrix(m, n, 1 / v, "bspline", 3) for m, n, v in zip(lr.shape, hr.shape, lr.voxel_size)],
    )
    inner = [(s - min(block, s // 8 * 8)) // 2 for s in spans]
    core = tuple(slice(i, i + min(block, s // 8 * 8)) for i, s in zip(inner, spans))
    x, y, cubic = (v[core][None, None] for v in (x, y, cubic))
    cond = Condition.of_acquisition(psf, (1, 1, 1), estimate_noise(scan), stored=lr.voxel_size)
    reference_range = float(np.percentile(x.numpy(), 99.9))
    band = band_matrices(x.shape[2:], (1, 1, 1), psf)
    edge = tuple(0.5 / max(1.0, float(f)) for f in case.factor)
    name = f"{volume.name.split('.')[0]}/{case.name}"
    return Block(name, x - y, y, x - cubic, certain(x), cond, reference_range, band, edge)


def _beyond_filter(shape, edge) -> torch.Tensor:
    """1 where a coefficient of `rfftn` lies beyond `edge`, twice where it stands for two, else 0."""
    axes = [torch.fft.fftfreq(n).abs() for n in shape[:2]] + [torch.fft.rfftfreq(shape[2])]
    outside = [a > e + metrics.BAND_GUARD for a, e in zip(axes, edge)]
    mask = outside[0][:, None, None] | outside[1][None, :, None] | outside[2][None, None, :]
    return mask * torch.where((axes[2] > 0) & (axes[2] < 0.5), 2.0, 1.0)


def reconstructed(denoiser, case: Block) -> torch.Tensor:
    """The posterior mean of a case, on the CPU."""
    device = next(denoiser.parameters()).device
    residual = denoiser.mean(case.y.to(device), case.cond.to(device)).float().cpu()
    return outside_band(residual, case.band)


@torch.no_grad()
def validate(denoiser, cases: list[Block]) -> dict[str, float]:
    """Gain of the posterior mean over cubic, dB, per case, with "mean" and "worst"; and the means of what lies beyond
    the acquired band, "fsc" and "amplitude" (`Block.beyond`), the early signs of over-smoothing."""
    gains, beyond = {}, []
    for case in cases:
        predicted = reconstructed(denoiser, case)
        gains[case.name] = case.gain(predicted)
        beyond.append(case.beyond(predicted))
    values = list(gains.values())
    fsc, amplitude = (float(np.mean(v)) for v in zip(*beyond))
    return {**gains, "mean": float(np.mean(values)), "worst": float(min(values)), "fsc": fsc, "amplitude": amplitude}


@torch.no_grad()
def sample(denoiser, case: Block, steps: int, few_steps=(), seed: int = 0) -> torch.Tensor:
    """A sample of a case in `steps` steps, as inference draws it; `few_steps`: what the network was distilled to."""
    device = next(denoiser.parameters()).device
    solver, step_count = solver_for(steps, few_steps, denoiser.sigma_min, denoiser.sigma_max)
    y, cond = case.y.to(device), case.cond.to(device).with_mode(SAMPLE, step_count)
    band = None if case.band is None else tuple(torch.as_tensor(m, device=device) for m in case.band)
    x = normal_noise(y.shape[2:], seed=seed, device=device)[None, None] * solver.levels[0]
    return solve(lambda x, sigma: outside_band(denoiser(x, sigma, y, cond).float(), band), x, solver).cpu()


def validate_samples(denoiser, cases: list[Block], counts) -> dict[str, float]:
    """For each number of steps, over the cases SAMPLED: "steps2/gain" (dB over cubic), "steps2/fsc" and
    "steps2/amplitude"."""
    figures = {}
    selection = [case for case in cases if case.name.rpartition("/")[2] in SAMPLED]
    for steps in counts if selection else ():
        rows = [(case.gain(x), *case.beyond(x)) for case in selection for x in [sample(denoiser, case, steps, counts)]]
        for name, values in zip(("gain", "fsc", "amplitude"), zip(*rows)):
            figures[f"steps{steps}/{name}"] = float(np.mean(values))
    return figures
