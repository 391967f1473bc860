"""How a scan was really acquired, by its spectrum: how finely, and with which slice profile.

Scanners fill the rim of k-space with zeros and store smaller voxels.

The power along an axis falls slowly up to the edge of what was acquired, and then, within a few hundredths of the
band, by ten decibels and more. Nothing else does that: blur bends the curve slowly, noise makes it flat.

A slice profile is told by the axes beside it: they are fine enough to be brought, by the profile that is supposed, to
what the slices are. If the profile was that one, the power falls alike along both; heads are alike enough along their
axes. Over 10 heads of three contrasts, three directions and slices of 2 to 5 voxels the difference has a standard
deviation of 0.77 dB, and the three profiles stand 1.6 dB apart (experiments/slice_profiles.py).
It is asked only along axes that hold the head whole: where the field of view cuts it, the spectrum is that of the cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrisr.errors import UsageError
from mrisr.ops.resample import apply_axes
from mrisr.physics.degrade import axis_matrix
from mrisr.physics.psf import THICK_SLICE_RATIO, AxisPSF

if TYPE_CHECKING:
    import torch

FEWEST = 48  # samples; a shorter axis has too few frequencies to tell an edge from a slope
REACH = 0.06  # of the band, on each side of an edge: windows and apodisation make it that wide
LOWEST, HIGHEST = 0.25, 0.80  # of the band, where edges are looked for; an apodised rim looks like one above that
SLABS = 64  # planes whose lines are averaged: more make no edge clearer
STEEP = 8.0  # dB, more than the trend, within 2 * REACH
FEWEST_SLICES = 20  # fewer have too few frequencies
SLOW, FAST = (0.10, 0.34), (0.70, 0.96)  # parts of the slices' band whose powers are compared
CUT = 0.25  # of a scan's mean at the ends of an axis: the field of view cuts through the head there
LESS, MORE = -0.8, 0.8  # dB of tilt beyond which slices are a Gaussian's, or a cut of k-space


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

    An apodised edge is placed where its slope has cost a few decibels, as if it were a sharp one there, which is what
    brings such a scan most; zero-filling by less than 1.2 is not told from apodisation.
    Axes of fewer than 48 samples are taken as they are stored.
    """
    x = _volume(scan, "estimate_acquired")
    return tuple(_axis(x, axis, float(size)) for axis, size in enumerate(voxel_size))


def _volume(scan, name: str) -> np.ndarray:
    x = np.asarray(scan.detach().cpu() if hasattr(scan, "detach") else scan, np.float32)
    if x.ndim != 3:
        raise UsageError(f"{name}: expected a scan [X, Y, Z], found shape {x.shape}")
    return x


def power(x: np.ndarray, axis: int) -> np.ndarray:
    """Power along `axis` of a volume [X, Y, Z], dB [n // 2 + 1], at frequencies 0 to Nyquist: of all lines of at most
    `SLABS` planes."""
    return decibels(powers(x, axis).sum(0))


def powers(x: np.ndarray, axis: int) -> np.ndarray:
    """The same of each plane [planes, frequencies], and no decibels; Hann-windowed, for the two ends of a field of view
    do not meet."""
    n = x.shape[axis]
    lines = np.moveaxis(x, axis, -1)
    window = np.hanning(n + 2)[1:-1].astype(np.float32)
    planes = lines[:: -(-len(lines) // SLABS)]
    return np.stack([(np.abs(np.fft.rfft(plane * window)) ** 2).sum(0, dtype=np.float64) for plane in planes])


def decibels(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, 1e-30))


def _axis(x: np.ndarray, axis: int, size: float) -> AcquiredAxis:
    stored = AcquiredAxis(1.0, size, 0.0, False)
    n = x.shape[axis]
    if n < FEWEST:
        return stored
    planes = powers(x, axis)
    # Of the half that holds most the median: an implant's outline, in a few of them, has edges in its spectrum too.
    most = np.argsort(planes[:, 1:].sum(1))[len(planes) // 2 :]
    level = decibels(np.median(planes[most], axis=0))
    f = np.linspace(0, 1, len(level))
    width = max(2, round(REACH * len(f)))
    best, where, trend_at = 0.0, None, (0.0, 0.0)
    for i in range(int(LOWEST * len(f)), int(HIGHEST * len(f))):
        before = slice(max(0, i - 4 * width), i - width + 1)
        slope, height = np.polyfit(f[before] - f[i], level[before], 1)
        slope = min(slope, 0.0)  # never upwards: a rise before an edge is ringing
        trend = height + slope * (f[min(i + width, len(f) - 1)] - f[i])  # at the edge's far side
        beyond = level[i + width :]
        excess = trend - beyond.max() if len(beyond) else 0.0
        if excess > best:
            best, where, trend_at = excess, i, (height, slope)
    if where is None or best < STEEP:
        return AcquiredAxis(1.0, size, float(best), False)
    near = slice(max(0, where - 2 * width), where + 2 * width + 1)
    cut = _middle(f[near], trend_at[0] + trend_at[1] * (f[near] - f[where]) - level[near])
    return AcquiredAxis(cut, size / cut, float(best), True)


def _middle(f: np.ndarray, below: np.ndarray) -> float:
    """The centre of the first `STEEP` decibels of a fall: at the edge of a sharp cut, whatever the window's side lobes
    and the noise do further down. `below`: decibels below the trend at the frequencies f."""
    fallen = np.maximum.accumulate(below.clip(0, STEEP))
    steps = np.diff(fallen)
    return float((steps * (f[:-1] + f[1:]) / 2).sum() / steps.sum())


def slice_profile(scan: torch.Tensor | np.ndarray, voxel_size, axis: int) -> str | None:
    """The point spread of thick slices: "gaussian", "supergaussian" or "kspace" (slices of a 3D acquisition).

    Args:
        scan: real [X, Y, Z].
        voxel_size: mm, 3 values.
        axis: the one across the slices.

    Returns:
        None where nobody can tell: fewer than 20 slices, no axis that is 1.8 times finer and holds the whole head, or
        no signal.
    """
    tilts = [slice_tilt(scan, voxel_size, axis, beside) for beside in range(3) if beside != axis]
    finite = [tilt for tilt in tilts if tilt is not None]
    if not finite:
        return None
    tilt = float(np.mean(finite))
    return "gaussian" if tilt < LESS else "kspace" if tilt > MORE else "supergaussian"


def slice_tilt(scan: torch.Tensor | np.ndarray, voxel_size, axis: int, beside: int) -> float | None:
    """How much more fine detail, in dB, there is along `axis` than along the axis `beside` it, had that the same voxels
    and a super-Gaussian profile. About 0 where the slices have that profile, -1.7 for a Gaussian's, +1.7 for a cut of
    k-space. None where it cannot be told."""
    x, (thick, fine) = _volume(scan, "slice_tilt"), (float(voxel_size[a]) for a in (axis, beside))
    if x.shape[axis] < FEWEST_SLICES or thick < THICK_SLICE_RATIO * fine:
        return None
    ends = np.take(x, [0, -1], beside)
    if np.abs(ends).mean() >= CUT * np.abs(x).mean():
        return None
    across = next(a for a in range(3) if a not in (axis, beside))
    x = np.take(x, range(0, x.shape[across], -(-x.shape[across] // SLABS)), across)
    count = max(2, round(x.shape[beside] * fine / thick))
    matrices: list = [None, None, None]
    matrices[beside] = axis_matrix(x.shape[beside], count, fine, thick, AxisPSF("supergaussian", thick))
    x = apply_axes(x, tuple(matrices))
    levels = [_tilt(x, a) for a in (axis, beside)]
    return None if None in levels else levels[0] - levels[1]


def _tilt(x: np.ndarray, axis: int) -> float | None:
    """Power in the fast part of a band over that in its slow part, dB."""
    level = power(x - x.mean(axis, keepdims=True), axis)
    f = np.linspace(0, 1, len(level))
    slow, fast = (np.interp(np.linspace(*part, 4), f, level).mean() for part in (SLOW, FAST))
    return None if min(slow, fast) < -200 else float(fast - slow)
