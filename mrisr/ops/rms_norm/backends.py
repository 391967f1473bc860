"""The backends of rms_norm: each has `forward(y, x, ...)`, which writes y (y may be x), and `backward`."""

from __future__ import annotations

import torch

from mrisr.ops._core import CPU, CUDA
from mrisr.ops._dispatch import Backend, Family, reference_backend, triton_reason
from mrisr.ops._layout import NARROW, f32, flat, map_arguments, takes
from mrisr.ops.rms_norm.onnx import to_onnx
from mrisr.ops.rms_norm.reference import Reference

SLAB = 2048  # voxels per partial sum, as in csrc/core/rms_norm.h


def _sums(x: torch.Tensor) -> torch.Tensor:
    n, c, voxels = flat(x)
    return torch.empty((n, -(-voxels // SLAB), c, 2), dtype=torch.float64, device=x.device)


class Core:
    """C++ on the CPU, and CUDA C++."""

    def __init__(self, core) -> None:
        self.core = core

    def forward(self, y, x, scale, shift, act, eps) -> None:
        self.core("rms_norm", x.device, y, x, f32(scale), f32(shift), eps, act == "silu", *map_arguments(x))

    def backward(self, grad, x, scale, shift, act, eps):
        dx, sums = torch.empty_like(x), _sums(x)
        maps = (dx, sums, grad, x, f32(scale), f32(shift))
        self.core("rms_norm_backward", x.device, *maps, eps, act == "silu", *map_arguments(x))
        return dx, sums


class Triton:
    """Triton, float32, float16 and bfloat16; on the CPU by Triton's interpreter (tests)."""

    def forward(self, y, x, scale, shift, act, eps) -> None:
        from mrisr.kernels import rms_norm as kernels

        kernels.forward(y, x, f32(scale), f32(shift), act == "silu", eps)

    def backward(self, grad, x, scale, shift, act, eps):
        from mrisr.kernels import rms_norm as kernels

        dx, sums = torch.empty_like(x), _sums(x)
        kernels.backward(dx, sums, grad, x, f32(scale), f32(shift), act == "silu", eps)
        return dx, sums


FAMILY = Family(
    "rms_norm",
    (
        Backend("native", Core(CPU), CPU.reason, takes("cpu", NARROW)),
        Backend("triton", Triton(), triton_reason, takes("triton", NARROW)),
        Backend("cuda", Core(CUDA), CUDA.reason, takes("cuda", NARROW)),
        reference_backend(Reference()),
    ),
    onnx=to_onnx,
)
