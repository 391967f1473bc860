"""Voxels as whole numbers of a NIfTI file, by a slope and an intercept."""

from __future__ import annotations

import warnings

import numpy as np
from nibabel.spatialimages import SpatialImage

from mrisr.errors import MrisrWarning

__all__ = ["stored"]

FILLED = 0.01  # of all voxels: so many with one and the same value were filled with it
FEWEST_STEPS = 1000  # for what is no outlier: scanners store 4096
LOOKED_AT = 1_000_000  # voxels, for percentiles


def stored(image: SpatialImage, data: np.ndarray, dtype: str, name: str) -> SpatialImage:
    """`image` with the voxels `data` as `dtype`. Warns where a few extreme values leave few steps for the others.

    name: what a warning calls it.
    """
    exact = next((v for v in (0.0, float(data.flat[0])) if (data == np.float32(v)).mean() >= FILLED), None)
    _warn_where_steps_are_coarse(data, exact, dtype, name)
    if exact is None:
        image.set_data_dtype(dtype)
        image.header.set_slope_inter(None, None)  # nibabel then takes those that use the whole range
        return image
    most = np.iinfo(dtype).max
    slope = np.float32(max(data.max() - exact, exact - data.min(), np.finfo(np.float32).tiny) / most * (1 + 1e-6))
    counts = np.rint((data.astype(np.float64) - exact) / slope).astype(dtype)
    image.header.set_data_dtype(dtype)
    whole = type(image)(counts, image.affine, image.header)
    whole.header.set_slope_inter(slope, exact)
    return whole


def _warn_where_steps_are_coarse(data: np.ndarray, exact: float | None, dtype: str, name: str) -> None:
    values = data.ravel()[:: max(1, data.size // LOOKED_AT)]
    values = values if exact is None else values[values != np.float32(exact)]
    if not values.size:
        return
    low, high = map(float, np.percentile(values, (1, 99)))
    lowest, highest = float(data.min()), float(data.max())
    steps = 65535 * (high - low) / (highest - lowest) if highest > lowest else 0.0
    if 0 < steps < FEWEST_STEPS:
        warnings.warn(
            f"{name}: {dtype} leaves {steps:.3g} steps for 98 % of the values ({low:.4g} to {high:.4g}), since some "
            f"reach from {lowest:.4g} to {highest:.4g}; write float32",
            MrisrWarning,
            stacklevel=4,
        )
