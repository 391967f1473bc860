"""Tiles out of a volume and back in.

Weights are separable and normalised beforehand: along every axis the weights of all tiles sum to one at
every voxel (the tile plan sees to it), so no running sum of weights is kept and a constant volume comes back
as that constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mrisr.errors import UsageError
from mrisr.ops._core import CPU, CUDA
from mrisr.ops._dispatch import Backend, Family, choose, reference_backend, triton_reason
from mrisr.ops._layout import DTYPE_CODES, FLOAT, takes, triple
from mrisr.ops._library import custom_op


def blend_add_(volume, tile, origin: Sequence[int], weights, *, backend: str | None = None):
    """volume[origin + (i, j, k)] += tile[i, j, k] * w0[i] * w1[j] * w2[k], in place.

    Args:
        volume: [D, H, W], floating point.
        tile: [d, h, w], dtype and device of `volume`, or float16 or bfloat16 into a float32 volume; what passes the
            volume's end is dropped.
        origin: of the tile in the volume, voxels, each in [0, size].
        weights: three vectors (d, h, w entries), numpy or torch.

    Returns `volume`. Raises UsageError where sizes do not fit, BackendError for a backend that cannot run.
    """
    origin = triple(origin, "blend_add_", "origin")
    weights = [torch.as_tensor(w).to(device=volume.device, dtype=volume.dtype).contiguous() for w in weights]
    if volume.ndim != 3 or tile.ndim != 3 or [len(w) for w in weights] != list(tile.shape):
        raise UsageError(
            f"blend_add_: expected volume [D, H, W], tile [d, h, w] and weights of d, h and w entries; found "
            f"{tuple(volume.shape)}, {tuple(tile.shape)} and {[tuple(w.shape) for w in weights]}"
        )
    widened = volume.dtype == torch.float32 and tile.dtype in DTYPE_CODES
    if tile.device != volume.device or not (widened or tile.dtype == volume.dtype):
        raise UsageError(
            f"blend_add_: tile and volume must share device and dtype (a half tile may go into a float32 volume); "
            f"they are {tile.dtype} on {tile.device} and {volume.dtype} on {volume.device}"
        )
    if any(not 0 <= o <= n for o, n in zip(origin, volume.shape)):
        raise UsageError(f"blend_add_: origin must lie in the volume {tuple(volume.shape)}; it is {tuple(origin)}")
    _blend_add(volume, tile, origin, *weights, backend or "")
    return volume


def gather(volume: torch.Tensor, origin: Sequence[int], shape: Sequence[int], *, backend: str | None = None):
    """The box [d, h, w] of `volume` [D, H, W] at `origin`; outside the volume its nearest voxel is repeated.

    origin may be negative. Returns a new contiguous tensor. Raises UsageError for an empty volume or a
    negative size.
    """
    origin, shape = triple(origin, "gather", "origin"), triple(shape, "gather", "shape")
    if volume.ndim != 3 or 0 in volume.shape:
        raise UsageError(f"gather: expected a volume [D, H, W] with voxels in it; found {tuple(volume.shape)}")
    if min(shape) < 0:
        raise UsageError(f"gather: shape must not be negative; it is {tuple(shape)}")
    return _gather(volume, origin, shape, backend or "")


@custom_op("mrisr::blend_add", mutates_args=("volume",))
def _blend_add(
    volume: torch.Tensor,
    tile: torch.Tensor,
    origin: list[int],
    w0: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    backend: str,
) -> None:
    args = (volume, tile, origin, w0, w1, w2)
    choose(ADD, backend, *args).run(*args)


@_blend_add.register_fake
def _(volume, tile, origin, w0, w1, w2, backend):
    return None


@custom_op("mrisr::gather", mutates_args=())
def _gather(volume: torch.Tensor, origin: list[int], shape: list[int], backend: str) -> torch.Tensor:
    return choose(GATHER, backend, volume, origin, shape).run(volume, origin, shape)


@_gather.register_fake
def _(volume, origin, shape, backend):
    return volume.new_empty(shape)


def _save(ctx, inputs, output) -> None:
    ctx.size, ctx.origin = inputs[0].shape, inputs[1]


def _backward(ctx, grad):
    # The adjoint of repeating the edge: everything read from a voxel is added to it.
    back = grad
    for d, (n, o) in enumerate(zip(ctx.size, ctx.origin)):
        index = torch.arange(o, o + back.shape[d], device=grad.device).clamp(0, n - 1)
        shape = [*back.shape[:d], n, *back.shape[d + 1 :]]
        back = back.new_zeros(shape).index_add(d, index, back)
    return back, None, None, None


_gather.register_autograd(_backward, setup_context=_save)


def reference_add(volume, tile, origin, w0, w1, w2) -> None:
    d, h, w = (min(n, size - o) for n, size, o in zip(tile.shape, volume.shape, origin))
    x, y, z = origin
    weighted = tile[:d, :h, :w] * (w0[:d, None, None] * w1[:h, None]) * w2[:w]
    # A row of weight zero adds nothing, whatever stands in it.
    weighted = torch.where((w0[:d, None] * w1[:h] == 0)[..., None], 0.0, weighted)
    volume[x : x + d, y : y + h, z : z + w] += weighted


def reference_gather(volume, origin, shape) -> torch.Tensor:
    for d, (o, n) in enumerate(zip(origin, shape)):
        index = torch.arange(o, o + n, device=volume.device).clamp(0, volume.shape[d] - 1)
        volume = volume.index_select(d, index)
    return volume.contiguous()


def _rows(t: torch.Tensor) -> torch.Tensor:
    return t if t.stride(2) == 1 and min(t.stride()) >= 0 else t.contiguous()


def _view(t: torch.Tensor) -> tuple:
    return t, t.shape, t.stride()


def _native_add(volume, tile, origin, w0, w1, w2) -> None:
    tile = _rows(tile.float())
    CPU("blend_add", volume.device, *_view(volume), *_view(tile), origin, [w0, w1, w2], DTYPE_CODES[tile.dtype])


def _cuda_add(volume, tile, origin, w0, w1, w2) -> None:
    CUDA("blend_add", volume.device, *_view(volume), *_view(tile), origin, [w0, w1, w2], DTYPE_CODES[tile.dtype])


def _native_gather(volume, origin, shape) -> torch.Tensor:
    volume, tile = _rows(volume), torch.empty(shape, dtype=torch.float32)
    CPU("gather", volume.device, *_view(tile), *_view(volume), origin)
    return tile


def _cuda_gather(volume, origin, shape) -> torch.Tensor:
    tile = torch.empty(shape, dtype=torch.float32, device=volume.device)
    CUDA("gather", volume.device, *_view(tile), *_view(volume), origin)
    return tile


def _triton_add(volume, tile, origin, w0, w1, w2) -> None:
    from mrisr.kernels.tiles import blend_add as kernel

    kernel(volume, tile, origin, w0, w1, w2)


def _triton_gather(volume, origin, shape) -> torch.Tensor:
    from mrisr.kernels.tiles import gather as kernel

    return kernel(volume, origin, shape)


def _native_add_accepts(volume, *rest) -> str | None:
    if volume.stride(2) != 1 and volume.shape[2] > 1:
        return f"it writes rows: the last stride of the volume must be 1; it is {volume.stride(2)}"
    return takes("cpu", FLOAT, "the volume")(volume)


ADD = Family(
    "blend",
    (
        Backend("native", _native_add, CPU.reason, _native_add_accepts),
        Backend("cuda", _cuda_add, CUDA.reason, takes("cuda", FLOAT, "the volume")),
        Backend("triton", _triton_add, triton_reason, takes("triton", FLOAT, "the volume")),
        reference_backend(reference_add),
    ),
)
GATHER = Family(
    "gather",
    (
        Backend("native", _native_gather, CPU.reason, takes("cpu", FLOAT, "the volume")),
        Backend("cuda", _cuda_gather, CUDA.reason, takes("cuda", FLOAT, "the volume")),
        Backend("triton", _triton_gather, triton_reason, takes("triton", FLOAT, "the volume")),
        reference_backend(reference_gather),
    ),
)
