"""Operators on NumPy arrays by the native core: what a plain job on a CPU needs, without PyTorch.

The kernels are those that the operators of the same names run on tensors, with the same arguments: the same bits.
Arrays are float32 and C-contiguous.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mrisr import environment, native
from mrisr.errors import BackendError
from mrisr.ops._dispatch import asked_for

if TYPE_CHECKING:
    import torch

FLOAT32 = 0  # of csrc/core/dtype.h
DROP = 1e-9  # of a row's largest entry; the float32 rounding of the sum is 60 times larger
FAMILIES = ("axis_apply", "gather", "blend")


def missing() -> str | None:
    """None where arrays can be worked on, else why not: there is no native core, or another backend is asked for."""
    if native.reason() is not None:
        return native.reason()
    requests = {family: asked_for(family, None) for family in FAMILIES}
    return next((f"{r[1]} asks for {r[0]}" for r in requests.values() if r is not None and r[0] != "native"), None)


def threads() -> int:
    """How many the native core uses: those of PyTorch where that is in use, so that torch.set_num_threads rules both,
    else what it would begin with."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if hasattr(torch, "get_num_threads") else environment.plain_threads()


def in_memory(volume: torch.Tensor | np.ndarray) -> np.ndarray | None:
    """The voxels of an array or a tensor as the native core reads them, in their own memory where they are dense; None
    where it is absent, or they are not float32 or not on the CPU."""
    if native.reason() is not None:
        return None
    if not isinstance(volume, np.ndarray):
        if volume.device.type != "cpu":
            return None
        volume = volume.detach().numpy()
    return np.ascontiguousarray(volume) if volume.dtype == np.float32 else None


def axis_apply(x: np.ndarray, matrix: np.ndarray, axis: int) -> np.ndarray:
    """Apply a matrix [n_out, n_in] to axis 0, 1 or 2 of x [X, Y, Z], n_in long: `mrisr.ops.resample.axis_apply`."""
    matrix = np.ascontiguousarray(matrix, np.float64)
    n_out, n_in = matrix.shape
    out = np.empty((*x.shape[:axis], n_out, *x.shape[axis + 1 :]), np.float32)
    outer, inner = (int(np.prod(part, dtype=np.int64)) for part in (x.shape[:axis], x.shape[axis + 1 :]))
    addresses = [array.ctypes.data for array in (out, _checked(x), matrix)]
    native.module().axis_apply(*addresses, outer, n_in, n_out, inner, DROP, threads())
    return out


def gather(volume: np.ndarray, origin: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """The box `shape` of a volume [D, H, W] at `origin`; outside of it its nearest voxel: `mrisr.ops.tiles.gather`."""
    tile = np.empty(tuple(shape), np.float32)
    native.module().gather(*_view(tile), *_view(_checked(volume)), list(origin), threads())
    return tile


def blend_add_(
    volume: np.ndarray, tile: np.ndarray, origin: Sequence[int], weights: Sequence[np.ndarray]
) -> np.ndarray:
    """volume[origin + (i, j, k)] += tile[i, j, k] w0[i] w1[j] w2[k], in place: `mrisr.ops.tiles.blend_add_`."""
    weights = [np.ascontiguousarray(w, np.float32) for w in weights]
    views = (*_view(_checked(volume)), *_view(_checked(tile)))
    native.module().blend_add(*views, list(origin), [w.ctypes.data for w in weights], FLOAT32, threads())
    return volume


def _view(array: np.ndarray) -> tuple:
    return array.ctypes.data, array.shape, tuple(step // array.itemsize for step in array.strides)


def _checked(array: np.ndarray) -> np.ndarray:
    """A kernel reads addresses: what lies otherwise there would be another volume."""
    if array.dtype != np.float32 or array.ndim != 3 or not array.flags.c_contiguous:
        raise BackendError(
            f"arrays: expected float32 [X, Y, Z] in C order, found {array.dtype} {array.shape}, strides {array.strides}"
        )
    return array
