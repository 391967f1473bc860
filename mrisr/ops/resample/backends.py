"""The backends of resample3d. Each evaluates the spline, and has its two derivatives as `slope` and `adjoint`."""

from __future__ import annotations

import torch

from mrisr.ops._core import CPU
from mrisr.ops._dispatch import Backend, Family, reference_backend, triton_reason
from mrisr.ops._layout import FLOAT, FLOATS, contiguous, takes
from mrisr.ops.resample.matrices import BOUNDARIES
from mrisr.ops.resample.reference import Reference, Sampling


class Native:
    """C++ on the CPU, float32 and float64. The adjoint sums every coefficient in raster order of the target."""

    def __call__(self, coefficients, displacement, s: Sampling):
        n, channels = coefficients.shape[:2]
        out = coefficients.new_empty((n, channels, *s.target))
        coefficients, displacement = coefficients.contiguous(), contiguous(displacement)
        self._run("resample3d", out, s, displacement, (out, coefficients, displacement), n, channels)
        return out

    def slope(self, coefficients, displacement, grad, s: Sampling):
        n, channels = coefficients.shape[:2]
        out = coefficients.new_empty((n, 3, *s.target))
        coefficients, displacement, grad = coefficients.contiguous(), contiguous(displacement), grad.contiguous()
        arrays = (out, coefficients, displacement, grad)
        self._run("resample3d_slope", out, s, displacement, arrays, n, channels)
        return out

    def adjoint(self, displacement, grad, s: Sampling):
        n, channels = grad.shape[:2]
        out = grad.new_empty((n, channels, *s.padded))
        displacement, grad = contiguous(displacement), grad.contiguous()
        self._run("resample3d_adjoint", out, s, displacement, (out, displacement, grad), n, channels)
        return out

    def _run(self, name: str, out, s: Sampling, displacement, arrays, n: int, channels: int) -> None:
        kind = "f64" if out.dtype == torch.float64 else "f32"
        one = displacement is not None and displacement.shape[0] == 1
        how = (n, channels, s.source, s.target, s.matrix, one, s.order, BOUNDARIES.index(s.boundary))
        CPU(f"{name}_{kind}", out.device, *arrays, *how)


class Triton:
    """Triton, float32, no atomics: the same bits every time. The adjoint sorts the target voxels first."""

    def __call__(self, coefficients, displacement, s: Sampling):
        from mrisr.kernels.resample import value

        fixed = s.matrix, s.source, s.target, s.order, s.boundary == "mirror"
        return value(coefficients.contiguous(), contiguous(displacement), *fixed)

    def slope(self, coefficients, displacement, grad, s: Sampling):
        from mrisr.kernels.resample import slope

        fixed = s.matrix, s.source, s.target, s.order, s.boundary == "mirror"
        return slope(coefficients.contiguous(), contiguous(displacement), grad.contiguous(), *fixed)

    def adjoint(self, displacement, grad, s: Sampling):
        from mrisr.kernels.resample_adjoint import adjoint

        fixed = s.matrix, s.source, s.target, s.order, s.boundary == "mirror"
        return adjoint(contiguous(displacement), grad.contiguous(), *fixed)


FAMILY = Family(
    "resample3d",
    (
        Backend("native", Native(), CPU.reason, takes("cpu", FLOATS)),
        Backend("triton", Triton(), triton_reason, takes("triton", FLOAT)),
        reference_backend(Reference()),
    ),
)
