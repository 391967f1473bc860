"""rms_norm in plain PyTorch: the formula, the oracle, and both passes as a backend."""

from __future__ import annotations

import torch

from mrisr.ops._layout import work_dtype

EPS = 1e-4


def plain(x, scale=None, shift=None, *, act=None, eps: float = EPS) -> torch.Tensor:
    """The formula in PyTorch's own operators, in x's dtype."""
    y = x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + eps)
    if scale is not None:
        y = y * (1 + scale)[:, :, None, None, None]
    if shift is not None:
        y = y + shift[:, :, None, None, None]
    return torch.nn.functional.silu(y) if act == "silu" else y


def reference(x, scale=None, shift=None, *, act=None, eps: float = EPS) -> torch.Tensor:
    """`plain` in float32 or better, rounded once; in float64 it is the oracle."""
    work = work_dtype(x.dtype)
    film = [None if t is None else t.to(work) for t in (scale, shift)]
    return plain(x.to(work), *film, act=act, eps=eps).to(x.dtype)


class Reference:
    """Plain PyTorch on any device and in any floating dtype."""

    def forward(self, y, x, scale, shift, act, eps) -> None:
        y.copy_(reference(x, scale, shift, act=act, eps=eps))

    def backward(self, grad, x, scale, shift, act, eps):
        work = work_dtype(x.dtype)
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
