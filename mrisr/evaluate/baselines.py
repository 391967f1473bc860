"""What any super-resolution has to beat: interpolation, zero-filling and a linear regression.

Each takes a coarse volume and two centre-aligned grids and returns the volume on the fine grid, float32. All
are separable but the regression, so each is one matrix per axis (`mrisr.ops.resample`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch

from mrisr import grid as grids
from mrisr.errors import UsageError
from mrisr.grid import Grid
from mrisr.ops.resample import apply_axes, interpolation_matrix

Baseline = Callable[[np.ndarray, Grid, Grid], np.ndarray]


def trilinear(volume: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Linear interpolation; beyond the outer voxel centres the outer voxel goes on (mode "nearest")."""
    return _apply(volume, source, target, lambda n, m, ratio: scipy_matrix(n, m, ratio, order=1))


def cubic(volume: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """The yardstick of every table: scipy's `map_coordinates(order=3, mode="nearest")` at affine-derived
    coordinates.

    Evaluated one axis at a time; equal to the plain call to rounding (a test holds them together).
    """
    return _apply(volume, source, target, lambda n, m, ratio: scipy_matrix(n, m, ratio, order=3))


def quintic(volume: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Quintic B-spline with prefilter, the interpolation that mrisr itself resamples with."""
    return _apply(volume, source, target, lambda n, m, ratio: interpolation_matrix(n, m, ratio, "bspline", 5))


def zerofill(volume: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Zero-filled k-space at the centre-aligned positions, any real factor, no wrap-around (DCT basis)."""
    return _apply(volume, source, target, lambda n, m, ratio: interpolation_matrix(n, m, ratio, "fourier"))


BASELINES: dict[str, Baseline] = {
    "trilinear": trilinear,
    "cubic": cubic,
    "quintic": quintic,
    "zerofill": zerofill,
}


@lru_cache(maxsize=32)
def scipy_matrix(n_in: int, n_out: int, ratio: float, order: int) -> np.ndarray:
    """[n_out, n_in] float64: what scipy's map_coordinates(order, mode="nearest") does to one axis.

    Column j is its answer to the j-th unit impulse: scipy stays the definition, without its price in 3D.
    """
    from scipy.ndimage import map_coordinates

    positions = grids.axis_positions(n_in, n_out, ratio)[None]
    columns = [map_coordinates(impulse, positions, order=order, mode="nearest") for impulse in np.eye(n_in)]
    return np.stack(columns, axis=1)


def _apply(volume, source: Grid, target: Grid, matrix) -> np.ndarray:
    ratios = [float(r) for r in grids.ratios(source, target)]
    matrices = [
        None if n == m and abs(ratio - 1) < 1e-9 else matrix(int(n), int(m), ratio)
        for n, m, ratio in zip(source.shape, target.shape, ratios, strict=True)
    ]
    return apply_axes(torch.as_tensor(np.ascontiguousarray(volume, dtype=np.float32)), matrices).numpy()


class LinearRegression:
    """Least-squares prediction of a fine voxel from the 5^3 coarse voxels around it, one filter per phase.

    Along an axis with an integer factor r, a fine voxel sits at one of r places between coarse voxels, and
    every place (phase) has its own 125 weights and offset. Along other axes the places never repeat, so the
    neighbourhood is read from the quintic-interpolated volume with one shared filter for the residual.
    Trained on (coarse, fine) pairs scaled by the fine volume's 99.9th percentile; prediction scales by the
    coarse one's.

    Use: `fit` on pairs of one case, then call it as any other baseline.
    """

    radius = 2

    def __init__(self, ridge: float = 1e-5, max_samples_per_phase: int = 60_000, seed: int = 0):
        self.ridge, self.max_samples, self.seed = ridge, max_samples_per_phase, seed
        self._ratios: tuple[float, ...] | None = None
        self._weights: dict[tuple[int, int, int], np.ndarray] = {}

    def fit(self, pairs: Sequence[tuple[np.ndarray, Grid, np.ndarray, Grid, np.ndarray]]) -> LinearRegression:
        """`pairs`: (coarse, coarse grid, fine, fine grid, fine mask) of training volumes, all with the same
        ratios."""
        rng = np.random.default_rng(self.seed)
        normal: dict[tuple[int, int, int], list[np.ndarray]] = {}
        for coarse, source, fine, target, mask in pairs:
            self._check_ratios(source, target)
            scale = float(np.percentile(fine, 99.9))
            quint = quintic(coarse, source, target)
            padded = self._padded(quint, coarse, source, target) / scale
            for phase, index, where in self._phases(source, target):
                inside = np.flatnonzero(mask[np.ix_(*where)])
                if inside.size > self.max_samples:
                    inside = rng.choice(inside, self.max_samples, replace=False)
                features = self._features(padded, index, inside)
                residual = ((fine - quint)[np.ix_(*where)].ravel()[inside] / scale).astype(np.float64)
                gram, moment = features.T @ features, features.T @ residual
                if phase in normal:
                    gram, moment = gram + normal[phase][0], moment + normal[phase][1]
                normal[phase] = [gram, moment]
        for phase, (gram, moment) in normal.items():
            penalty = self.ridge * np.trace(gram) / len(gram)
            self._weights[phase] = np.linalg.solve(gram + penalty * np.eye(len(gram)), moment)
        return self

    def __call__(self, volume: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
        """Predict on `target`: quintic interpolation plus the learned residual. float32."""
        if not self._weights:
            raise UsageError("LinearRegression: call fit() with training pairs first")
        self._check_ratios(source, target)
        out = quintic(volume, source, target)
        scale = float(np.percentile(volume, 99.9)) or 1.0
        padded = self._padded(out, volume, source, target) / scale
        prediction = np.zeros_like(out)
        for phase, index, where in self._phases(source, target):
            prediction[np.ix_(*where)] = self._predict(padded, index, self._weights[phase]) * scale
        return out + prediction

    def _check_ratios(self, source: Grid, target: Grid) -> None:
        ratios = tuple(round(float(r), 4) for r in grids.ratios(source, target))
        if self._ratios is None:
            self._ratios = ratios
        elif ratios != self._ratios:
            raise UsageError(f"LinearRegression: trained for new/old spacing {self._ratios}, asked for {ratios}")

    def _padded(self, quint, coarse, source: Grid, target: Grid) -> np.ndarray:
        """The neighbourhood volume: coarse samples along integer axes, quintic samples along the others."""
        matrices = []
        for axis, (n, m) in enumerate(zip(source.shape, target.shape, strict=True)):
            if self._integer(axis):
                matrices.append(None)
            else:
                matrices.append(interpolation_matrix(n, m, float(grids.ratios(source, target)[axis])))
        mixed = apply_axes(torch.as_tensor(np.ascontiguousarray(coarse, dtype=np.float32)), matrices).numpy()
        return np.pad(mixed, self.radius, mode="edge")

    def _integer(self, axis: int) -> bool:
        factor = 1 / self._ratios[axis]
        return factor > 1.5 and abs(factor - round(factor)) < 2e-3

    def _phases(self, source: Grid, target: Grid):
        """(phase, index of the nearest coarse voxel per fine voxel, fine indices) per combination of
        phases."""
        per_axis = []
        for axis, (n, m) in enumerate(zip(source.shape, target.shape, strict=True)):
            fine = np.arange(m)
            if not self._integer(axis):
                per_axis.append([(0, fine, fine)])
                continue
            factor = round(1 / self._ratios[axis])
            position = grids.axis_positions(n, m, float(grids.ratios(source, target)[axis]))
            nearest = np.floor(position + 0.5 + 1e-9).astype(int)
            phase = np.round((position - nearest) * 2 * factor).astype(int)  # half steps: even factors sit between
            nearest = np.clip(nearest, 0, n - 1)
            per_axis.append([(int(p), nearest[phase == p], fine[phase == p]) for p in np.unique(phase)])
        for a in per_axis[0]:
            for b in per_axis[1]:
                for c in per_axis[2]:
                    yield (a[0], b[0], c[0]), (a[1], b[1], c[1]), (a[2], b[2], c[2])

    def _offsets(self):
        width = range(2 * self.radius + 1)
        return [(i, j, k) for i in width for j in width for k in width]

    def _features(self, padded, index, inside) -> np.ndarray:
        """[samples, 126] float64: the neighbourhood minus its centre (no offset of brightness is learned),
        and 1."""
        i, j, k = np.unravel_index(inside, [len(axis) for axis in index])
        i, j, k = index[0][i], index[1][j], index[2][k]
        columns = [padded[i + a, j + b, k + c] for a, b, c in self._offsets()]
        features = np.stack(columns, axis=1).astype(np.float64)
        features -= features[:, [features.shape[1] // 2]]
        features[:, features.shape[1] // 2] = 1.0  # the centre is zero by now: its column holds the offset
        return features

    def _predict(self, padded, index, weights) -> np.ndarray:
        middle = len(weights) // 2
        contrast = weights.copy()
        contrast[middle] = 0.0
        contrast[middle] = -contrast.sum()  # "minus its centre", folded into the weights
        out = np.full([len(axis) for axis in index], weights[middle], dtype=np.float32)
        for weight, (a, b, c) in zip(contrast.astype(np.float32), self._offsets(), strict=True):
            out += weight * padded[np.ix_(index[0] + a, index[1] + b, index[2] + c)]
        return out
