"""attention3d in plain PyTorch: how windows are cut, the oracle, and both passes as a backend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch

from mrisr.ops._layout import work_dtype


def segments(size: int, window: int, offset: int) -> list[tuple[int, int, int]]:
    """Windows along one axis as runs (first token, how many windows, their width): one cut by the near edge, whole
    ones, one cut by the far edge."""
    near = min(size, -offset % window)
    whole = (size - near) // window
    far = size - near - whole * window
    runs = (0, 1, near), (near, whole, window), (size - far, 1, far)
    return [run for run in runs if run[1] * run[2]]


class Region:
    """Windows of one shape, side by side: a box of the volume that splits evenly."""

    def __init__(self, runs: tuple[tuple[int, int, int], ...]) -> None:
        self.box = tuple(slice(first, first + count * width) for first, count, width in runs)
        self.counts = [count for _, count, _ in runs]
        self.widths = [width for _, _, width in runs]

    def windows(self, t: torch.Tensor) -> torch.Tensor:
        """[N, D, H, W, ...] -> [windows, tokens, ...]."""
        t = t[(slice(None), *self.box)]
        rest = t.shape[4:]
        pairs = [v for pair in zip(self.counts, self.widths) for v in pair]
        t = t.reshape(t.shape[0], *pairs, *rest)
        t = t.permute(0, 1, 3, 5, 2, 4, 6, *range(7, t.ndim))
        return t.reshape(-1, math.prod(self.widths), *rest)

    def store(self, to: torch.Tensor, windows: torch.Tensor) -> None:
        """The inverse: write [windows, tokens, ...] into this box of `to` [N, D, H, W, ...]."""
        rest = windows.shape[2:]
        t = windows.reshape(to.shape[0], *self.counts, *self.widths, *rest)
        t = t.permute(0, 1, 4, 2, 5, 3, 6, *range(7, t.ndim))
        to[(slice(None), *self.box)] = t.reshape(to.shape[0], *(c * w for c, w in zip(self.counts, self.widths)), *rest)


def regions(size, window, offset) -> Iterator[Region]:
    for runs in itertools.product(*(segments(*axis) for axis in zip(size, window, offset))):
        yield Region(runs)


def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    """The reciprocal of the root mean square of each token."""
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def gained(x: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    return x if gain is None else x * gain.to(x.dtype)


class Reference:
    """Plain PyTorch on any device and in any floating dtype; all logits of a region of windows at once."""

    def __call__(self, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save):
        out = qkv.new_empty((*qkv.shape[:4], qkv.shape[4] // 3))
        lse = qkv.new_empty((*qkv.shape[:4], heads) if save else (0,), dtype=work_dtype(qkv.dtype))
        if not qkv.numel():
            return out.copy_(qkv[..., : out.shape[4]]), lse  # autograd still sees where it came from
        for region in regions(qkv.shape[1:4], window, offset):
            q, k, v, key = self._read(region, qkv, heads, mask, work_dtype(qkv.dtype))
            if eps is not None:
                q, k = gained(q * rms(q, eps), q_gain), gained(k * rms(k, eps), k_gain)
            s = q @ k.transpose(-1, -2) * scale
            # Softmax over no key at all would be NaN: it runs over all of them, and then none counts.
            s = s.masked_fill(~(key | ~key.any(-1, keepdim=True)), -math.inf)
            p = torch.where(key, torch.softmax(s, -1), 0.0)
            region.store(out, (p @ v).transpose(1, 2).flatten(2).to(out.dtype))
            if save:
                values = torch.where(key.any(-1), torch.logsumexp(s, -1), math.inf)
                region.store(lse, values.transpose(1, 2))
        return out, lse

    @staticmethod
    def _read(region: Region, qkv, heads, mask, dtype):
        """(q, k, v [windows, heads, tokens, head_dim], keys [windows, 1, 1, tokens])."""
        t = region.windows(qkv).to(dtype).unflatten(-1, (3, heads, -1))
        q, k, v = t.permute(2, 0, 3, 1, 4)
        if mask is None:
            return q, k, v, torch.ones((1, 1, 1, q.shape[2]), dtype=torch.bool, device=q.device)
        key = region.windows(mask != 0)[:, None, None]
        # Not a product: what is no key may be NaN.
        k, v = (torch.where(key.transpose(-1, -2), x, 0.0) for x in (k, v))
        return q, k, v, key

    def backward(self, grad, out, lse, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale):
        work, head_dim = work_dtype(qkv.dtype), qkv.shape[4] // (3 * heads)
        d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        gains = torch.zeros((2, head_dim), dtype=torch.float64, device=qkv.device)
        for region in regions(qkv.shape[1:4], window, offset) if qkv.numel() else ():
            q, k, v, key = self._read(region, qkv, heads, mask, work_dtype(qkv.dtype))
            dy, y = (region.windows(t).unflatten(-1, (heads, -1)).transpose(1, 2).to(work) for t in (grad, out))
            qn, kn = q, k
            if eps is not None:
                q_rms, k_rms = rms(q, eps), rms(k, eps)
                qn, kn = gained(q * q_rms, q_gain), gained(k * k_rms, k_gain)
            # A row without keys has an infinite log-sum-exp, so all of its p are 0.
            log = region.windows(lse).transpose(1, 2)[..., None]
            p = torch.where(key, torch.exp(qn @ kn.transpose(-1, -2) * scale - log), 0.0)
            ds = p * (dy @ v.transpose(-1, -2) - (dy * y).sum(-1, keepdim=True)) * scale
            dq, dk, dv = ds @ kn, ds.transpose(-1, -2) @ qn, p.transpose(-1, -2) @ dy
            if eps is not None:
                dq, gains[0] = self._through_norm(dq, q, q_rms, q_gain, gains[0])
                dk, gains[1] = self._through_norm(dk, k, k_rms, k_gain, gains[1])
            if mask is not None:
                dk, dv = (torch.where(key.transpose(-1, -2), t, 0.0) for t in (dk, dv))
            packed = torch.stack([dq, dk, dv]).permute(1, 3, 0, 2, 4)  # [windows, tokens, 3, heads, head_dim]
            region.store(d_qkv, packed.flatten(2).to(qkv.dtype))
        return d_qkv, gains.to(work, copy=True)

    @staticmethod
    def _through_norm(d_normed, x, rms, gain, d_gain):
        """(gradient of x, d_gain with what these tokens add), x * rms * gain having the gradient `d_normed`."""
        d_gain = d_gain + (d_normed * x * rms).sum((0, 1, 2), dtype=torch.float64)
        d = gained(d_normed, gain)
        return rms * d - x * rms**3 * (d * x).mean(-1, keepdim=True), d_gain


def reference(qkv, heads, *, window=8, shift=0, mask=None, norm_eps=None, q_gain=None, k_gain=None, scale=None):
    """The same function in plain PyTorch, differentiable by autograd; in float64 it is the oracle."""
    size = list(qkv.shape[1:4])
    shift = [shift] * 3 if isinstance(shift, int) else shift
    box = size if window is None else [window] * 3
    offset = [0] * 3 if window is None else [s % window for s in shift]
    scale = (qkv.shape[-1] // (3 * heads)) ** -0.5 if scale is None else scale
    return Reference()(qkv, heads, box, offset, mask, q_gain, k_gain, norm_eps, scale, False)[0]
