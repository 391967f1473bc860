"""The backends of group_norm. Each is callable as the whole operator and has its pieces `stats` and
`apply`."""

from __future__ import annotations

import torch

from mrisr import native
from mrisr.ops._dispatch import Backend, interpreted, triton_reason
from mrisr.ops._spec import address, always, takes_all, threads

_DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def _is_last(x: torch.Tensor) -> bool:
    return not x.is_contiguous()  # callers see to it that x is dense in one of the two layouts


def _flat(x: torch.Tensor) -> tuple[int, int, int]:
    n, c, d, h, w = x.shape
    return n, c, d * h * w


def _f32(t: torch.Tensor | None) -> torch.Tensor | None:
    return None if t is None else t.float().contiguous()


class Reference:
    """Plain PyTorch on any device and in any floating dtype; sums run in float64."""

    def __call__(self, x, groups, weight, bias, scale, shift, mask, act, eps):
        from mrisr.ops.group_norm import fold, merge

        mean, rstd = merge(self.stats(x, groups, mask), eps)
        return self.apply(x, fold(mean, rstd, weight, bias, scale, shift, x.shape[1]), act), mean, rstd

    def stats(self, x: torch.Tensor, groups: int, mask: torch.Tensor | None) -> torch.Tensor:
        n, c, voxels = _flat(x)
        work = torch.float64 if x.dtype == torch.float64 else torch.float32
        x = x.reshape(n, groups, c // groups, voxels).to(work)
        if mask is None:
            count = torch.full((n, groups), float(voxels * (c // groups)), dtype=torch.float64, device=x.device)
        else:
            active = (mask != 0).reshape(n, 1, 1, voxels)
            count = (active.sum((2, 3)) * (c // groups)).double().expand(n, groups)
            x = torch.where(active, x, 0.0)
        safe = count.clamp(min=1)
        # The mean is rounded to the working dtype before it is subtracted; the rest of it is found in the
        # second pass.
        pivot = (x.sum((2, 3), dtype=torch.float64) / safe).to(work)
        centred = x - pivot[..., None, None]
        if mask is not None:
            centred = torch.where(active, centred, 0.0)
        rest = centred.sum((2, 3), dtype=torch.float64) / safe
        m2 = (centred * centred).sum((2, 3), dtype=torch.float64) - count * rest * rest
        # clamp() would hide NaN.
        return torch.stack([count, pivot.double() + rest, torch.where(m2 < 0, 0.0, m2)], dim=-1)[:, None]

    def apply(self, x: torch.Tensor, folded, act: str) -> torch.Tensor:
        work = torch.float64 if x.dtype == torch.float64 else torch.float32
        a, b, m = (torch.as_tensor(t).expand(x.shape[:2]).to(work)[..., None, None, None] for t in folded)
        z = a * (x.to(work) - m) + b
        return torch.empty_like(x).copy_(torch.nn.functional.silu(z) if act == "silu" else z)


class Native:
    """C++, float32 on the CPU."""

    def __call__(self, x, groups, weight, bias, scale, shift, mask, act, eps):
        core = native.module()
        n, c, _ = _flat(x)
        partials = self.stats(x, groups, mask)
        mean, rstd = (x.new_empty((n, groups), dtype=torch.float64) for _ in range(2))
        folded = x.new_empty((3, n, c)).unbind(0)
        film = [_f32(t) for t in (weight, bias, scale, shift)]
        core.group_norm_merge(address(mean), address(rstd), address(partials), n, partials.shape[1], groups, eps)
        core.group_norm_fold(*map(address, folded), address(mean), address(rstd), *map(address, film), n, c, groups)
        return self.apply(x, folded, act), mean, rstd

    def stats(self, x: torch.Tensor, groups: int, mask: torch.Tensor | None) -> torch.Tensor:
        core, (n, c, voxels) = native.module(), _flat(x)
        partials = x.new_empty((n, core.group_norm_slabs(voxels), groups, 3), dtype=torch.float64)
        core.group_norm_stats(
            address(partials), address(x), address(mask), n, c, voxels, groups, _is_last(x), threads()
        )
        return partials

    def apply(self, x: torch.Tensor, folded, act: str) -> torch.Tensor:
        n, c, voxels = _flat(x)
        y = torch.empty_like(x)
        a, b, m = (torch.as_tensor(t).expand(n, c).float().contiguous() for t in folded)
        native.module().group_norm_apply(
            address(y),
            address(x),
            address(a),
            address(b),
            address(m),
            act == "silu",
            n,
            c,
            voxels,
            _is_last(x),
            threads(),
        )
        return y


class Cuda:
    """CUDA C++, float32, float16 and bfloat16."""

    def __call__(self, x, groups, weight, bias, scale, shift, mask, act, eps):
        n, c, voxels = _flat(x)
        partials = self.stats(x, groups, mask)
        mean, rstd = (torch.empty((n, groups), dtype=torch.float64, device=x.device) for _ in range(2))
        folded = torch.empty((3, n, c), dtype=torch.float32, device=x.device).unbind(0)
        film = [_f32(t) for t in (weight, bias, scale, shift)]
        with torch.cuda.device(x.device):
            native.module().cuda_group_norm_merge_fold(
                address(mean),
                address(rstd),
                *map(address, folded),
                address(partials),
                *map(address, film),
                n,
                c,
                voxels,
                groups,
                eps,
                torch.cuda.current_stream().cuda_stream,
            )
        return self.apply(x, folded, act), mean, rstd

    def stats(self, x: torch.Tensor, groups: int, mask: torch.Tensor | None) -> torch.Tensor:
        core, (n, c, voxels) = native.module(), _flat(x)
        partials = torch.empty((n, core.group_norm_slabs(voxels), groups, 3), dtype=torch.float64, device=x.device)
        with torch.cuda.device(x.device):
            stream, code = torch.cuda.current_stream().cuda_stream, _DTYPE_CODES[x.dtype]
            sizes = (n, c, voxels, groups, _is_last(x), code, stream)
            core.cuda_group_norm_stats(address(partials), address(x), address(mask), *sizes)
        return partials

    def apply(self, x: torch.Tensor, folded, act: str) -> torch.Tensor:
        n, c, voxels = _flat(x)
        y = torch.empty_like(x)
        a, b, m = (torch.as_tensor(t).expand(n, c).float().contiguous() for t in folded)
        with torch.cuda.device(x.device):
            sizes = (
                n,
                c,
                voxels,
                _is_last(x),
                _DTYPE_CODES[x.dtype],
                torch.cuda.current_stream().cuda_stream,
            )
            native.module().cuda_group_norm_apply(
                address(y), address(x), address(a), address(b), address(m), act == "silu", *sizes
            )
        return y


class Triton:
    """Triton, float32, float16 and bfloat16; on the CPU by Triton's interpreter (tests)."""

    def __call__(self, x, groups, weight, bias, scale, shift, mask, act, eps):
        from mrisr.ops.group_norm import fold, merge

        mean, rstd = merge(self.stats(x, groups, mask), eps)
        return self.apply(x, fold(mean, rstd, weight, bias, scale, shift, x.shape[1]), act), mean, rstd

    def stats(self, x: torch.Tensor, groups: int, mask: torch.Tensor | None) -> torch.Tensor:
        from mrisr.kernels import group_norm as kernels

        return kernels.stats(x, groups, mask)

    def apply(self, x: torch.Tensor, folded, act: str) -> torch.Tensor:
        from mrisr.kernels import group_norm as kernels

        n, c, _ = _flat(x)
        a, b, m = (torch.as_tensor(t).expand(n, c).float().contiguous() for t in folded)
        return kernels.apply(x, a, b, m, act == "silu")


def _native_accepts(x, *rest) -> str | None:
    if x.device.type != "cpu":
        return f"it runs on cpu; x is on {x.device}"
    return None if x.dtype == torch.float32 else f"it takes float32; x is {x.dtype}"


def _gpu_accepts(x, *rest) -> str | None:
    if x.device.type != "cuda":
        return f"it runs on cuda; x is on {x.device}"
    return None if x.dtype in _DTYPE_CODES else f"it takes float32, float16 and bfloat16; x is {x.dtype}"


def _triton_accepts(x, *rest) -> str | None:
    if interpreted() and x.device.type == "cpu":
        return None if x.dtype in _DTYPE_CODES else f"it takes float32, float16 and bfloat16; x is {x.dtype}"
    return _gpu_accepts(x)


BACKENDS = (
    Backend("native", Native(), native.reason, _native_accepts),
    Backend("triton", Triton(), triton_reason, _triton_accepts),
    Backend("cuda", Cuda(), native.cuda_reason, _gpu_accepts),
    Backend("reference", Reference(), always, takes_all),
)
