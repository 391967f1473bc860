"""Intensity scale and noise level of a scan: robust, undone exactly, and blind to how much air surrounds the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrisr.physics.foreground import CERTAIN

if TYPE_CHECKING:
    import torch

ENOUGH = 4_000_000  # voxels, for percentiles
LOW, HIGH, TISSUE = 0.1, 99.9, 99.0  # percentiles: of all voxels, of all voxels, of the foreground
# Percentile of the foreground that outliers leave alone; what is brighter than so many times that may be one; tissue is
# correlated by that much at least, over that many voxels.
BULK, OUTLIER, ALIKE, LAG = 90.0, 3.0, 0.2, 3
ROUNDS, SETTLED = 20, 1e-6  # of the fixed point of the scale; relative change
NORMAL_MAD = 1.4826  # standard deviation of normal noise over its median absolute value
_FOURTH = 70.0  # sum of the squares of (1, -4, 6, -4, 1): the noise of fourth differences along two axes
FEWEST_CELLS, NOISE_SAMPLE = 64, 20_000  # Haar cells: too few to know the noise by, and enough to


@dataclass(frozen=True)
class Scale:
    """(v - offset) / scale is about 0 in air and 1 at the brightest tissue.

    outliers: the share of the foreground that is so much brighter than the rest that the scale was taken without it; 0
    where nothing is.
    """

    offset: float
    scale: float
    outliers: float = 0.0


def intensity_scale(data: np.ndarray) -> tuple[float, float]:
    """(offset, scale) of `robust_scale`."""
    scale = robust_scale(data)
    return scale.offset, scale.scale


def robust_scale(data: np.ndarray) -> Scale:
    """The intensity scale of a scan.

    scale is the 99th percentile of the foreground, the voxels above 15 % of that same scale (a fixed point, so it does
    not depend on the amount of air). offset is 0 for magnitude data, else the 0.1th percentile of all voxels. Where
    that scale is over 3 times the 90th percentile of a foreground found from below, and what lies between is tissue
    (neighbours are alike) and not the noise of air, the brightest voxels are outliers (an implant, a clipped vessel, a
    row of spikes in a thin slab), and the percentile is taken without them.

    Args:
        data: finite, not constant, [X, Y, Z], any real dtype.
    """
    data = np.asarray(data, np.float32)
    # Once in order, what lies above a limit is the rest of the line, and a percentile a place in it.
    values = np.sort(_subset(data.ravel()))
    if values.size < data.size and not percentile(values, HIGH) > max(0.0, percentile(values, LOW)):
        values = np.sort(data, axis=None)  # the subset misses what little there is
    offset = min(0.0, percentile(values, LOW))
    shifted = values - np.float32(offset)
    first = percentile(shifted, HIGH)
    if first <= 0:  # fewer than one voxel in a thousand holds anything
        offset = min(0.0, float(values[0]))
        shifted = values - np.float32(offset)
        first = float(shifted[-1])
    scale = _fixed_point(shifted, first, TISSUE)
    bulk = _fixed_point(shifted, percentile(_above(shifted, 0.0), 50.0), BULK)
    most = OUTLIER * bulk
    if scale <= most or not _is_tissue(data - np.float32(offset), CERTAIN * bulk, most):
        return Scale(offset, scale)
    foreground = _above(shifted, CERTAIN * bulk)
    inside = foreground[: foreground.size - _above(foreground, most).size]
    return Scale(offset, percentile(inside, TISSUE), 1.0 - inside.size / foreground.size)


def percentile(ascending: np.ndarray, percent: float) -> float:
    """`numpy.percentile`, in float32, of values that ascend, of which there is one at least."""
    last = ascending.size - 1
    place = last * (percent / 100)
    below = int(place)
    if below >= last:
        return float(ascending[last])
    share, (a, b) = place - below, ascending[below : below + 2]
    return float(b - (b - a) * np.float32(1 - share) if share >= 0.5 else a + (b - a) * np.float32(share))


def _subset(values: np.ndarray) -> np.ndarray:
    """Of very many values a fixed random subset: percentiles of four million are exact to 0.1 %, whatever the shape."""
    if values.size <= ENOUGH:
        return values
    return values[np.random.default_rng(0).integers(values.size, size=ENOUGH)]


def _above(ascending: np.ndarray, limit: float) -> np.ndarray:
    return ascending[np.searchsorted(ascending, np.float32(limit), side="right") :]


def _fixed_point(ascending: np.ndarray, scale: float, percent: float) -> float:
    """The percentile of what lies above 15 % of it, from a first guess."""
    for _ in range(ROUNDS):
        following = percentile(_above(ascending, CERTAIN * scale), percent)
        if abs(following - scale) <= SETTLED * scale:
            break
        scale = following
    return scale


def _is_tissue(shifted: np.ndarray, low: float, high: float) -> bool:
    """Whether voxels of intensities in (low, high] resemble those `LAG` voxels away, along any axis; noise does not,
    even where zero-filling has made its neighbours alike."""
    count, sums = 0, np.zeros(5)
    for axis in range(shifted.ndim):
        lines = np.moveaxis(shifted, axis, 0)
        a, b = lines[:-LAG], lines[LAG:]
        both = (a > low) & (a <= high) & (b > low) & (b <= high)
        a, b = a[both].astype(np.float64), b[both].astype(np.float64)
        count += a.size
        sums += [a.sum(), b.sum(), a @ a, b @ b, a @ b]
    if count < FEWEST_CELLS:
        return False
    mean_a, mean_b, square_a, square_b, product = sums / count
    spread = np.sqrt(max(0.0, square_a - mean_a**2) * max(0.0, square_b - mean_b**2))
    return bool(product - mean_a * mean_b > ALIKE * spread)


def robust_range(values: torch.Tensor | np.ndarray) -> float:
    """p99.9 - p0.1: what errors are measured against. Of large volumes by a regular subset, good to 0.1 %."""
    values = _array(values).ravel()
    low, high = np.percentile(values[:: max(1, values.size // ENOUGH)], (LOW, HIGH))
    return float(high - low)


def estimate_noise(normalised: torch.Tensor | np.ndarray) -> float | None:
    """Noise standard deviation of a scan in units of its intensity scale, or None with too little foreground.

    Median absolute value of the finest diagonal Haar coefficients inside the foreground (Donoho and Johnstone 1994).
    Sharp anatomy leaks into it; training and inference use this same estimate, so the network has learnt by how much.

    Args:
        normalised: float [X, Y, Z] on the acquired (coarse) grid.
    """
    v = _array(normalised)
    x, y, z = (s - s % 2 for s in v.shape)
    cells = v[:x, :y, :z].reshape(x // 2, 2, y // 2, 2, z // 2, 2)
    pairs = [cells[:, i, :, j, :, 0] + cells[:, i, :, j, :, 1] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))]
    inside = np.flatnonzero((pairs[0] + pairs[1] + pairs[2] + pairs[3]) / 8 > CERTAIN)
    if inside.size < FEWEST_CELLS:
        return None
    for axis in (5, 3, 1):
        first, second = np.moveaxis(cells, axis, 0)
        cells = first - second
    # Every k-th cell: a median of 20 000 is known to 1 %.
    sample = np.abs(cells.ravel()[inside[:: max(1, inside.size // NOISE_SAMPLE)]])
    middle = (sample.size - 1) // 2  # of an even number the lower
    return float(np.partition(sample, middle)[middle] * sample.dtype.type(NORMAL_MAD / np.sqrt(8.0)))


def _array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()


def estimate_slice_noise(normalised: torch.Tensor, axis: int) -> float | None:
    """The same of a stack of slices, from within its slices alone: anatomy changes from slice to slice, and in plane
    its fourth differences along both axes are smaller beside noise than its first.

    Median absolute value inside the foreground (after Immerkaer, CVIU 64(2), 1996, who takes second differences). The
    noise has to be white within slices: zero-filled ones have less of it there than elsewhere.

    Args:
        normalised: float [X, Y, Z].
        axis: the one across the slices.
    """
    x = normalised.movedim(axis, 0)
    inside = x[:, 2:-2, 2:-2] > CERTAIN
    if min(x.shape[1:]) < 5 or int(inside.sum()) < FEWEST_CELLS:
        return None
    fast = x.diff(n=4, dim=1).diff(n=4, dim=2)[inside]
    fast = fast[:: max(1, len(fast) // NOISE_SAMPLE)]
    return float(fast.abs().median() * (NORMAL_MAD / _FOURTH))
