"""The backends of group_norm, as pieces: `stats`, `finish` (merge, fold, apply), `apply`, `add`, and the two
halves of the backward pass."""

from __future__ import annotations

import torch

from mrisr import native
from mrisr.ops._dispatch import Backend, interpreted, triton_reason
from mrisr.ops._spec import address, always, takes_all, threads

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SLAB = 16384  # voxels per partial, as in csrc/core/group_norm.h


def _is_last(x: torch.Tensor) -> bool:
    return not x.is_contiguous()  # callers see to it that x is dense in one of the two layouts


def _flat(x: torch.Tensor) -> tuple[int, int, int]:
    n, c, d, h, w = x.shape
    return n, c, d * h * w


def _f32(t: torch.Tensor | None) -> torch.Tensor | None:
    return None if t is None else t.float().contiguous()


def slabs_of(x: torch.Tensor) -> int:
    return -(-(x.shape[2] * x.shape[3] * x.shape[4]) // SLAB)


def _work(x: torch.Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _lines(x: torch.Tensor, values, dtype: torch.dtype) -> list[torch.Tensor]:
    """Numbers per sample and channel, [N, C] each."""
    return [torch.as_tensor(t).expand(x.shape[:2]).to(dtype).contiguous() for t in values]


class Reference:
    """Plain PyTorch on any device and in any floating dtype; sums run in float64."""

    def finish(self, y, x, partials, groups, weight, bias, scale, shift, act, eps):
        from mrisr.ops.group_norm import fold, merge

        mean, rstd = merge(partials, eps)
        return self.apply(y, x, fold(mean, rstd, weight, bias, scale, shift, x.shape[1]), act), mean, rstd

    def stats(self, x: torch.Tensor, groups: int, mask: torch.Tensor | None) -> torch.Tensor:
        n, c, voxels = _flat(x)
        work = _work(x)
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

    def apply(self, y: torch.Tensor, x: torch.Tensor, folded, act: str) -> torch.Tensor:
        work = _work(x)
        a, b, m = (t[..., None, None, None] for t in _lines(x, folded, work))
        z = a * (x.to(work) - m) + b
        return y.copy_(torch.nn.functional.silu(z) if act == "silu" else z)

    def add(self, x: torch.Tensor, y: torch.Tensor, groups: int, mask: torch.Tensor | None):
        total = x + y
        flat, lit = total.flatten(2)[..., None, None], None if mask is None else mask.flatten(2)[..., None, None]
        parts = [slice(v, v + SLAB) for v in range(0, flat.shape[2], SLAB)]
        found = [self.stats(flat[:, :, at], groups, None if lit is None else lit[:, :, at]) for at in parts]
        empty = x.new_empty((x.shape[0], 0, groups, 3), dtype=torch.float64)
        return total, torch.cat([empty, *found], dim=1)

    def _slopes(self, grad, x, folded, act):
        """(dz, x - m), in the working dtype."""
        a, b, m = (t[..., None, None, None] for t in _lines(x, folded, _work(x)))
        centred, dz = x.to(_work(x)) - m, grad.to(_work(x))
        if act == "silu":
            z = a * centred + b
            s = torch.sigmoid(z)
            dz = dz * s * (1 + z * (1 - s))
        return dz, centred

    def backward_sums(self, grad, x, folded, act) -> torch.Tensor:
        dz, centred = self._slopes(grad, x, folded, act)
        sums = [t.sum((2, 3, 4), dtype=torch.float64) for t in (dz, dz * centred)]
        return torch.stack(sums, dim=-1)[:, None]

    def backward_apply(self, grad, x, folded, through, mask, act) -> torch.Tensor:
        dz, centred = self._slopes(grad, x, folded, act)
        p, u, v = (t[..., None, None, None] for t in _lines(x, through, _work(x)))
        back = u + v * centred
        if mask is not None:
            back = torch.where(mask != 0, back, 0.0)
        return torch.empty_like(x).copy_(dz * p - back)


class _Core:
    """What the C++ and the CUDA backend share: the same functions of the native core, one with a thread count and
    one with a stream at the end."""

    def _call(self, name: str, x: torch.Tensor, *args) -> None:
        raise NotImplementedError

    def stats(self, x: torch.Tensor, groups: int, mask: torch.Tensor | None) -> torch.Tensor:
        partials = self._partials(x, groups)
        sizes = (*_flat(x), groups, _is_last(x), DTYPE_CODES[x.dtype])
        self._call("group_norm_stats", x, address(partials), address(x), address(mask), *sizes)
        return partials

    def add(self, x: torch.Tensor, y: torch.Tensor, groups: int, mask: torch.Tensor | None):
        total, partials = torch.empty_like(x), self._partials(x, groups)
        maps = map(address, (partials, total, x, y, mask))
        self._call("add_stats", x, *maps, *_flat(x), groups, _is_last(x), DTYPE_CODES[x.dtype])
        return total, partials

    def apply(self, y: torch.Tensor, x: torch.Tensor, folded, act: str) -> torch.Tensor:
        lines = _lines(x, folded, torch.float32)
        self._call("group_norm_apply", x, address(y), address(x), *map(address, lines), *self._rest(x, act))
        return y

    def backward_sums(self, grad, x, folded, act) -> torch.Tensor:
        n, c, _ = _flat(x)
        sums = torch.empty((n, slabs_of(x), c, 2), dtype=torch.float64, device=x.device)
        lines = _lines(x, folded, torch.float32)
        maps = map(address, (sums, grad, x, *lines))
        self._call("group_norm_backward_sums", x, *maps, *self._rest(x, act))
        return sums

    def backward_apply(self, grad, x, folded, through, mask, act) -> torch.Tensor:
        dx, lines = torch.empty_like(x), _lines(x, (*folded, *through), torch.float32)
        maps = map(address, (dx, grad, x, *lines, mask))
        self._call("group_norm_backward_apply", x, *maps, *self._rest(x, act))
        return dx

    def _partials(self, x: torch.Tensor, groups: int) -> torch.Tensor:
        return torch.empty((x.shape[0], slabs_of(x), groups, 3), dtype=torch.float64, device=x.device)

    def _rest(self, x: torch.Tensor, act: str) -> tuple:
        return act == "silu", *_flat(x), _is_last(x), DTYPE_CODES[x.dtype]

    def finish(self, y, x, partials, groups, weight, bias, scale, shift, act, eps):
        n, c, _ = _flat(x)
        partials = partials.contiguous()
        mean, rstd = (torch.empty((n, groups), dtype=torch.float64, device=x.device) for _ in range(2))
        folded = torch.empty((3, n, c), dtype=torch.float32, device=x.device).unbind(0)
        film = [_f32(t) for t in (weight, bias, scale, shift)]
        self._merge_fold(x, mean, rstd, folded, partials, film, eps)
        return self.apply(y, x, folded, act), mean, rstd


class Native(_Core):
    """C++ on the CPU: float32, float16 and bfloat16."""

    def _call(self, name: str, x: torch.Tensor, *args) -> None:
        getattr(native.module(), name)(*args, threads())

    def _merge_fold(self, x, mean, rstd, folded, partials, film, eps) -> None:
        n, c, _ = _flat(x)
        slabs, groups = partials.shape[1:3]
        core, found = native.module(), (address(mean), address(rstd))
        core.group_norm_merge(*found, address(partials), n, slabs, groups, eps)
        core.group_norm_fold(*map(address, folded), *found, *map(address, film), n, c, groups)


class Cuda(_Core):
    """CUDA C++: float32, float16 and bfloat16."""

    def _call(self, name: str, x: torch.Tensor, *args) -> None:
        with torch.cuda.device(x.device):
            getattr(native.module(), f"cuda_{name}")(*args, torch.cuda.current_stream().cuda_stream)

    def _merge_fold(self, x, mean, rstd, folded, partials, film, eps) -> None:
        n, c, _ = _flat(x)
        slabs, groups = partials.shape[1:3]
        maps = map(address, (mean, rstd, *folded, partials, *film))
        self._call("group_norm_merge_fold", x, *maps, n, c, slabs, groups, eps)


class Triton:
    """Triton, float32, float16 and bfloat16; on the CPU by Triton's interpreter (tests)."""

    def finish(self, y, x, partials, groups, weight, bias, scale, shift, act, eps):
        from mrisr.ops.group_norm import fold, merge

        mean, rstd = merge(partials, eps)
        return self.apply(y, x, fold(mean, rstd, weight, bias, scale, shift, x.shape[1]), act), mean, rstd

    def stats(self, x: torch.Tensor, groups: int, mask: torch.Tensor | None) -> torch.Tensor:
        return self._kernels().stats(x, groups, mask)

    def add(self, x: torch.Tensor, y: torch.Tensor, groups: int, mask: torch.Tensor | None):
        return self._kernels().add_stats(x, y, groups, mask)

    def apply(self, y: torch.Tensor, x: torch.Tensor, folded, act: str) -> torch.Tensor:
        return self._kernels().apply(y, x, *_lines(x, folded, torch.float32), act == "silu")

    def backward_sums(self, grad, x, folded, act) -> torch.Tensor:
        return self._backward().sums(grad, x, *_lines(x, folded, torch.float32), act == "silu")

    def backward_apply(self, grad, x, folded, through, mask, act) -> torch.Tensor:
        lines = _lines(x, (*folded, *through), torch.float32)
        return self._backward().apply(grad, x, *lines, mask, act == "silu")

    @staticmethod
    def _kernels():
        from mrisr.kernels import group_norm

        return group_norm

    @staticmethod
    def _backward():
        from mrisr.kernels import group_norm_backward

        return group_norm_backward


def low_precision(x: torch.Tensor) -> str | None:
    """None where the kernels take x's dtype, else that they do not."""
    return None if x.dtype in DTYPE_CODES else f"it takes float32, float16 and bfloat16; x is {x.dtype}"


def on_cpu(x: torch.Tensor, *rest) -> str | None:
    return f"it runs on cpu; x is on {x.device}" if x.device.type != "cpu" else low_precision(x)


def on_cuda(x: torch.Tensor, *rest) -> str | None:
    return f"it runs on cuda; x is on {x.device}" if x.device.type != "cuda" else low_precision(x)


def on_triton(x: torch.Tensor, *rest) -> str | None:
    return low_precision(x) if interpreted() and x.device.type == "cpu" else on_cuda(x)


BACKENDS = (
    Backend("native", Native(), native.reason, on_cpu),
    Backend("triton", Triton(), triton_reason, on_triton),
    Backend("cuda", Cuda(), native.cuda_reason, on_cuda),
    Backend("reference", Reference(), always, takes_all),
)
