"""Crops of fine volumes: from a scan, on the grid that it truly resolves or a coarser one, in a random contrast."""

from __future__ import annotations

import numpy as np
import torch

from mrisr.data.scanners import uniform
from mrisr.data.volumes import TrainingVolume
from mrisr.ops.resample import apply_axes, fourier_matrix


def scan_crop(volume: TrainingVolume, size: int, order: list[int], rng: np.random.Generator) -> torch.Tensor:
    """[size]^3 of a scan, its axes in `order`, flipped at random.

    Its grid is as coarse as what each axis truly resolves, or coarser: a coarser "fine" grid has less noise and other
    proportions, and scans differ in both.
    """
    true = np.asarray(volume.true_mm)
    slack = max(1.0, min(1.6, 1.15 / float(true.min())))
    zoom = 1.0 if rng.random() < 0.4 else uniform(rng, 1.0, max(slack, 1.25))
    zooms = [float(t / v) * (zoom if fine else 1.0) for t, v, fine in zip(true, volume.voxel_size, volume.fine_axes)]
    spans = [int(np.ceil(size * z)) for z in zooms]
    x = random_window(volume.data, spans, volume.centres, rng)
    if max(zooms) > 1:
        x = apply_axes(x, [coarser(s, size, z) for s, z in zip(spans, zooms)])
    return reoriented(x, order, rng)


def random_window(x: torch.Tensor, spans: list[int], centres: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """`spans` voxels of a volume about one of its `centres`; a shorter volume is continued by its border."""
    centre = centres[int(rng.integers(len(centres)))].numpy()
    for axis, (span, n) in enumerate(zip(spans, x.shape)):
        start = int(np.clip(centre[axis] + int(rng.integers(-8, 9)) - span // 2, 0, max(0, n - span)))
        index = torch.arange(start, start + span, device=x.device).clamp(max=n - 1)
        x = x.index_select(axis, index) if start + span > n else x.narrow(axis, start, span)
    return x


def reoriented(x: torch.Tensor, order: list[int], rng: np.random.Generator) -> torch.Tensor:
    """`x` with its axes in `order`, each flipped or not."""
    return x.permute(order).flip([i for i in range(3) if rng.random() < 0.5]).contiguous()


def coarser(span: int, size: int, zoom: float, softness: float = 0.0) -> np.ndarray | None:
    """The matrix [size, span] to voxels `zoom` times as long: what they cannot hold is cut off, and with `softness`
    (standard deviation in voxels of the span) blurred before."""
    if zoom == 1.0 and not softness:
        return None
    positions = 0.5 * ((span - 1) - (size - 1) * zoom) + zoom * np.arange(size)
    return fourier_matrix(span, positions, lambda f: (f < 0.5 / zoom) * np.exp(-2.0 * (np.pi * softness * f) ** 2))


def random_contrast(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A random map of normalised intensities: the scan's own with a gamma, a monotone piecewise-linear one, or (1 in
    8) any piecewise-linear one that keeps air dark."""
    draw = rng.random()
    gain = uniform(rng, 0.75, 1.25)
    if draw < 0.5:
        # Odd in x, so that what noise or ringing put below zero stays there.
        return torch.copysign(gain * x.abs().pow_(uniform(rng, 0.8, 1.25)), x)
    knots = np.linspace(0, 1.5, 7)
    if draw < 0.875:
        steps = 0.15 + rng.random(6) ** 2
        values = np.concatenate([[0], np.cumsum(steps)])
    else:
        values = np.concatenate([[0], rng.random(6)])
    values = gain * values / max(values[:5].max(), 1e-3)
    # Written as hinge functions: exact at the knots, continues straight beyond them, keeps the sign of noise in air.
    slopes = np.diff(values) / np.diff(knots)
    out = float(slopes[0]) * x
    for knot, before, after in zip(knots[1:-1], slopes[:-1], slopes[1:]):
        out.add_((x - float(knot)).clamp_min_(0), alpha=float(after - before))
    return out
