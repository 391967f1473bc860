"""Voxel grids: where the voxels of a volume lie, and where those of a finer one should.

A grid is a shape in stored axis order and an affine that takes voxel indices (centres at integers) to world
coordinates in mm. A target grid has the same axes and the same centre of the field of view as its source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np

from mrisr.errors import GeometryError, UsageError, excerpt

__all__ = ["Grid", "axis_positions", "check_affine", "default_voxel_size", "plan", "ratios", "triple"]

DEFAULT_VOXEL_SIZE = 0.7  # mm; along an axis that is finer already, the axis keeps its own

# A difference in voxel size below this ratio is rounding in a header, not a change of resolution.
SAME_SPACING = 1e-3
# Below this length (mm) a column of an affine is a missing voxel size, not a small one.
SMALLEST_VOXEL = 1e-6
# Finer (mm) no grid is planned: a twentieth of what the finest scans of a head have.
FINEST_TARGET = 0.01
# |det| of the unit-length columns; 1 for orthogonal axes, 0 for axes that lie in one plane.
SMALLEST_DETERMINANT = 1e-4
# Headers are float32: so much of a voxel is added before counts are rounded, that 180 x 0.9 mm loses none.
HEADER_ROUNDING = 1e-4


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape `(X, Y, Z)` and affine (4, 4) float64, voxel index -> mm.

    Raises GeometryError when the shape has not three positive counts or the affine cannot be used.

    >>> Grid((10, 10, 5), np.diag([1.0, 1.0, 3.0, 1.0])).voxel_size
    (1.0, 1.0, 3.0)
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"grid: expected three positive voxel counts, found {tuple(self.shape)}")
        affine = check_affine(self.affine, "grid").copy()
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Spacing along each stored axis, mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def extent(self) -> tuple[float, float, float]:
        """Size of the field of view along each stored axis, mm, from voxel edge to voxel edge."""
        return tuple(n * s for n, s in zip(self.shape, self.voxel_size, strict=True))

    @property
    def center(self) -> np.ndarray:
        """World position (3,) of the centre of the field of view, mm."""
        middle = (np.array(self.shape) - 1) / 2
        return self.affine[:3, :3] @ middle + self.affine[:3, 3]


def check_affine(affine: np.ndarray, name: str) -> np.ndarray:
    """`affine` as float64 (4, 4), or a GeometryError that names `name`, what was found and what to do."""
    try:
        if np.iscomplexobj(affine):
            raise TypeError("complex")
        a = np.asarray(affine, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GeometryError(f"{name}: expected a 4 x 4 affine of numbers, found {excerpt(affine)}") from error
    if a.shape != (4, 4):
        raise GeometryError(f"{name}: expected a 4 x 4 affine, found shape {a.shape}")
    if not np.isfinite(a).all():
        raise GeometryError(f"{name}: the affine has NaN or infinite entries; repair the sform or qform")
    if not np.array_equal(a[3], [0, 0, 0, 1]):
        raise GeometryError(f"{name}: the last row of the affine must be 0 0 0 1, found {a[3].tolist()}")
    sizes = np.linalg.norm(a[:3, :3], axis=0)
    if sizes.min() < SMALLEST_VOXEL:
        raise GeometryError(f"{name}: voxel size {_sizes(sizes)} mm has a zero; set the true voxel size")
    if abs(np.linalg.det(a[:3, :3] / sizes)) < SMALLEST_DETERMINANT:
        raise GeometryError(
            f"{name}: the affine is not invertible (its axes lie in one plane); repair the sform or qform"
        )
    return a


def plan(
    source: Grid,
    *,
    voxel_size: float | tuple[float, float, float] | None = None,
    factor: float | tuple[float, float, float] | None = None,
) -> Grid:
    """The grid of `voxel_size` mm, or `factor` times finer, over the field of view of `source`; with neither,
    `default_voxel_size`.

    The centre of the field of view stays where it is and its size is kept to within half an output voxel.
    Stating both is a UsageError, as is any value that is not one or three positive finite numbers.

    >>> plan(Grid((10, 10, 10), np.diag([0.9, 0.9, 0.9, 1.0])), factor=2).shape
    (20, 20, 20)
    """
    if factor is None:
        size = default_voxel_size(source) if voxel_size is None else triple(voxel_size, "voxel_size")
        ratio = size / np.array(source.voxel_size)
    else:
        if voxel_size is not None:
            raise UsageError(f"give voxel_size or factor, not both; found {voxel_size=} and {factor=}")
        ratio = 1.0 / triple(factor, "factor")

    finest = ratio * source.voxel_size
    if finest.min() < FINEST_TARGET:
        name = "voxel_size" if factor is None else "factor"
        raise UsageError(
            f"{name}: asks for voxels of {_sizes(finest)} mm; below {FINEST_TARGET:g} mm no grid is made, give a "
            f"{'larger' if factor is None else 'smaller'} one"
        )
    n_in = np.array(source.shape)
    # floor(x + 0.5), not round(): Python and C++ disagree on halves.
    n_out = tuple(max(1, math.floor(q + 0.5 + HEADER_ROUNDING)) for q in (n_in / ratio).tolist())
    index_map = np.diag([*ratio, 1.0])
    index_map[:3, 3] = 0.5 * ((n_in - 1) - (np.array(n_out) - 1) * ratio)
    return Grid(n_out, source.affine @ index_map)


def default_voxel_size(source: Grid) -> np.ndarray:
    """Per axis the smaller of 0.7 mm and the source's own voxel, float64 (3,): nothing that the scan has is lost."""
    own = np.array(source.voxel_size)
    return np.where(own <= DEFAULT_VOXEL_SIZE * (1 + SAME_SPACING), own, DEFAULT_VOXEL_SIZE)


def ratios(source: Grid, target: Grid) -> np.ndarray:
    """New spacing / old spacing per axis, float64 (3,)."""
    return np.array(target.voxel_size) / np.array(source.voxel_size)


def axis_positions(n_in: int, n_out: int, ratio: float) -> np.ndarray:
    """Where the `n_out` output samples of an axis lie, in input index units, float64 (n_out,).

    `ratio` is new / old spacing; the middle of the axis maps onto itself.

    >>> axis_positions(2, 4, 0.5).tolist()
    [-0.25, 0.25, 0.75, 1.25]
    """
    return 0.5 * ((n_in - 1) - (n_out - 1) * ratio) + ratio * np.arange(n_out, dtype=np.float64)


def triple(value: float | tuple[float, float, float], name: str) -> np.ndarray:
    """One number or three -> float64 (3,); UsageError naming `name` unless positive and finite."""
    parts = [value] * 3 if isinstance(value, Real) else value
    try:
        numbers = np.array([float(p) for p in parts])
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (3,) or not np.isfinite(numbers).all() or numbers.min() <= 0:
        raise UsageError(f"{name}: expected one positive number or three, found {excerpt(value)}")
    return numbers


def _sizes(sizes: np.ndarray) -> str:
    return " x ".join(f"{s:.4g}" for s in sizes)
