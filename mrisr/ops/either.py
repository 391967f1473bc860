"""What NumPy arrays and tensors call differently, for stages that work on either kind: arrays where a plain job runs on
a CPU (`mrisr.ops.arrays`), tensors everywhere else. PyTorch is loaded where a tensor is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mrisr.ops import arrays

if TYPE_CHECKING:
    import torch

    Volume = TypeVar("Volume", np.ndarray, torch.Tensor)


def zeros_like(x: Volume) -> Volume:
    if isinstance(x, np.ndarray):
        return np.zeros(x.shape, x.dtype)
    import torch

    return torch.zeros_like(x)


def as_array(x: Volume) -> np.ndarray:
    """The voxels in memory, x's own where they are there."""
    return x if isinstance(x, np.ndarray) else x.cpu().numpy()


def like(x: np.ndarray, other: Volume) -> Volume:
    """x as other is: its kind, dtype and device."""
    if isinstance(other, np.ndarray):
        return x.astype(other.dtype, copy=False)
    import torch

    return torch.from_numpy(x).to(other)


def apart(x: Volume, source: Volume) -> Volume:
    """x, dense, and not the memory of `source`."""
    if isinstance(x, np.ndarray):
        return x.copy() if x is source else np.ascontiguousarray(x)
    return x.clone() if x is source else x.contiguous()


def flipped(x: Volume, axes: Sequence[int]) -> Volume:
    """x with some axes turned round: itself where there are none, else dense."""
    if not axes:
        return x
    return np.ascontiguousarray(np.flip(x, axes)) if isinstance(x, np.ndarray) else x.flip(axes)


def permuted(x: Volume, order: Sequence[int]) -> Volume:
    """x with its axes in another order, dense."""
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x.transpose(order))
    return x.permute(tuple(order)).contiguous()


def gather(volume: Volume, origin: Sequence[int], shape: Sequence[int]) -> Volume:
    """See `mrisr.ops.tiles.gather`."""
    if isinstance(volume, np.ndarray):
        return arrays.gather(volume, origin, shape)
    from mrisr.ops import tiles

    return tiles.gather(volume, origin, shape)


def blend_add_(volume: Volume, tile: Volume, origin: Sequence[int], weights: Sequence) -> Volume:
    """See `mrisr.ops.tiles.blend_add_`."""
    if isinstance(volume, np.ndarray):
        return arrays.blend_add_(volume, tile, origin, weights)
    from mrisr.ops import tiles

    return tiles.blend_add_(volume, tile, origin, weights)
