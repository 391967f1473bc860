"""The matrices of resampling along one axis, built once in float64 ([n_out, n_in], numpy).

Positions are in input index units: sample 0 is the *centre* of the first voxel. `mrisr.grid.axis_positions` gives the
positions of a planned grid.

B-spline interpolation with prefilter follows Unser, Aldroubi and Eden (IEEE TSP 41, 1993); Fourier interpolation
evaluates the trigonometric polynomial of the half-sample-symmetric (DCT-II) extension, which, unlike the periodic
one, has no jump where the two ends of the field of view meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from mrisr import third_party
from mrisr.errors import UsageError

Transfer = Callable[[np.ndarray], np.ndarray]
Matrix = np.ndarray

SPLINE_ORDERS = (1, 3, 5)
BOUNDARIES = ("linear", "mirror")  # their places are the codes of csrc/core/prefilter.h


def _bspline(order: int, x: np.ndarray) -> np.ndarray:
    """Centred cardinal B-spline of odd `order`, by the truncated-power formula."""
    x = np.abs(x)
    half = (order + 1) / 2
    total = np.zeros_like(x)
    binomial = 1.0
    factorial = float(np.prod(np.arange(1, order + 1)))
    for k in range(order + 2):
        total += (-1) ** k * binomial * np.maximum(half - k - x, 0.0) ** order
        binomial *= (order + 1 - k) / (k + 1)
    # The one-sided sum is exact only where it is not cancelled to zero: outside the support it must be 0.
    return np.where(x < half, total / factorial, 0.0)


def _odd_extension(index: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write sample `index` of the odd extension as c[i] = sign * c[inside] + 2 * end, per index.

    The odd extension c(-k) = 2 c(0) - c(k) continues a straight line straight, so ramps stay ramps at the border.
    Returns (inside, sign, ends) where ends[:, 0] counts c(0) and ends[:, 1] counts c(n - 1).
    """
    inside = index.astype(np.int64).copy()
    sign = np.ones(len(index))
    ends = np.zeros((len(index), 2))
    while True:
        low, high = inside < 0, inside > n - 1
        if not (low.any() or high.any()):
            return inside, sign, ends
        ends[low, 0] += 2 * sign[low]
        inside[low] = -inside[low]
        sign[low] = -sign[low]
        high = inside > n - 1
        ends[high, 1] += 2 * sign[high]
        inside[high] = 2 * (n - 1) - inside[high]
        sign[high] = -sign[high]


def _extension(index: np.ndarray, n: int, boundary: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_odd_extension`, for either boundary."""
    if boundary == "linear" and n > 1:
        return _odd_extension(index, n)
    folded = np.mod(index, max(1, 2 * (n - 1)))
    return np.minimum(folded, 2 * (n - 1) - folded), np.ones(len(index)), np.zeros((len(index), 2))


def _spline_rows(n: int, positions: np.ndarray, order: int, boundary: str = "linear") -> Matrix:
    """Sum of B-splines of coefficients c, continued by `boundary`, at `positions`: [len(positions), n]."""
    rows = np.zeros((len(positions), n))
    first = np.floor(positions).astype(np.int64) - order // 2
    row = np.arange(len(positions))
    for tap in range(order + 1):
        index = first + tap
        weight = _bspline(order, positions - index)
        inside, sign, ends = _extension(index, n, boundary)
        np.add.at(rows, (row, inside), weight * sign)
        rows[:, 0] += weight * ends[:, 0]
        rows[:, n - 1] += weight * ends[:, 1]
    return rows


def check_spline(order: int, boundary: str, op: str) -> None:
    """UsageError of `op` unless both are known."""
    if order not in SPLINE_ORDERS:
        raise UsageError(f"{op}: order must be one of {SPLINE_ORDERS}, found {order}")
    if boundary not in BOUNDARIES:
        raise UsageError(f"{op}: boundary must be one of {BOUNDARIES}, found {boundary!r}")


def bspline_matrix(n_in: int, positions: np.ndarray, order: int = 5, boundary: str = "linear") -> Matrix:
    """B-spline interpolation of `n_in` samples at `positions`, prefilter included.

    Args:
        n_in: samples along the axis.
        positions: [n_out] float, input index units; up to half a voxel outside is extrapolated linearly.
        order: 1 (linear), 3 (cubic) or 5 (quintic).
        boundary: "linear" goes on straight past the ends, "mirror" is even about the end samples.

    Returns:
        float64 [n_out, n_in]; rows sum to 1, and (with "linear") a linear ramp is reproduced everywhere.
    """
    check_spline(order, boundary, "bspline_matrix")
    positions = np.asarray(positions, np.float64)
    if n_in == 1:
        return np.ones((len(positions), 1))
    at_samples = _spline_rows(n_in, np.arange(n_in, dtype=np.float64), order, boundary)
    rows = _spline_rows(n_in, positions, order, boundary)
    with third_party.one_blas_thread():
        return np.linalg.solve(at_samples.T, rows.T).T


@lru_cache(maxsize=64)
def coefficient_matrix(n: int, order: int, boundary: str) -> Matrix:
    """B-spline coefficients of `n` samples: float64 [n, n] (cached; do not write into it)."""
    at_samples = _spline_rows(n, np.arange(n, dtype=np.float64), order, boundary)
    with third_party.one_blas_thread():
        return np.linalg.inv(at_samples)


def fourier_matrix(n_in: int, positions: np.ndarray, transfer: Transfer | None = None) -> Matrix:
    """Filter `n_in` samples by `transfer` and evaluate the result at `positions`, both in the Fourier domain.

    Args:
        n_in: samples along the axis.
        positions: [n_out] float, input index units.
        transfer: gain as a function of frequency in cycles per input sample (0 to 0.5); None: 1 everywhere, which is
            interpolation (zero-filling). A box gives a k-space cut, exp(-2 (pi sigma f)^2) a Gaussian profile.

    Returns:
        float64 [n_out, n_in].
    """
    k = np.arange(n_in)
    gain = np.where(k == 0, 1.0, 2.0) / n_in
    if transfer is not None:
        gain = gain * transfer(k / (2.0 * n_in))
    analysis = np.cos(np.pi * np.outer(k, np.arange(n_in) + 0.5) / n_in)
    synthesis = np.cos(np.pi * np.outer(np.asarray(positions, np.float64) + 0.5, k) / n_in)
    with third_party.one_blas_thread():
        return (synthesis * gain) @ analysis


@lru_cache(maxsize=64)
def _cached_interpolation(kind: str, n_in: int, n_out: int, ratio: float, order: int) -> Matrix:
    positions = 0.5 * ((n_in - 1) - (n_out - 1) * ratio) + ratio * np.arange(n_out)
    if kind == "fourier":
        # Going to a coarser grid, what that grid cannot hold is removed rather than aliased.
        cut = (lambda f: (f < 0.5 / ratio).astype(np.float64)) if ratio > 1 else None
        return fourier_matrix(n_in, positions, cut)
    return bspline_matrix(n_in, positions, order)


def interpolation_matrix(n_in: int, n_out: int, ratio: float, kind: str = "bspline", order: int = 5) -> Matrix:
    """Centre-aligned interpolation between two grids of one field of view (cached; do not write into it).

    Args:
        n_in, n_out: samples of the two grids.
        ratio: new spacing / old spacing.
        kind: "bspline" (of `order`) or "fourier".
    """
    if kind not in ("bspline", "fourier"):
        raise UsageError(f"interpolation_matrix: kind must be 'bspline' or 'fourier', found {kind!r}")
    return _cached_interpolation(kind, int(n_in), int(n_out), float(ratio), int(order))


def centred_matrix(n_in: Sequence[int], n_out: Sequence[int], ratio: Sequence[float]) -> np.ndarray:
    """Target index -> source index between two grids with parallel axes and one centre: float64 [3, 4].

    ratio: new / old spacing per axis. The positions are those of `mrisr.grid.axis_positions`.

    >>> centred_matrix((2, 2, 2), (4, 4, 4), (0.5, 0.5, 0.5))[0].tolist()
    [0.5, 0.0, 0.0, -0.25]
    """
    n_in, n_out, ratio = (np.asarray(v, np.float64) for v in (n_in, n_out, ratio))
    return np.concatenate([np.diag(ratio), 0.5 * ((n_in - 1) - (n_out - 1) * ratio)[:, None]], axis=1)
