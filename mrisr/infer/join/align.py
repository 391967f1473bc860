"""Stacks of one head on one footing: where each shows what the reference shows, in the reference's intensities.

What does not belong together is refused by name: series of volumes, stacks that share too little of the head, or whose
pictures do not agree once they are aligned (another contrast, another head). `force` joins them all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mrisr.errors import InputError
from mrisr.infer.join.register import Picture, common_width, picture, register
from mrisr.infer.join.together import Together
from mrisr.ops.resample import resample3d
from mrisr.physics.degrade import SLICE_KINDS
from mrisr.physics.intensity import Scale, estimate_noise, estimate_slice_noise, robust_scale
from mrisr.physics.psf import PSF
from mrisr.volume import Volume

LEAST_OVERLAP = 1 / 3  # of the smaller head of two stacks: so much of it both show
# Correlation of two stacks within the head, at one resolution. Stacks of one head and contrast have 0.98 or more
# (benchmarks/results/join.json); whole heads of two adults of one study 0.83, another contrast less.
LEAST_CORRELATION = 0.9
NOISE_UNKNOWN = 0.02  # of the intensity scale, where a stack has too little foreground to tell
LEAST_NOISE = 2e-3  # a stack that shows none is believed no further than this


@dataclass(frozen=True, eq=False)
class Aligned:
    """One stack on the reference's footing.

    Attributes:
        volume: as it came, 3D.
        psf: of its own axes.
        values: float32 [x, y, z], in the normalised intensities of the reference.
        noise: standard deviation, in the same.
        motion: [4, 4], mm to mm: where it shows what the reference shows at a point.
        correlation, overlap: with the reference; 1 of the reference itself.
        gain: what its voxels were multiplied by to be as bright as the reference's.
    """

    volume: Volume
    psf: PSF
    values: torch.Tensor
    noise: float
    motion: np.ndarray
    correlation: float
    overlap: float
    gain: float


def align(
    volumes: Sequence[Volume], psfs: Sequence[PSF], how: Together, threads: int | None
) -> tuple[list[Aligned], Scale, list[str]]:
    """(the stacks, the intensity scale of the reference, warnings).

    Raises InputError where a stack does not fit, unless `how.force`.
    """
    scales = [robust_scale(v.data) for v in volumes]
    values = [(torch.from_numpy(v.data) - s.offset).div_(s.scale) for v, s in zip(volumes, scales)]
    width = common_width(psfs)
    pictures = [picture(lr, v.grid, psf, width) for lr, v, psf in zip(values, volumes, psfs)]
    fixed, aligned, messages = pictures[how.reference], [], []
    for k, (volume, psf, lr, own, scale) in enumerate(zip(volumes, psfs, values, pictures, scales)):
        same = k == how.reference
        motion, agreement = np.eye(4), Agreement(1.0, 1.0, 1.0)
        if not same:
            apart = _apart(volume, volumes, how)
            _check(Agreement.of(fixed, own, motion).overlap >= LEAST_OVERLAP, how, messages, apart)
            if how.registered:
                motion = register(fixed, own, threads)
            agreement = Agreement.of(fixed, own, motion)
            _check(agreement.overlap >= LEAST_OVERLAP, how, messages, apart)
            alike = agreement.correlation >= LEAST_CORRELATION
            _check(alike, how, messages, _unlike(volume, volumes, how, agreement.correlation))
        noise = noise_of(lr, psf) * agreement.gain
        gain = agreement.gain * scales[how.reference].scale / scale.scale
        fit = agreement.correlation, agreement.overlap, gain
        aligned.append(Aligned(volume, psf, lr.mul_(agreement.gain), noise, motion, *fit))
    return aligned, scales[how.reference], messages


def noise_of(lr: torch.Tensor, psf: PSF) -> float:
    """Standard deviation of a stack's noise, normalised: the smaller of what its cells and its planes say, for anatomy
    only adds to either. Planes that were zero-filled or blurred hide noise: at least half of what the cells say."""
    sigma = estimate_noise(lr)
    sigma = NOISE_UNKNOWN if sigma is None else sigma
    slices = [axis for axis in range(3) if psf[axis].kind in SLICE_KINDS]
    of_planes = estimate_slice_noise(lr, slices[0]) if len(slices) == 1 else None
    if of_planes is not None:
        sigma = min(sigma, max(of_planes, sigma / 2))
    return max(LEAST_NOISE, sigma)


@dataclass(frozen=True)
class Agreement:
    """Of two pictures: the share of the smaller head that both show, the correlation there, and what the second is to
    be multiplied by to be as bright as the first."""

    overlap: float
    correlation: float
    gain: float

    @classmethod
    def of(cls, fixed: Picture, moving: Picture, motion: np.ndarray) -> Agreement:
        """motion: [4, 4] mm to mm, from the first to the second."""
        index = np.linalg.inv(moving.grid.affine) @ motion @ fixed.grid.affine
        there = resample3d(torch.from_numpy(moving.values), fixed.grid.shape, index, order=1).numpy()
        at = np.argwhere(fixed.head) @ index[:3, :3].T + index[:3, 3]
        inside = np.zeros(fixed.head.shape, bool)
        inside[fixed.head] = ((at >= -0.5) & (at <= np.array(moving.grid.shape) - 0.5)).all(axis=1)
        voxels = [np.prod(p.grid.voxel_size) for p in (fixed, moving)]
        smaller = min(fixed.head.sum() * voxels[0], moving.head.sum() * voxels[1])
        overlap = float(min(1.0, inside.sum() * voxels[0] / max(smaller, 1e-9)))
        a, b = (v[inside].astype(np.float64) for v in (fixed.values, there))
        if len(a) < 2 or not (a.std() > 0 and b.std() > 0):
            return cls(overlap, 0.0, 1.0)
        return cls(overlap, float(np.corrcoef(a, b)[0, 1]), max(1e-3, float(a @ b / (b @ b))))


def _check(holds: bool, how: Together, messages: list[str], text: str) -> None:
    if holds:
        return
    if not how.force:
        raise InputError(f"{text}; leave it out, or force the join")
    messages.append(f"{text}: joined all the same")


def _apart(volume: Volume, volumes: Sequence[Volume], how: Together) -> str:
    name = volumes[how.reference].name
    return f"{volume.name}: does not overlap {name} by a third of the head (are their headers of one session?)"


def _unlike(volume: Volume, volumes: Sequence[Volume], how: Together, correlation: float) -> str:
    name = volumes[how.reference].name
    return (
        f"{volume.name}: is unlike {name}, correlation {correlation:.2f} within the head and at least "
        f"{LEAST_CORRELATION:g} expected of one head in one contrast"
    )
