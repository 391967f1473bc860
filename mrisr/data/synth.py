"""Synthetic volumes: random smooth label maps with random intensities (after SynthSR, Iglesias et al. 2021, and
SynthMorph, Hoffmann et al. 2022), so that a network learns edges and scanners rather than a few people."""

from __future__ import annotations

import numpy as np
import torch

from mrisr.data.sources import TrainingVolume
from mrisr.ops.resample import apply_axes, interpolation_matrix


def smooth_noise(shape, coarse: int, generator: torch.Generator) -> torch.Tensor:
    """Cubic-spline noise of unit variance at the nodes: [X, Y, Z], `coarse` control points along the longest axis."""
    nodes = [max(4, int(round(coarse * n / max(shape)))) for n in shape]
    noise = torch.randn(nodes, generator=generator)
    return apply_axes(noise, [interpolation_matrix(c, n, c / n, "bspline", 3) for c, n in zip(nodes, shape)])


def label_map(shape, labels: int, generator: torch.Generator) -> torch.Tensor:
    """Random regions of two scales, int64 [X, Y, Z]: large organs, folded by a finer field like a cortex is."""
    best = torch.full(tuple(shape), -np.inf)
    winner = torch.zeros(tuple(shape), dtype=torch.int64)
    for label in range(labels):
        coarse = int(torch.randint(5, 28, (1,), generator=generator))
        field = smooth_noise(shape, coarse, generator)
        better = field > best
        best = torch.where(better, field, best)
        winner[better] = label
    return winner


def synthetic_volume(shape=(128, 128, 128), *, seed: int, labels: int = 12) -> TrainingVolume:
    """A head-sized ellipsoid of random tissues with thin sheets, texture and soft borders; voxels of 1 mm.

    Deterministic by `seed`. Edges are blurred by about half a voxel (partial volume), as an acquisition would.
    """
    generator = torch.Generator().manual_seed(seed)
    tissue = label_map(shape, labels, generator)
    intensity = torch.rand(labels, generator=generator) * 0.9 + 0.1
    texture = torch.rand(labels, generator=generator) * 0.06
    grain = smooth_noise(shape, max(shape) // 3, generator)
    image = intensity[tissue] + texture[tissue] * grain
    # Sheets: the zero set of a smooth field, one to two voxels thick, like sulci and vessels.
    sheet = smooth_noise(shape, 16, generator).abs() < 0.05
    image[sheet] = float(torch.rand(1, generator=generator))
    radius = [(torch.arange(n) - (n - 1) / 2) / (0.47 * n) for n in shape]
    rr = radius[0][:, None, None] ** 2 + radius[1][None, :, None] ** 2 + radius[2][None, None, :] ** 2
    image = image * (rr + 0.1 * smooth_noise(shape, 6, generator) < 1)
    image = torch.nn.functional.avg_pool3d(image[None, None], 2, stride=1)[0, 0]
    return TrainingVolume.from_array(image.clamp_min(0).numpy(), (1.0, 1.0, 1.0), f"synthetic-{seed}")
