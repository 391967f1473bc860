"""The power of before and after along each axis: below the edge of the acquired band both show what was measured, above
it the one shows nothing and the other what the network has supplied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mrisr import preview
from mrisr.physics.acquired import power

__all__ = ["AxisSpectrum", "gain", "spectra"]

AXIS_NAMES = ("left – right", "posterior – anterior", "inferior – superior")
FEWEST = 8  # samples along an axis, below which there is no spectrum to speak of
POINTS = 120  # of a curve


@dataclass(frozen=True)
class AxisSpectrum:
    """One stored axis.

    name               where it runs in the head
    frequency          cycles per mm, [n]
    before, after      dB, over the power of before at its strongest, [n]
    measured, highest  cycles per mm: edge of what was acquired, Nyquist limit of the output
    added              (power before, power after) between the two, linear; None where they are equal
    """

    name: str
    frequency: np.ndarray
    before: np.ndarray
    after: np.ndarray
    measured: float
    highest: float
    added: tuple[float, float] | None


def spectra(pair, bands) -> list[AxisSpectrum | None]:
    """Of each stored axis; None where it is too short.

    Args:
        pair: `mrisr.report.views.Pair`.
        bands: per stored axis (measured to, synthesised to), cycles per mm.
    """
    order, _ = preview.closest_axes(pair.affine[:3, :3])
    before, after = (np.asarray(v, np.float32) for v in (pair.before, pair.after))
    axes = []
    for axis, (measured, highest) in enumerate(bands):
        if pair.before.shape[axis] < FEWEST:
            axes.append(None)
            continue
        a, b = power(before, axis), power(after, axis)
        frequency = np.linspace(0, 0.5 / pair.spacing[axis], len(a))
        beyond = (frequency > measured) & (frequency <= highest * 1.001)
        powers = None
        if highest > measured * 1.001 and beyond.any():
            powers = tuple(float(10 ** (v[beyond] / 10) @ np.ones(beyond.sum())) for v in (a, b))
        top = float(a.max())
        curves = (_thinned(v) for v in (frequency, a - top, b - top))
        axes.append(AxisSpectrum(AXIS_NAMES[order.index(axis)], *curves, measured, highest, powers))
    return axes


def gain(axes) -> float | None:
    """Power of after over before in the synthesised band, all axes together, dB; None where nothing was synthesised."""
    gains = [axis.added for axis in axes if axis is not None and axis.added is not None]
    before, after = (sum(pair[k] for pair in gains) for k in (0, 1))
    if not gains or before <= 0 or after <= 0:
        return None
    return float(10 * np.log10(after / before))


def _thinned(values: np.ndarray) -> np.ndarray:
    """At most POINTS means of neighbours; the first stays."""
    if len(values) <= POINTS:
        return values
    parts = np.array_split(values[1:], POINTS - 1)
    return np.array([values[0], *(part.mean() for part in parts)])
