"""What every family asks of its tensors: layouts, dtypes, devices, and where a result may go."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from mrisr.errors import UsageError
from mrisr.ops._dispatch import interpreted

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # of csrc/core/dtype.h
FLOAT = (torch.float32,)
FLOATS = (torch.float32, torch.float64)
NARROW = tuple(DTYPE_CODES)  # what the kernels of a network take


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """What arithmetic runs in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def f32(t: torch.Tensor | None) -> torch.Tensor | None:
    """Parameters as the kernels read them."""
    return None if t is None else t.float().contiguous()


def contiguous(t: torch.Tensor | None) -> torch.Tensor | None:
    return None if t is None else t.contiguous()


def triple(values: int | Sequence[int], op: str, name: str) -> list[int]:
    """Three integers, one per axis; one number stands for three. UsageError of `op` else."""
    three = [values] * 3 if isinstance(values, int) else [int(v) for v in values]
    if len(three) != 3:
        raise UsageError(f"{op}: {name} must have three entries; it is {values!r}")
    return three


# Feature maps [N, C, D, H, W], contiguous or channels-last.


def is_channels_last(x: torch.Tensor) -> bool:
    """Memory is [N, D, H, W, C] and not [N, C, D, H, W] as well."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last_3d)


def dense(x: torch.Tensor) -> torch.Tensor:
    """x itself where it is dense in one of the two layouts, else a contiguous copy."""
    return x if x.is_contiguous() or is_channels_last(x) else x.contiguous()


def as_layout(t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """t in the dtype and the memory layout of `like`, copied only where it has another."""
    layout = torch.channels_last_3d if is_channels_last(like) else torch.contiguous_format
    return t.to(like.dtype).contiguous(memory_format=layout)


def flat(x: torch.Tensor) -> tuple[int, int, int]:
    """(samples, channels, voxels) of a feature map."""
    n, c, d, h, w = x.shape
    return n, c, d * h * w


def map_arguments(x: torch.Tensor) -> tuple[int, int, int, bool, int]:
    """How a dense feature map is described to the native core: samples, channels, voxels, channels-last, dtype."""
    return *flat(x), not x.is_contiguous(), DTYPE_CODES[x.dtype]


def check_out(op: str, out: torch.Tensor, x: torch.Tensor, inputs: Sequence[torch.Tensor | None]) -> None:
    """UsageError where `out` cannot take the result of x, or something wants a gradient."""
    if (out.shape, out.dtype, out.device) != (x.shape, x.dtype, x.device) or dense(out) is not out:
        raise UsageError(
            f"{op}: out must be dense, {x.dtype} {list(x.shape)} on {x.device}, as x is; it is {out.dtype} "
            f"{list(out.shape)} on {out.device} with strides {list(out.stride())}"
        )
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (out, *inputs)):
        raise UsageError(f"{op}: out= keeps nothing for a backward pass; leave it out, or use torch.no_grad()")


# What a backend accepts.


def wrong_device(kind: str, device: torch.device, name: str) -> str | None:
    """None where a backend of this kind ("cpu", "cuda" or "triton") runs on the device, else why not."""
    if kind == "triton":
        kind = "cpu" if interpreted() and device.type == "cpu" else "cuda"
    return None if device.type == kind else f"it runs on {kind}; {name} is on {device}"


def wrong_dtype(dtypes: Sequence[torch.dtype], dtype: torch.dtype, name: str) -> str | None:
    """None where the dtype is one of those taken, else which are."""
    if dtype in dtypes:
        return None
    *first, last = (str(d).removeprefix("torch.") for d in dtypes)
    return f"it takes {', '.join(first)}{' and ' if first else ''}{last}; {name} is {dtype}"


def takes(kind: str, dtypes: Sequence[torch.dtype], name: str = "x") -> Callable[..., str | None]:
    """`accepts` of a backend that asks for nothing but the device and the dtype of its first argument."""

    def accepts(x: torch.Tensor, *rest) -> str | None:
        return wrong_device(kind, x.device, name) or wrong_dtype(dtypes, x.dtype, name)

    return accepts
