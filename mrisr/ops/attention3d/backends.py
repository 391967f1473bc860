"""The backends of attention3d. Each is callable as the whole operator; `backward` gives its gradients.

Their arguments are those of the custom operator: window and offset per axis (token i is in window (i + offset) //
window; one window as large as the volume is global attention), the mask as uint8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from mrisr.ops._core import CPU
from mrisr.ops._dispatch import Backend, Family, reference_backend, triton_reason
from mrisr.ops._layout import DTYPE_CODES, NARROW, f32, work_dtype, wrong_device, wrong_dtype
from mrisr.ops.attention3d.measured import prefer
from mrisr.ops.attention3d.onnx import to_onnx
from mrisr.ops.attention3d.reference import Reference, gained, regions, rms

TRITON_HEAD_DIMS = (32, 64, 128)
NATIVE_HEAD_DIM = 512  # the largest; scratch memory grows with it


class Sdpa(Reference):
    """Windows cut out, PyTorch's scaled_dot_product_attention on each region. It keeps no log-sum-exp, so no
    gradients."""

    def __call__(self, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save):
        out = qkv.new_empty((*qkv.shape[:4], qkv.shape[4] // 3))
        for region in regions(qkv.shape[1:4], window, offset) if qkv.numel() else ():
            q, k, v, key = self._read(region, qkv, heads, mask, qkv.dtype)
            if eps is not None:
                q, k = (
                    gained(t.float() * rms(t.float(), eps), gain).to(t.dtype) for t, gain in ((q, q_gain), (k, k_gain))
                )
            allowed = None if mask is None else key | ~key.any(-1, keepdim=True)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)
            if mask is not None:
                y = torch.where(key.any(-1, keepdim=True), y, 0.0)
            region.store(out, y.transpose(1, 2).flatten(2))
        return out, qkv.new_empty((0,), dtype=work_dtype(qkv.dtype))


class Native:
    """C++ on the CPU; float16 and bfloat16 are widened as they are read, arithmetic is float32."""

    def __call__(self, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save):
        out = qkv.new_empty((*qkv.shape[:4], qkv.shape[4] // 3))
        lse = qkv.new_empty((*qkv.shape[:4], heads) if save else (0,), dtype=torch.float32)
        inputs = (qkv, mask, f32(q_gain), f32(k_gain))
        how = (*self._geometry(qkv, heads, window, offset), eps or 0.0, scale)
        CPU("attention3d", qkv.device, out, lse if save else None, *inputs, *how)
        return out, lse

    def backward(self, grad, out, lse, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale):
        d_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
        d_gains = torch.empty((2, head_dim(qkv, heads)), dtype=torch.float32)
        inputs = (qkv, mask, f32(q_gain), f32(k_gain))
        how = (*self._geometry(qkv, heads, window, offset), eps or 0.0, scale)
        CPU("attention3d_backward", qkv.device, d_qkv, d_gains, grad, out, lse, *inputs, *how)
        return d_qkv, d_gains

    @staticmethod
    def _geometry(qkv, heads, window, offset) -> tuple:
        sizes = (qkv.shape[0], list(qkv.shape[1:4]), list(qkv.stride()[:4]), heads, head_dim(qkv, heads))
        return *sizes, list(window), list(offset), DTYPE_CODES[qkv.dtype]


class Triton:
    """Triton, float32, float16 and bfloat16; on the CPU by Triton's interpreter (tests)."""

    def __call__(self, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save):
        from mrisr.kernels import attention3d as kernels

        return kernels.forward(qkv, heads, window, offset, mask, f32(q_gain), f32(k_gain), eps, scale, save)

    def backward(self, grad, out, lse, qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale):
        from mrisr.kernels import attention3d_backward as kernels

        call = (heads, window, offset, mask, f32(q_gain), f32(k_gain), eps, scale)
        return kernels.backward(grad, out, lse, qkv, *call)


def head_dim(qkv: torch.Tensor, heads: int) -> int:
    return qkv.shape[4] // (3 * heads)


def _native_accepts(qkv, heads, *rest) -> str | None:
    wrong = wrong_device("cpu", qkv.device, "qkv")
    if not wrong and head_dim(qkv, heads) > NATIVE_HEAD_DIM:
        wrong = f"it takes head dims up to {NATIVE_HEAD_DIM}; this one is {head_dim(qkv, heads)}"
    return wrong or wrong_dtype(NARROW, qkv.dtype, "qkv")


def _triton_accepts(qkv, heads, *rest) -> str | None:
    wrong = wrong_device("triton", qkv.device, "qkv")
    if not wrong and head_dim(qkv, heads) not in TRITON_HEAD_DIMS:
        wrong = f"it takes head dims {', '.join(map(str, TRITON_HEAD_DIMS))}; this one is {head_dim(qkv, heads)}"
    return wrong or wrong_dtype(NARROW, qkv.dtype, "qkv")


def _sdpa_accepts(qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save) -> str | None:
    if save:
        return "it keeps no log-sum-exp, which the gradients need (call it under torch.no_grad())"
    return wrong_dtype(NARROW, qkv.dtype, "qkv")


FAMILY = Family(
    "attention3d",
    (
        Backend("native", Native(), CPU.reason, _native_accepts),
        Backend("triton", Triton(), triton_reason, _triton_accepts),
        Backend("sdpa", Sdpa(), lambda: None, _sdpa_accepts),
        reference_backend(Reference()),
    ),
    prefer=prefer,
    onnx=to_onnx,
)
