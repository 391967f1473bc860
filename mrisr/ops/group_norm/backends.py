"""The backends of group_norm, as pieces: `stats`, `finish` (merge, fold, apply), `apply`, and the two halves of the
backward pass."""

from __future__ import annotations

import torch

from mrisr.ops._core import CPU, CUDA
from mrisr.ops._dispatch import Backend, Family, reference_backend, triton_reason
from mrisr.ops._layout import NARROW, f32, flat, map_arguments, takes
from mrisr.ops.group_norm.onnx import to_onnx
from mrisr.ops.group_norm.reference import Reference, fold, lines, merge

SLAB = 16384  # voxels per partial, as in csrc/core/group_norm.h


def slabs_of(x: torch.Tensor) -> int:
    return -(-flat(x)[2] // SLAB)


class Core:
    """C++ on the CPU, and CUDA C++."""

    def __init__(self, core) -> None:
        self.core = core

    def stats(self, x: torch.Tensor, groups: int, mask: torch.Tensor | None) -> torch.Tensor:
        partials = torch.empty((x.shape[0], slabs_of(x), groups, 3), dtype=torch.float64, device=x.device)
        n, c, voxels, last, dtype = map_arguments(x)
        self.core("group_norm_stats", x.device, partials, x, mask, n, c, voxels, groups, last, dtype)
        return partials

    def finish(self, y, x, partials, groups, weight, bias, scale, shift, act, eps):
        n, c, _ = flat(x)
        partials = partials.contiguous()
        mean, rstd = (torch.empty((n, groups), dtype=torch.float64, device=x.device) for _ in range(2))
        folded = torch.empty((3, n, c), dtype=torch.float32, device=x.device).unbind(0)
        film = [f32(t) for t in (weight, bias, scale, shift)]
        results, sizes = (mean, rstd, *folded), (n, c, partials.shape[1], groups, eps)
        self.core("group_norm_merge_fold", x.device, *results, partials, *film, *sizes)
        return self.apply(y, x, folded, act), mean, rstd

    def apply(self, y: torch.Tensor, x: torch.Tensor, folded, act: str) -> torch.Tensor:
        numbers = lines(x, folded, torch.float32)
        self.core("group_norm_apply", x.device, y, x, *numbers, act == "silu", *map_arguments(x))
        return y

    def backward_sums(self, grad, x, folded, act) -> torch.Tensor:
        sums = torch.empty((x.shape[0], slabs_of(x), x.shape[1], 2), dtype=torch.float64, device=x.device)
        maps = (sums, grad, x, *lines(x, folded, torch.float32))
        self.core("group_norm_backward_sums", x.device, *maps, act == "silu", *map_arguments(x))
        return sums

    def backward_apply(self, grad, x, folded, through, mask, act) -> torch.Tensor:
        dx, numbers = torch.empty_like(x), lines(x, (*folded, *through), torch.float32)
        maps = (dx, grad, x, *numbers, mask)
        self.core("group_norm_backward_apply", x.device, *maps, act == "silu", *map_arguments(x))
        return dx


class Triton:
    """Triton, float32, float16 and bfloat16; on the CPU by Triton's interpreter (tests)."""

    def finish(self, y, x, partials, groups, weight, bias, scale, shift, act, eps):
        mean, rstd = merge(partials, eps)
        return self.apply(y, x, fold(mean, rstd, weight, bias, scale, shift, x.shape[1]), act), mean, rstd

    def stats(self, x: torch.Tensor, groups: int, mask: torch.Tensor | None) -> torch.Tensor:
        return self._kernels().stats(x, groups, mask)

    def apply(self, y: torch.Tensor, x: torch.Tensor, folded, act: str) -> torch.Tensor:
        return self._kernels().apply(y, x, *lines(x, folded, torch.float32), act == "silu")

    def backward_sums(self, grad, x, folded, act) -> torch.Tensor:
        return self._backward().sums(grad, x, *lines(x, folded, torch.float32), act == "silu")

    def backward_apply(self, grad, x, folded, through, mask, act) -> torch.Tensor:
        numbers = lines(x, (*folded, *through), torch.float32)
        return self._backward().apply(grad, x, *numbers, mask, act == "silu")

    @staticmethod
    def _kernels():
        from mrisr.kernels import group_norm

        return group_norm

    @staticmethod
    def _backward():
        from mrisr.kernels import group_norm_backward

        return group_norm_backward


FAMILY = Family(
    "group_norm",
    (
        Backend("native", Core(CPU), CPU.reason, takes("cpu", NARROW)),
        Backend("triton", Triton(), triton_reason, takes("triton", NARROW)),
        Backend("cuda", Core(CUDA), CUDA.reason, takes("cuda", NARROW)),
        reference_backend(Reference()),
    ),
    onnx=to_onnx,
)
