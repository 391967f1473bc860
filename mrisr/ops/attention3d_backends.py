"""The backends of attention3d. Each is callable as the whole operator; `backward` gives its gradients.

Their arguments are those of the custom operator: window and offset per axis (token i is in window (i + offset) //
window; one window as large as the volume is global attention), the mask as uint8.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

from mrisr import native
from mrisr.ops._dispatch import Backend, Family, interpreted, triton_reason
from mrisr.ops._spec import address, always, takes_all, threads

_DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
TRITON_HEAD_DIMS = (32, 64, 128)
NATIVE_HEAD_DIM = 512  # the largest; scratch memory grows with it


def segments(size: int, window: int, offset: int) -> list[tuple[int, int, int]]:
    """Windows along one axis as runs (first token, how many windows, their width): one cut by the near edge, whole
    ones, one cut by the far edge."""
    near = min(size, -offset % window)
    whole = (size - near) // window
    far = size - near - whole * window
    runs = (0, 1, near), (near, whole, window), (size - far, 1, far)
    return [run for run in runs if run[1] * run[2]]


class _Region:
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


def _regions(size, window, offset) -> Iterator[_Region]:
    for runs in itertools.product(*(segments(*axis) for axis in zip(size, window, offset))):
        yield _Region(runs)


def _work(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _gained(x: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    return x if gain is None else x * gain.to(x.dtype)


class Reference:
    """Plain PyTorch on any device and in any floating dtype; all logits of a region of windows at once."""

    def __call__(self, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save):
        out = qkv.new_empty((*qkv.shape[:4], qkv.shape[4] // 3))
        lse = qkv.new_empty((*qkv.shape[:4], heads) if save else (0,), dtype=_work(qkv.dtype))
        if not qkv.numel():
            return out.copy_(qkv[..., : out.shape[4]]), lse  # autograd still sees where it came from
        for region in _regions(qkv.shape[1:4], window, offset):
            q, k, v, key = self._read(region, qkv, heads, mask, _work(qkv.dtype))
            if eps is not None:
                q, k = _gained(q * _rms(q, eps), q_gain), _gained(k * _rms(k, eps), k_gain)
            s = q @ k.transpose(-1, -2) * scale
            # Softmax over no key at all would be NaN: it runs over all of them, and then none counts.
            s = s.masked_fill(~(key | ~key.any(-1, keepdim=True)), -math.inf)
            p = torch.where(key, torch.softmax(s, -1), 0.0)
            region.store(out, (p @ v).transpose(1, 2).flatten(2).to(out.dtype))
            if save:
                found = torch.where(key.any(-1), torch.logsumexp(s, -1), math.inf)
                region.store(lse, found.transpose(1, 2))
        return out, lse

    @staticmethod
    def _read(region: _Region, qkv, heads, mask, dtype):
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
        work, head_dim = _work(qkv.dtype), qkv.shape[4] // (3 * heads)
        d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        gains = torch.zeros((2, head_dim), dtype=torch.float64, device=qkv.device)
        for region in _regions(qkv.shape[1:4], window, offset) if qkv.numel() else ():
            q, k, v, key = self._read(region, qkv, heads, mask, _work(qkv.dtype))
            dy, y = (region.windows(t).unflatten(-1, (heads, -1)).transpose(1, 2).to(work) for t in (grad, out))
            qn, kn = q, k
            if eps is not None:
                q_rms, k_rms = _rms(q, eps), _rms(k, eps)
                qn, kn = _gained(q * q_rms, q_gain), _gained(k * k_rms, k_gain)
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
        d = _gained(d_normed, gain)
        return rms * d - x * rms**3 * (d * x).mean(-1, keepdim=True), d_gain


class Sdpa(Reference):
    """Windows cut out, PyTorch's scaled_dot_product_attention on each region. It keeps no log-sum-exp, so no
    gradients."""

    def __call__(self, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save):
        out = qkv.new_empty((*qkv.shape[:4], qkv.shape[4] // 3))
        for region in _regions(qkv.shape[1:4], window, offset) if qkv.numel() else ():
            q, k, v, key = self._read(region, qkv, heads, mask, qkv.dtype)
            if eps is not None:
                q, k = (
                    _gained(t.float() * _rms(t.float(), eps), gain).to(t.dtype)
                    for t, gain in ((q, q_gain), (k, k_gain))
                )
            allowed = None if mask is None else key | ~key.any(-1, keepdim=True)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)
            if mask is not None:
                y = torch.where(key.any(-1, keepdim=True), y, 0.0)
            region.store(out, y.transpose(1, 2).flatten(2))
        return out, qkv.new_empty((0,), dtype=_work(qkv.dtype))


def _f32(t: torch.Tensor | None) -> torch.Tensor | None:
    return None if t is None else t.float().contiguous()


class Native:
    """C++ on the CPU; float16 and bfloat16 are widened as they are read, arithmetic is float32."""

    def __call__(self, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save):
        out = qkv.new_empty((*qkv.shape[:4], qkv.shape[4] // 3))
        lse = qkv.new_empty((*qkv.shape[:4], heads) if save else (0,), dtype=torch.float32)
        gains = _f32(q_gain), _f32(k_gain)
        native.module().attention3d(
            address(out),
            address(lse) if save else 0,
            *self._inputs(qkv, mask, gains),
            *self._geometry(qkv, heads, window, offset),
            eps or 0.0,
            scale,
            threads(),
        )
        return out, lse

    def backward(self, grad, out, lse, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale):
        d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        d_gains = torch.empty((2, qkv.shape[4] // (3 * heads)), dtype=torch.float32)
        gains = _f32(q_gain), _f32(k_gain)
        native.module().attention3d_backward(
            address(d_qkv),
            address(d_gains),
            address(grad),
            address(out),
            address(lse),
            *self._inputs(qkv, mask, gains),
            *self._geometry(qkv, heads, window, offset),
            eps or 0.0,
            scale,
            threads(),
        )
        return d_qkv, d_gains

    @staticmethod
    def _inputs(qkv, mask, gains) -> tuple[int, ...]:
        return address(qkv), address(mask), *map(address, gains)

    @staticmethod
    def _geometry(qkv, heads, window, offset) -> tuple:
        head_dim = qkv.shape[4] // (3 * heads)
        sizes = (qkv.shape[0], list(qkv.shape[1:4]), list(qkv.stride()[:4]), heads, head_dim)
        return *sizes, list(window), list(offset), _DTYPE_CODES[qkv.dtype]


class Triton:
    """Triton, float32, float16 and bfloat16; on the CPU by Triton's interpreter (tests)."""

    def __call__(self, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save):
        from mrisr.kernels import attention3d as kernels

        return kernels.forward(qkv, heads, window, offset, mask, _f32(q_gain), _f32(k_gain), eps, scale, save)

    def backward(self, grad, out, lse, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale):
        from mrisr.kernels import attention3d as kernels

        call = (heads, window, offset, mask, _f32(q_gain), _f32(k_gain), eps, scale)
        return kernels.backward(grad, out, lse, qkv, *call)


def _dtype_reason(qkv) -> str | None:
    return None if qkv.dtype in _DTYPE_CODES else f"it takes float32, float16 and bfloat16; qkv is {qkv.dtype}"


def _native_accepts(qkv, heads, *rest) -> str | None:
    if qkv.device.type != "cpu":
        return f"it runs on cpu; qkv is on {qkv.device}"
    head_dim = qkv.shape[4] // (3 * heads)
    if head_dim > NATIVE_HEAD_DIM:
        return f"it takes head dims up to {NATIVE_HEAD_DIM}; this one is {head_dim}"
    return _dtype_reason(qkv)


def _triton_accepts(qkv, heads, *rest) -> str | None:
    if qkv.device.type != "cuda" and not (interpreted() and qkv.device.type == "cpu"):
        return f"it runs on cuda; qkv is on {qkv.device}"
    head_dim = qkv.shape[4] // (3 * heads)
    if head_dim not in TRITON_HEAD_DIMS:
        return f"it takes head dims {', '.join(map(str, TRITON_HEAD_DIMS))}; this one is {head_dim}"
    return _dtype_reason(qkv)


def _sdpa_accepts(qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save) -> str | None:
    if save:
        return "it keeps no log-sum-exp, which the gradients need (call it under torch.no_grad())"
    return _dtype_reason(qkv)


MEASURED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "attention3d.json"


@cache
def _measured() -> tuple[dict, ...]:
    """Rows {device, dtype, head_dim, window (null: global), tokens, triton_ms, sdpa_ms} of the benchmark, if it ran."""
    if not MEASURED.is_file():
        return ()
    return tuple(json.loads(MEASURED.read_text()).get("rows", ()))


def sdpa_was_faster(rows, device: str, dtype: str, head_dim: int, window: int | None, tokens: int) -> bool:
    """What the rows of the same device, dtype, head dim and window say of the nearest number of tokens; no such row:
    no."""
    key = (device, dtype, head_dim, window)
    same = [row for row in rows if (row["device"], row["dtype"], row["head_dim"], row["window"]) == key]
    if not same:
        return False
    nearest = min(same, key=lambda row: abs(math.log(row["tokens"] / tokens)))
    return nearest["sdpa_ms"] < nearest["triton_ms"]


def _prefer(qkv, heads, window, *rest) -> str | None:
    if qkv.device.type != "cuda" or not qkv.numel() or not _measured():
        return None
    size = qkv.shape[1:4]
    edge = None if list(window) == list(size) else window[0]
    call = (str(qkv.dtype).removeprefix("torch."), qkv.shape[4] // (3 * heads), edge, math.prod(size))
    return "sdpa" if sdpa_was_faster(_measured(), torch.cuda.get_device_name(qkv.device), *call) else None


FAMILY = Family(
    "attention3d",
    (
        Backend("native", Native(), native.reason, _native_accepts),
        Backend("triton", Triton(), triton_reason, _triton_accepts),
        Backend("sdpa", Sdpa(), always, _sdpa_accepts),
        Backend("reference", Reference(), always, takes_all),
    ),
    prefer=_prefer,
)
