"""Real voxels -> the integers of a derived series, and the window that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrisr.io.dicom.frame import Frame

FEWEST_LEVELS = 1000  # of a source that has fractions: below, whole numbers would coarsen it


@dataclass(frozen=True, eq=False)
class Stored:
    """voxels: int32, value = voxels * slope. signed: whether some are negative. window: (centre, width) in values."""

    voxels: np.ndarray
    signed: bool
    slope: float
    clipped: int
    window: tuple[float, float]


def quantised(data: np.ndarray, frames: Sequence[Frame]) -> Stored:
    """`data` as 16-bit integers without a slope where its range and precision allow, else with one.

    Interpolation undershoots: negative values are kept (signed) unless the largest needs the sign's bit; then, in a
    source without negative values, they become 0 and are counted.
    """
    low, high = float(data.min()), float(data.max())
    whole = all(f.slope == round(f.slope) and f.intercept == round(f.intercept) for f in frames)
    slope, signed, clipped = 1.0, low < -0.5, 0
    fits = low >= -32768 and high <= (32767 if signed else 65535)
    if not fits and -0.05 * high < low and high <= 65535:
        signed, clipped = False, int((data < -0.5).sum())
    elif not fits or (not whole and high - low < FEWEST_LEVELS):
        slope = _sixteen_characters(max(high / 32767, -low / 32768))
        signed = True
    voxels = np.rint(data / np.float32(slope) if slope == 1 else data.astype(np.float64) / slope)
    voxels = voxels.clip(-32768 if signed else 0, 32767 if signed else 65535).astype(np.int32)
    return Stored(voxels, signed, slope, clipped, _window(data, frames))


def _sixteen_characters(value: float) -> float:
    """The number that a DICOM decimal string of 16 characters holds, rounded up."""
    return float(f"{value * (1 + 1e-8):.9e}")


def _window(data: np.ndarray, frames: Sequence[Frame]) -> tuple[float, float]:
    """The median window of the source, or, where it has none, one from the values themselves."""
    windows = [f.window for f in frames if f.window is not None]
    if windows:
        centre, width = np.median(np.array(windows), axis=0)
    else:
        low, high = np.percentile(data[data > data.min()], [1, 99.5]) if np.ptp(data) > 0 else (0.0, 1.0)
        centre, width = (low + high) / 2, high - low
    return float(centre), max(float(width), 1e-3 if np.ptp(data) < 1000 else 1.0)
