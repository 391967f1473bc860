"""A scan to learn from, normalised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mrisr.data.labels import spread_points
from mrisr.errors import InputError
from mrisr.physics.foreground import CERTAIN, certain
from mrisr.physics.intensity import estimate_noise, intensity_scale
from mrisr.physics.psf import THICK_SLICE_RATIO

MASKED = 0.1  # of the voxels, of one same lowest value


@dataclass(frozen=True)
class TrainingVolume:
    """A fine volume to learn from.

    Attributes:
        data: float32 [X, Y, Z], normalised by `intensity_scale`.
        voxel_size: mm, 3 values.
        true_mm: what each axis truly resolves, the voxel size or more; nothing is degraded from less.
        fine_axes: which axes are fine enough to be degraded (the slice axis of a 2D scan is not).
        centres: int64 [K, 3], foreground voxels to centre patches on.
        name: for messages.
        noise: standard deviation / intensity scale of the scan's own noise.
        masked: the background is one constant: somebody has cut it out.
    """

    data: torch.Tensor
    voxel_size: tuple[float, float, float]
    true_mm: tuple[float, float, float]
    fine_axes: tuple[bool, bool, bool]
    centres: torch.Tensor
    name: str
    noise: float
    masked: bool

    @classmethod
    def from_array(cls, data: np.ndarray, voxel_size, name: str, true_mm=None) -> TrainingVolume:
        """From a scan [X, Y, Z]; true_mm None: what its voxels say."""
        offset, scale = intensity_scale(data)
        normalised = torch.from_numpy(((data - offset) / scale).astype(np.float32))
        inside = spread_points(certain(normalised))
        if not len(inside):
            raise InputError(f"{name}: no voxel is above {CERTAIN:.0%} of the intensity scale; nothing to learn from")
        return cls.of(normalised, voxel_size, voxel_size if true_mm is None else true_mm, inside, name)

    @classmethod
    def of(cls, data: torch.Tensor, voxel_size, true_mm, centres: torch.Tensor, name: str) -> TrainingVolume:
        """From normalised intensities; what follows from them and the resolution is worked out here."""
        true = tuple(map(float, true_mm))
        fine = tuple(bool(t < THICK_SLICE_RATIO * min(true)) for t in true)
        masked = float((data == data.min()).float().mean()) > MASKED
        noise = estimate_noise(data) or 0.0
        return cls(data, tuple(map(float, voxel_size)), true, fine, centres, name, noise, masked)
