"""Synthetic heads: label maps in random colours (after SynthSeg, Billot et al. 2023, and SynthSR, Iglesias et al.
2021), and random shapes where there are no maps (SynthMorph, Hoffmann et al. 2022).

A network learns unlimited contrasts, real folds, sharp borders and targets without noise from them; real texture it
learns from scans.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from mrisr.data.crops import coarser, random_window, reoriented
from mrisr.data.labels import BRIGHT, DARK, RENEWAL, VESSEL, LabelVolume, smooth_noise
from mrisr.data.scanners import uniform
from mrisr.data.volumes import TrainingVolume
from mrisr.ops.resample import apply_axes

FINEST = 1.07  # times the coarsest voxel of a map: the finest grid that is drawn, so that steps become partial volume
COARSEST = 1.25  # mm
SOFT = (0.35, 0.6)  # voxels of the map: blur of its steps
GRAIN = 160  # voxels along the bank of texture


@lru_cache(maxsize=1)
def texture_bank() -> torch.Tensor:
    """Texture of unit variance, float32 [160, 160, 160]: fine grain, and patches of two and of six voxels."""
    generator = torch.Generator().manual_seed(5)
    total = torch.zeros((GRAIN,) * 3)
    for coarse, share in ((GRAIN // 2, 0.6), (GRAIN // 6, 0.4)):
        total += share * smooth_noise(total.shape, coarse, generator)
    total += 0.5 * torch.randn(total.shape, generator=generator)
    return total / total.std()


def label_crop(volume: LabelVolume, size: int, order: list[int], rng: np.random.Generator, head: torch.Tensor):
    """[size]^3 of a head in random colours, noise-free, about 1 at the brightest tissue: its axes in `order`, flipped.

    Args:
        head: labels of `volume.head`.
    """
    largest = max(volume.voxel_size)
    voxel = uniform(rng, FINEST * largest, max(COARSEST, 1.4 * largest))
    zooms = [voxel * uniform(rng, 0.92, 1.08) / v for v in volume.voxel_size]
    spans = [int(np.ceil(size * z)) for z in zooms]
    labels = random_window(head, spans, volume.centres, rng)
    mean, spread = random_colours(rng)
    index = labels.to(torch.int32)
    image = mean[index]
    start = [int(rng.integers(max(1, GRAIN - s + 1))) for s in spans]
    grain = texture_bank()
    for axis, (first, span) in enumerate(zip(start, spans)):
        if first + span > GRAIN:
            grain = grain.index_select(axis, torch.arange(span) % GRAIN)
        else:
            grain = grain.narrow(axis, first, span)
    image.addcmul_(spread[index], grain.to(image.device))
    image = apply_axes(image, [coarser(s, size, z, uniform(rng, *SOFT)) for s, z in zip(spans, zooms)])
    return reoriented(image.clamp_min_(0), order, rng)


def random_colours(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, standard deviation) of the intensity of each of 256 labels; 0 outside, about 1 at the brightest."""
    few = int(rng.integers(3, 12))  # tissues share a class, as they do in a scan
    classes = 0.05 + 0.95 * rng.random(few)
    mean = classes[rng.integers(few, size=256)] * (1 + 0.12 * rng.standard_normal(256))
    mean[VESSEL] = rng.choice([1.1, 0.05])
    mean[BRIGHT], mean[DARK] = uniform(rng, 0.8, 1.3), uniform(rng, 0.0, 0.35)
    spread = rng.uniform(0.0, 0.08) * rng.random(256) * np.maximum(mean, 0.1)
    mean[0] = spread[0] = 0
    return torch.from_numpy(mean.clip(0, 1.4)).float(), torch.from_numpy(spread).float()


def shape_map(shape, labels: int, generator: torch.Generator) -> torch.Tensor:
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
    tissue = shape_map(shape, labels, generator)
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


def head_epoch(index: int) -> int:
    """Which of its persons a label map is at a pair. The pairs that measure the residual (`mrisr.train.teacher`) lie
    far away, and see those of the first pairs."""
    return index // RENEWAL % 2**20
