"""A residual sum that leaves the statistics of its result behind, so that the group norm after it reads it once less
(PERFORMANCE: 1 read saved of 3 passes)."""

from __future__ import annotations

import torch

from mrisr.errors import UsageError
from mrisr.ops._dispatch import Family, choose
from mrisr.ops._library import custom_op
from mrisr.ops._spec import Spec
from mrisr.ops.group_norm import FAMILY as GROUP_NORM
from mrisr.ops.group_norm import as_layout, dense, group_norm
from mrisr.ops.group_norm import reference as norm_reference
from mrisr.ops.group_norm_backends import slabs_of
from mrisr.ops.group_norm_cases import ADD_CASES


def add_stats(
    x: torch.Tensor, y: torch.Tensor, groups: int, mask: torch.Tensor | None = None, *, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + y, and the partial statistics of the sum.

    Args:
        x, y: [N, C, D, H, W], of one dtype and device. The sum has x's memory format.
        groups, mask: as in `group_norm`.

    Returns:
        (sum, partials), partials float64 [N, slabs, groups, 3] as `mrisr.ops.group_norm.stats` returns them; they are
        of the sum as it is stored, and carry no gradient: `group_norm(sum, ..., partials=partials)` has the gradient of
        statistics that it computes itself.

    Raises:
        UsageError: sizes do not fit. BackendError: `backend` was asked for and cannot run.
    """
    shape = tuple(x.shape)
    if x.ndim != 5 or not x.is_floating_point() or x.shape != y.shape or (x.dtype, x.device) != (y.dtype, y.device):
        raise UsageError(
            f"add_stats: x and y must be floating point [N, C, D, H, W], alike; they are {x.dtype} {shape} on "
            f"{x.device} and {y.dtype} {tuple(y.shape)} on {y.device}"
        )
    if groups < 1 or shape[1] % groups:
        raise UsageError(f"add_stats: channels ({shape[1]}) must be divisible by groups ({groups}); x.shape={shape}")
    if mask is not None:
        if tuple(mask.shape) != (shape[0], 1, *shape[2:]) or mask.dtype not in (torch.bool, torch.uint8):
            raise UsageError(
                f"add_stats: mask must be bool or uint8 {[shape[0], 1, *shape[2:]]}; it is {mask.dtype} "
                f"{list(mask.shape)}"
            )
        mask = mask.to(torch.uint8).contiguous()
    x = dense(x)
    return _add_stats(x, as_layout(y, x), groups, mask, backend or "")


@custom_op("mrisr::add_stats", mutates_args=())
def _add_stats(
    x: torch.Tensor, y: torch.Tensor, groups: int, mask: torch.Tensor | None, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return choose(FAMILY, backend, x).run.add(x, y, groups, mask)


@_add_stats.register_fake
def _(x, y, groups, mask, backend):
    return torch.empty_like(x), x.new_empty((x.shape[0], slabs_of(x), groups, 3), dtype=torch.float64)


def _save(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _partials):
    return grad, grad, None, None, None


_add_stats.register_autograd(_backward, setup_context=_save)


def _normed(x, y, groups: int, mask=None, *, backend: str | None = None) -> torch.Tensor:
    """What parity compares, values and gradients: the sum, and its group norm by the partials that came with it."""
    total, partials = add_stats(x, y, groups, mask, backend=backend)
    normed = group_norm(total, groups, mask=mask, partials=partials, act="silu", backend=backend)
    return torch.stack([total, normed])


def reference(x, y, groups: int, mask=None) -> torch.Tensor:
    """The same in plain PyTorch."""
    return torch.stack([x + y, norm_reference(x + y, groups, mask=mask, act="silu")])


def to_onnx(x, y, groups, mask=None, backend=""):
    """The sum; group_norm's ONNX form computes its statistics itself, so the partials stay empty."""
    from onnxscript import opset18 as op

    return op.Add(x, y), op.ConstantOfShape(op.Constant(value_ints=[0, 0, 0, 3]))


FAMILY = Family("add_stats", GROUP_NORM.backends)

SPEC = Spec(
    family=FAMILY,
    call=_normed,
    reference=reference,
    cases=ADD_CASES,
    tolerance={torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 4e-3},
    gradients=("x", "y"),
    onnx=to_onnx,
)
