"""Resampling of 3D volumes in one interpolation: between grids, and along a displacement field.

`resample3d` evaluates the B-spline through a volume's samples at any positions. Where the positions are those of a grid
with parallel axes and nothing is displaced, it is one small matrix per axis (mrisr/ops/resample/matrices.py), which is
quicker and computes the same; `apply_axes` is that path by itself, for every linear step mrisr takes between two such
grids: B-spline or Fourier interpolation, a k-space cut, a slice profile, and the adjoint of each.

Matrices and `apply_axes` need no PyTorch; what does is imported where it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mrisr.ops.resample.along import apply_axes, transposed
from mrisr.ops.resample.matrices import bspline_matrix, centred_matrix, fourier_matrix, interpolation_matrix

if TYPE_CHECKING:
    from mrisr.ops.resample.axes import axis_apply
    from mrisr.ops.resample.jacobian import jacobian_determinant
    from mrisr.ops.resample.spline import resample3d, resample3d_adjoint

__all__ = [
    "apply_axes",
    "axis_apply",
    "bspline_matrix",
    "centred_matrix",
    "fourier_matrix",
    "interpolation_matrix",
    "jacobian_determinant",
    "resample3d",
    "resample3d_adjoint",
    "transposed",
]

_OF_TORCH = {
    "axis_apply": "axes",
    "jacobian_determinant": "jacobian",
    "resample3d": "spline",
    "resample3d_adjoint": "spline",
}


def __getattr__(name: str):
    if name not in _OF_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_OF_TORCH[name]}"), name)
    globals()[name] = value
    return value
