"""How finely a scan was really acquired: scanners fill the rim of k-space with zeros and store smaller voxels.

The power along an axis falls slowly up to the edge of what was acquired, and then, within a few hundredths of the
band, by ten decibels and more. Nothing else does that: blur bends the curve slowly, noise makes it flat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mrisr.errors import UsageError

FEWEST = 48  # samples; a shorter axis has too few frequencies to tell an edge from a slope
REACH = 0.06  # of the band, on each side of an edge: windows and apodisation make it that wide
LOWEST, HIGHEST = 0.25, 0.80  # of the band, where edges are looked for; an apodised rim looks like one above that
SLABS = 64  # planes whose lines are averaged: more make no edge clearer
STEEP = 8.0  # dB, more than the trend, within 2 * REACH


@dataclass(frozen=True)
class AcquiredAxis:
    """What the spectrum says of one axis.

    Attributes:
        cut: edge of the acquired band as a part of the stored one, 0 to 1; 1 where no edge was found.
        width: acquired voxel size, mm: the stored one / cut.
        drop: how far the power falls at the edge beyond its trend, dB.
        certain: an edge was found.
    """

    cut: float
    width: float
    drop: float
    certain: bool

    @property
    def zero_fill(self) -> float:
        """Stored samples per acquired one, 1 or more."""
        return 1.0 / self.cut


def estimate_acquired(scan, voxel_size) -> tuple[AcquiredAxis, AcquiredAxis, AcquiredAxis]:
    """The acquired resolution of each axis of a scan.

    Args:
        scan: real [X, Y, Z], numpy or torch.
        voxel_size: stored, mm, 3 values.

    An apodised edge is placed in the middle of its slope; zero-filling by less than 1.2 is not told from apodisation.
    Axes of fewer than 48 samples are taken as they are stored.
    """
    x = torch.as_tensor(np.asarray(scan, np.float32)) if not isinstance(scan, torch.Tensor) else scan.detach().float()
    if x.ndim != 3:
        raise UsageError(f"estimate_acquired: expected a scan [X, Y, Z], found shape {tuple(x.shape)}")
    return tuple(_axis(x, axis, float(size)) for axis, size in enumerate(voxel_size))


def power(x: torch.Tensor, axis: int) -> np.ndarray:
    """Power along `axis` of a volume, in dB, at frequencies 0 to Nyquist, mean over the lines of at most `SLABS`
    planes; Hann-windowed, for the two ends of a field of view do not meet."""
    n = x.shape[axis]
    lines = x.movedim(axis, -1)
    window = torch.hann_window(n + 2, periodic=False, device=x.device)[1:-1]
    spectrum = torch.zeros(n // 2 + 1, dtype=torch.float64, device=x.device)
    for slab in lines[:: -(-len(lines) // SLABS)]:
        spectrum += torch.fft.rfft(slab * window).abs().square().sum(0).double()
    return 10 * np.log10(np.maximum(spectrum.cpu().numpy(), 1e-30))


def _axis(x: torch.Tensor, axis: int, size: float) -> AcquiredAxis:
    stored = AcquiredAxis(1.0, size, 0.0, False)
    n = x.shape[axis]
    if n < FEWEST:
        return stored
    level = power(x, axis)
    f = np.linspace(0, 1, len(level))
    width = max(2, round(REACH * len(f)))
    best, where = 0.0, None
    for i in range(int(LOWEST * len(f)), int(HIGHEST * len(f))):
        before = slice(max(0, i - 4 * width), i - width + 1)
        slope, height = np.polyfit(f[before] - f[i], level[before], 1)
        # The trend at the edge's far side, never upwards: a rise before an edge is ringing.
        trend = height + min(slope, 0.0) * (f[min(i + width, len(f) - 1)] - f[i])
        beyond = level[i + width :]
        excess = trend - beyond.max() if len(beyond) else 0.0
        if excess > best:
            best, where = excess, i
    if where is None or best < STEEP:
        return AcquiredAxis(1.0, size, float(best), False)
    cut = _middle(f, level, where, width)
    return AcquiredAxis(cut, size / cut, float(best), True)


def _middle(f: np.ndarray, level: np.ndarray, where: int, width: int) -> float:
    """The centre of the fall about `where`: the mean frequency, weighted by how many decibels are lost there."""
    low, high = max(0, where - 2 * width), min(len(f), where + 2 * width + 1)
    falls = level[low : high - 1] - level[low + 1 : high]
    steep = falls.clip(0)
    return float((steep * (f[low : high - 1] + f[low + 1 : high]) / 2).sum() / steep.sum())
