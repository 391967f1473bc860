"""What of a scan is head: one rule for every question that is asked, all of normalised intensities (air near 0, the
brightest tissue 1).

    certain             voxels that are tissue beyond doubt      intensity scale, noise, chi^2, bias field, training
    tissue              the head, dark parts included            where the network's answer counts (`mrisr.infer.fade`)
    masked_background   what somebody has cut out                what keeps its exact value
    bricks              bricks of the target that hold tissue    where the network runs (`mrisr.infer.tiles`)

What group-norm sees (`mrisr.nn.active`) is a part of the network, and the mask of the protocol
(`mrisr.evaluate.masks`) is none of these, so that no method is judged by a rule of its own.

`tissue` and `masked_background` look at the scan's own grid. These and `bricks` are the same in Python and libmrisr,
and run in the native core (csrc/core/foreground.cpp); without it, in SciPy and PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrisr import native
from mrisr.ops import arrays

if TYPE_CHECKING:
    import torch

CERTAIN = 0.15  # of the intensity scale: above the noise of air, below the darkest tissue that matters
# Local means (3^3 voxels) of normalised intensity. Below the first is air, whatever its noise; above CERTAIN, tissue.
# Between them: what is above so many times the level of the air at the field of view's faces (its noise, by which a
# mean of 27 voxels strays by a quarter at most), and connected to certain tissue.
DARKEST, OVER_AIR = 0.04, 1.6
# A masked background is so much of the volume at least, and so much of it lies inside of it: scattered zeros in the
# noise of air do not.
BACKGROUND_SHARE, BACKGROUND_SOLID = 0.005, 0.8
BRICK = 8  # voxels of the target grid: the network's coarsest level is 1/8 of it
# Normalised intensity: a brick is air where its mean is below AIR and its largest voxel below BRIGHT times that.
AIR, BRIGHT = 0.075, 4
FEWEST_NEIGHBOURS = 3  # of 26; a brick with fewer is a speck of noise

_CUBE = np.ones((3, 3, 3), bool)
_FACES = np.add.reduce(np.abs(np.indices((3, 3, 3)) - 1)) <= 1  # a voxel and its six neighbours


@dataclass(frozen=True)
class Background:
    """Voxels that hold one exact value because somebody has written it there: `mask` bool [X, Y, Z], and the value."""

    mask: np.ndarray
    value: float


def certain(normalised: torch.Tensor | np.ndarray) -> torch.Tensor | np.ndarray:
    """Voxels of normalised intensity that are tissue beyond doubt: bool, same kind and shape."""
    return normalised > CERTAIN


def bricks(normalised: torch.Tensor | np.ndarray, threads: int = 1) -> np.ndarray:
    """Bricks of 8^3 voxels that hold tissue: bool, ceil(shape / 8).

    normalised: [X, Y, Z], air at 0, tissue near 1.

    A brick counts by its mean or by its largest voxel (a thin bright rim); bricks with fewer than 3 such
    neighbours of 26 are specks of noise. What is left is grown by one brick, so that dark tissue at a rim is
    kept.
    """
    v = arrays.in_memory(normalised)
    if v is None:
        return _bricks(normalised)
    out, spare = (np.empty([-(-n // BRICK) for n in v.shape], np.uint8) for _ in range(2))
    rule = (BRICK, AIR, BRIGHT * AIR, FEWEST_NEIGHBOURS)
    native.module().bricks(out.ctypes.data, spare.ctypes.data, v.ctypes.data, v.shape, *rule, threads)
    return out.view(bool)


def tissue(normalised: np.ndarray, open_axes=(True, True, True), threads: int = 1) -> np.ndarray:
    """Where the head is, and one voxel around it: uint8 [X, Y, Z], 0 in the air around that. Its holes are head.

    Args:
        normalised: float32 [X, Y, Z], air near 0 and tissue up to 1; a scan with nothing certain is all head.
        open_axes: stored axes at whose ends air may lie. Not those of slices: the dark part of a head that is cut there
            is not air.
    """
    v = np.ascontiguousarray(normalised, np.float32)
    if native.reason() is not None:
        return _tissue(v, open_axes)
    out, spare, mean = np.empty(v.shape, np.uint8), np.empty(v.shape, np.uint8), np.empty_like(v)
    rule = (DARKEST, CERTAIN, OVER_AIR)
    native.module().tissue(
        out.ctypes.data, v.ctypes.data, v.shape, tuple(open_axes), *rule, mean.ctypes.data, spare.ctypes.data, threads
    )
    return out


def masked_background(data: np.ndarray) -> Background | None:
    """The exact zeros around a head, or the value that most voxels of the field of view's faces have; else None.

    Skull-stripped and defaced scans have one, and scans whose edges were filled. All of it that is connected to a
    solid part of it counts.
    """
    v = np.ascontiguousarray(data, np.float32)
    if native.reason() is not None:
        return _masked_background(v)
    mask, queue = np.empty(v.shape, np.uint8), np.empty(v.shape, np.uint32)
    voxels, first = native.module().masked_background(
        mask.ctypes.data, v.ctypes.data, v.shape, BACKGROUND_SHARE, BACKGROUND_SOLID, queue.ctypes.data
    )
    return Background(mask.view(bool), float(v.flat[first])) if voxels else None


def without_foreign_value(data: np.ndarray, background: Background) -> np.ndarray:
    """`data`, but a background of -1024 or 1e6, that no voxel of the head comes near, is as dark as the head's darkest.

    Interpolation would draw the head's rim towards it.
    """
    low, high = (float(bound) for bound in (data[~background.mask].min(), data[~background.mask].max()))
    if low <= background.value <= high or (background.value == 0 and low >= 0):
        return data
    return np.where(background.mask, np.float32(low), data)


def _faces(shape, open_axes) -> np.ndarray:
    marked = np.zeros(shape, bool)
    for axis in np.flatnonzero(open_axes):
        np.moveaxis(marked, axis, 0)[[0, -1]] = True
    return marked


def _bricks(normalised: torch.Tensor | np.ndarray) -> np.ndarray:
    import torch
    import torch.nn.functional as F

    normalised = torch.as_tensor(normalised)
    pad = [p for n in reversed(normalised.shape) for p in (0, -n % BRICK)]
    v = F.pad(normalised[None], pad, mode="replicate")[0]
    cells = v.reshape(*(k for n in v.shape for k in (n // BRICK, BRICK)))
    hit = (cells.mean(dim=(1, 3, 5)) > AIR) | (cells.amax(dim=(1, 3, 5)) > BRIGHT * AIR)
    neighbours = F.avg_pool3d(F.pad(hit[None, None].float(), (1,) * 6), 3, stride=1) * 27
    occupied = (hit[None, None] & (neighbours > FEWEST_NEIGHBOURS + 0.5)).float()
    return F.max_pool3d(occupied, 3, stride=1, padding=1)[0, 0].cpu().numpy() > 0


def _tissue(v: np.ndarray, open_axes) -> np.ndarray:
    from scipy import ndimage  # here: the core needs none, nor has every machine one

    mean = ndimage.uniform_filter(v, 3, mode="nearest")
    faces = [np.moveaxis(mean, axis, 0)[[0, -1]].ravel() for axis in np.flatnonzero(open_axes)]
    dark = np.concatenate([np.empty(0, np.float32), *faces])
    dark = dark[(dark >= 0) & (dark < CERTAIN)]
    level = np.clip(OVER_AIR * np.median(dark) if dark.size else 0.0, DARKEST, CERTAIN)
    certain = mean > CERTAIN
    if not certain.any():
        return np.ones(v.shape, np.uint8)
    head = ndimage.binary_propagation(certain, _FACES, mask=mean > level)
    air = ndimage.binary_propagation(_faces(v.shape, open_axes) & ~head, _FACES, mask=~head)
    return ndimage.binary_dilation(~air, _CUBE).astype(np.uint8)


def _masked_background(v: np.ndarray) -> Background | None:
    from scipy import ndimage  # here: the core needs none, nor has every machine one

    faces = _faces(v.shape, (True, True, True))
    values, counts = np.unique(v[faces], return_counts=True)
    commonest = float(values[counts.argmax()])
    candidates = [0.0] if commonest == 0 or counts.max() <= 0.5 * counts.sum() else [0.0, commonest]
    for value in candidates:
        same = v == value
        mask = ndimage.binary_propagation(ndimage.binary_erosion(same, _CUBE, border_value=1), _FACES, mask=same)
        solid = (ndimage.binary_erosion(mask, _FACES, border_value=1)).sum() >= BACKGROUND_SOLID * mask.sum()
        if (mask & faces).any() and BACKGROUND_SHARE * mask.size <= mask.sum() < mask.size and solid:
            return Background(mask, value)
    return None
