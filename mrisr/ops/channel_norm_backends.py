"""The backends of channel_norm: each has `forward(y, x, ...)`, which writes y (y may be x), and `backward`."""

from __future__ import annotations

import torch

from mrisr import native
from mrisr.ops._dispatch import Backend, triton_reason
from mrisr.ops._spec import address, always, takes_all, threads
from mrisr.ops.group_norm_backends import DTYPE_CODES, on_cpu, on_cuda, on_triton

SLAB = 2048  # voxels per partial sum, as in csrc/core/channel_norm.h


def _f32(t: torch.Tensor | None) -> torch.Tensor | None:
    return None if t is None else t.float().contiguous()


def _sums(x: torch.Tensor) -> torch.Tensor:
    slabs = -(-x[0, 0].numel() // SLAB) if len(x) else 0
    return torch.empty((len(x), slabs, x.shape[1], 2), dtype=torch.float64, device=x.device)


class Reference:
    """Plain PyTorch on any device and in any floating dtype."""

    def forward(self, y, x, scale, shift, act, eps) -> None:
        from mrisr.ops.channel_norm import reference

        y.copy_(reference(x, scale, shift, act=act, eps=eps))

    def backward(self, grad, x, scale, shift, act, eps):
        work = torch.float64 if x.dtype == torch.float64 else torch.float32
        gain, offset = (None if t is None else t.to(work)[:, :, None, None, None] for t in (scale, shift))
        gain = torch.ones((), dtype=work, device=x.device) if gain is None else 1 + gain
        values, dz = x.to(work), grad.to(work)
        r = torch.rsqrt(values.square().mean(dim=1, keepdim=True) + eps)
        normed = values * r
        if act == "silu":
            z = normed * gain + (0.0 if offset is None else offset)
            s = torch.sigmoid(z)
            dz = dz * s * (1 + z * (1 - s))
        w = dz * gain
        dx = r * (w - normed * (w * normed).mean(dim=1, keepdim=True))
        sums = [t.sum((2, 3, 4), dtype=torch.float64) for t in (dz, dz * normed)]
        return torch.empty_like(x).copy_(dx), torch.stack(sums, dim=-1)[:, None]


class _Core:
    """What the C++ and the CUDA backend share: the same functions of the native core, one with a thread count and
    one with a stream at the end."""

    def _call(self, name: str, x: torch.Tensor, *args) -> None:
        raise NotImplementedError

    def forward(self, y, x, scale, shift, act, eps) -> None:
        film = [_f32(t) for t in (scale, shift)]
        self._call("channel_norm", x, *map(address, (y, x, *film)), *self._rest(x, act, eps))

    def backward(self, grad, x, scale, shift, act, eps):
        dx, sums, film = torch.empty_like(x), _sums(x), [_f32(t) for t in (scale, shift)]
        self._call("channel_norm_backward", x, *map(address, (dx, sums, grad, x, *film)), *self._rest(x, act, eps))
        return dx, sums

    def _rest(self, x: torch.Tensor, act: str, eps: float) -> tuple:
        n, c, d, h, w = x.shape
        return eps, act == "silu", n, c, d * h * w, not x.is_contiguous(), DTYPE_CODES[x.dtype]


class Native(_Core):
    """C++ on the CPU: float32, float16 and bfloat16."""

    def _call(self, name: str, x: torch.Tensor, *args) -> None:
        getattr(native.module(), name)(*args, threads())


class Cuda(_Core):
    """CUDA C++: float32, float16 and bfloat16."""

    def _call(self, name: str, x: torch.Tensor, *args) -> None:
        with torch.cuda.device(x.device):
            getattr(native.module(), f"cuda_{name}")(*args, torch.cuda.current_stream().cuda_stream)


class Triton:
    """Triton, float32, float16 and bfloat16; on the CPU by Triton's interpreter (tests)."""

    def forward(self, y, x, scale, shift, act, eps) -> None:
        from mrisr.kernels import channel_norm as kernels

        kernels.forward(y, x, _f32(scale), _f32(shift), act == "silu", eps)

    def backward(self, grad, x, scale, shift, act, eps):
        from mrisr.kernels import channel_norm as kernels

        dx, sums = torch.empty_like(x), _sums(x)
        kernels.backward(dx, sums, grad, x, _f32(scale), _f32(shift), act == "silu", eps)
        return dx, sums


BACKENDS = (
    Backend("native", Native(), native.reason, on_cpu),
    Backend("triton", Triton(), triton_reason, on_triton),
    Backend("cuda", Cuda(), native.cuda_reason, on_cuda),
    Backend("reference", Reference(), always, takes_all),
)
