"""Deterministic validation on people who are not trained on: the protocol's kinds of scans on a central block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mrisr import grid as grids
from mrisr.data.sources import TrainingVolume
from mrisr.nn.condition import Condition
from mrisr.ops.resample3d import apply_axes, interpolation_matrix
from mrisr.physics.degrade import ForwardModel, band_matrices, coarse_grid, degrade, outside_band, start_matrices
from mrisr.physics.intensity import estimate_noise, foreground_mask
from mrisr.physics.psf import AxisPSF

BLOCK, MARGIN = 96, 16
# name: (factor per axis, kind per axis, noise / median)
CASES = {
    "iso2": ((2, 2, 2), ("kspace",) * 3, 0.0),
    "iso2n": ((2, 2, 2), ("kspace",) * 3, 0.02),
    "thick4": ((1, 1, 4), ("kspace", "kspace", "gaussian"), 0.0),
    "iso1p5": ((1.5, 1.5, 1.5), ("kspace",) * 3, 0.0),
    "mix": ((1.3, 1.3, 5), ("kspace", "kspace", "gaussian"), 0.015),
}


@dataclass(frozen=True)
class Case:
    """One validation scan: target, y and cubic (its error) are [1, 1, B, B, B]; mask like them; data_range a number;
    band of `band_matrices`."""

    name: str
    target: torch.Tensor
    y: torch.Tensor
    cubic: torch.Tensor
    mask: torch.Tensor
    cond: Condition
    data_range: float
    band: tuple | None

    def psnr(self, error: torch.Tensor) -> float:
        """PSNR in the mask, dB, of an image with this error."""
        return float(10 * torch.log10(self.data_range**2 / error[self.mask].square().mean()))


def validation_cases(volumes: list[TrainingVolume], block: int = BLOCK, seed: int = 7) -> list[Case]:
    """Every case of every volume; volumes smaller than the block and its margin are taken whole."""
    cases = []
    for volume in volumes:
        for name, (factor, kinds, noise) in CASES.items():
            cases.append(_case(volume, f"{volume.name.split('.')[0]}/{name}", factor, kinds, noise, block, seed))
    return cases


def _case(volume, name, factor, kinds, noise, block, seed) -> Case:
    shape = volume.data.shape
    spans = [min(n, block + 2 * MARGIN) for n in shape]
    x = volume.data[tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(shape, spans))]
    hr = grids.Grid(tuple(x.shape), np.eye(4))
    psf = tuple(AxisPSF(kind, float(f)) for kind, f in zip(kinds, factor))
    lr = coarse_grid(hr, factor)
    model = ForwardModel.between(hr.shape, (1, 1, 1), lr.shape, lr.voxel_size, psf)
    median = float(x[foreground_mask(x)].median())
    generator = torch.Generator().manual_seed(seed)
    scan = degrade(x, model, noise_sigma=noise * median, generator=generator)
    y = apply_axes(scan, start_matrices(lr.shape, lr.voxel_size, hr.shape, (1, 1, 1), psf))
    cubic = apply_axes(
        scan,
        [interpolation_matrix(m, n, 1 / v, "bspline", 3) for m, n, v in zip(lr.shape, hr.shape, lr.voxel_size)],
    )
    inner = [(s - min(block, s // 8 * 8)) // 2 for s in spans]
    core = tuple(slice(i, i + min(block, s // 8 * 8)) for i, s in zip(inner, spans))
    x, y, cubic = (v[core][None, None] for v in (x, y, cubic))
    cond = Condition.of_acquisition(psf, (1, 1, 1), estimate_noise(scan))
    reference_range = float(np.percentile(x.numpy(), 99.9))
    band = band_matrices(x.shape[2:], (1, 1, 1), psf)
    return Case(name, x - y, y, x - cubic, foreground_mask(x), cond, reference_range, band)


@torch.no_grad()
def validate(denoiser, cases: list[Case]) -> dict[str, float]:
    """Gain of the posterior mean over cubic, dB, per case, with "mean" and "worst"."""
    gains = {}
    for case in cases:
        predicted = outside_band(denoiser.mean(case.y, case.cond).float(), case.band)
        gains[case.name] = case.psnr(case.target - predicted) - case.psnr(case.cubic)
    values = list(gains.values())
    return {**gains, "mean": float(np.mean(values)), "worst": float(min(values))}
