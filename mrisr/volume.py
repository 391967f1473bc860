"""A scan in memory: float32 voxels in stored axis order, their place in space, the header they came with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mrisr.errors import GeometryError, InputError
from mrisr.grid import Grid, check_affine

__all__ = ["ACQUISITION_FACTS", "Frames", "Volume", "as_float32", "check_contrast", "check_dtype", "check_shape"]

# What `Volume.meta` may hold: DICOM keywords, which BIDS sidecars share, and what their values are. Lengths in mm,
# field in tesla.
ACQUISITION_FACTS: dict[str, Any] = {
    "SliceThickness": float,
    "SpacingBetweenSlices": float,
    "MRAcquisitionType": str,
    "AcquisitionMatrix": list[int],
    "MagneticFieldStrength": float,
    "ImageType": list[str] | str,
    "Manufacturer": str,
    "NonlinearGradientCorrection": bool,
    "AcquiredVoxelSize": list[float],
}

# One slice has no neighbour to interpolate from.
FEWEST_VOXELS = 2
# Beyond these a header's unit or number is wrong: a target grid of 0.7 mm would take terabytes.
LARGEST_VOXEL_MM, LARGEST_VIEW_MM = 100.0, 5000.0
SMALLEST_VOXEL_MM = 0.01  # of the widest side: finer than any scanner, and what metres or microns for millimetres give


class Frames:
    """A series [X, Y, Z, T] that is nowhere as a whole, in place of the array that `Volume.data` is otherwise.

    Whoever makes one has checked its voxels. This one's frames are elsewhere: it knows their shape, and no voxel.
    """

    dtype, ndim = np.dtype(np.float32), 4

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = tuple(int(n) for n in shape)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Each frame: float32 [X, Y, Z], C-contiguous, the caller's own."""
        return (self.frame(t) for t in range(self.shape[3]))

    def frame(self, t: int) -> np.ndarray:
        """One frame, likewise."""
        raise RuntimeError("the frames of this series were given to whoever asked for them, one by one; none is kept")

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.stack(list(self), axis=-1).astype(dtype or self.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan, or a series of scans on one grid.

    data    [X, Y, Z] or [X, Y, Z, T], any real dtype, kept as float32; axis order as stored, never permuted; or Frames
    affine  (4, 4) float64, voxel index -> mm, RAS+
    header  the source's nibabel header, kept for writing back, or None
    name    what error messages call it: the path, or "array"
    meta    those of ACQUISITION_FACTS that the source stated

    Raises InputError (GeometryError for the affine) naming `name` when data is not 3D or 4D, has fewer than 2
    voxels along an axis, is not real, has NaN, Inf or values outside float32, or is constant in any frame.
    """

    data: np.ndarray | Frames
    affine: np.ndarray
    header: Any = field(default=None, repr=False)
    name: str = "array"
    meta: dict[str, Any] = field(default_factory=dict, repr=False)
    # False for results: those may be constant (a spread of zero) or thin where the target grid is coarse.
    from_outside: bool = field(default=True, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        check_shape(np.shape(self.data), self.name, FEWEST_VOXELS if self.from_outside else 1)
        if not isinstance(self.data, Frames):
            data = as_float32(self.data, self.name)
            if self.from_outside:
                check_contrast(data, self.name)
            object.__setattr__(self, "data", data)
        object.__setattr__(self, "affine", check_affine(self.affine, self.name).copy())
        if self.from_outside:
            _check_size(self)

    def __repr__(self) -> str:
        shape, size = " x ".join(map(str, self.data.shape)), " x ".join(f"{s:.3g}" for s in self.voxel_size)
        return f"Volume({self.name}: {shape} voxels of {size} mm)"

    @property
    def grid(self) -> Grid:
        """The spatial grid, without the frame axis."""
        return Grid(self.data.shape[:3], self.affine)

    @property
    def voxel_size(self) -> tuple[float, float, float]:
        """Spacing along each stored axis, mm."""
        return self.grid.voxel_size

    def frames(self) -> Iterator[np.ndarray]:
        """Each 3D array [X, Y, Z] in turn; one for 3D data. A frame of a 4D array is a view."""
        if self.data.ndim == 3:
            yield self.data
        elif isinstance(self.data, Frames):
            yield from self.data
        else:
            for t in range(self.data.shape[3]):
                yield self.data[..., t]

    def replace(self, data: np.ndarray, affine: np.ndarray | None = None) -> Volume:
        """The same scan with other voxels, and another affine where they lie on another grid.

        Header, name and meta go along. A result may be constant; it must still be finite (InputError).
        """
        affine = self.affine if affine is None else affine
        return Volume(data, affine, self.header, self.name, self.meta, from_outside=False)


def as_float32(data: np.ndarray, name: str) -> np.ndarray:
    """`data` as C-contiguous float32, checked to be real, finite and in range (InputError naming `name`)."""
    if isinstance(data, np.ma.MaskedArray) and np.ma.is_masked(data):
        raise InputError(
            f"{name}: {int(np.ma.getmaskarray(data).sum())} voxels of a masked array are masked; fill them first "
            "(array.filled(0)), and give mask= for what is not to be upscaled"
        )
    array = np.asarray(data)
    check_dtype(array.dtype, name)
    low, high = array.min(), array.max()  # a NaN anywhere makes both NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        nans, infs = int(np.isnan(array).sum()), int(np.isinf(array).sum())
        raise InputError(f"{name}: {nans} NaN and {infs} infinite voxels of {array.size}; replace them first")
    limit = float(np.finfo(np.float32).max)
    if float(low) < -limit or float(high) > limit:
        raise InputError(f"{name}: values from {low:.4g} to {high:.4g} exceed float32; rescale first")
    # PyTorch, which shares this memory, wants to be allowed to write there.
    return np.require(array, np.float32, ["C", "W"])


def check_dtype(dtype: np.dtype, name: str) -> None:
    """InputError naming `name` unless `dtype` is a real number type."""
    if dtype.fields is not None:
        raise InputError(f"{name}: RGB or structured data ({dtype}); expected one number per voxel")
    if dtype.kind == "c":
        raise InputError(f"{name}: complex data ({dtype}); take the magnitude first")
    if dtype.kind not in "buif":
        raise InputError(f"{name}: expected numbers, found dtype {dtype}")


def check_shape(shape: tuple[int, ...], name: str, fewest: int = FEWEST_VOXELS) -> None:
    """InputError naming `name` unless `shape` is 3D or 4D, not empty, with `fewest` voxels per axis."""
    if len(shape) not in (3, 4):
        raise InputError(f"{name}: expected a 3D or 4D volume, found {len(shape)}D, shape {shape}")
    if min(shape) < 1:
        raise InputError(f"{name}: the volume is empty, shape {shape}; expected voxels along every axis")
    if min(shape[:3]) < fewest:
        raise InputError(
            f"{name}: shape {shape} has fewer than {fewest} voxels along an axis; "
            "expected [X, Y, Z] or [X, Y, Z, T], and a single slice cannot be super-resolved"
        )


def _check_size(volume: Volume) -> None:
    sizes = " x ".join(f"{s:.4g}" for s in volume.voxel_size)
    view = [n * s for n, s in zip(volume.data.shape, volume.voxel_size)]
    views = " x ".join(f"{v:.4g}" for v in view)
    if max(volume.voxel_size) > LARGEST_VOXEL_MM or max(volume.voxel_size) < SMALLEST_VOXEL_MM:
        raise GeometryError(
            f"{volume.name}: voxels of {sizes} mm, which no scan of a head has; set the true voxel size (or its unit)"
        )
    if max(view) > LARGEST_VIEW_MM:
        raise GeometryError(
            f"{volume.name}: a field of view of {views} mm, which no scan of a head has; "
            "set the true voxel size (or its unit)"
        )


def check_contrast(data: np.ndarray, name: str, first: int = 0, count: int | None = None) -> None:
    """InputError where the volume, or a frame, is constant; count: of the series that begins `first` frames before."""
    frames = data if data.ndim == 4 else data[..., None]
    low, high = frames.min(axis=(0, 1, 2)), frames.max(axis=(0, 1, 2))
    flat = np.flatnonzero(low == high)
    if flat.size:
        of_series = data.ndim == 4 or count is not None
        which = f"frame {first + flat[0]} of {count or len(low)} is" if of_series else "the volume is"
        raise InputError(f"{name}: {which} constant (every voxel {low[flat[0]]:g}); expected an image")
