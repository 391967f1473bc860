"""group_norm in plain PyTorch: the pieces that all backends share, and the oracle."""

from __future__ import annotations

import torch

from mrisr.ops._layout import flat, work_dtype


def merge(partials: torch.Tensor, eps: float = 1e-5) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, rstd), float64 [N, groups], of partials [N, slabs, groups, 3], in fixed order."""
    n, mean, m2 = partials.unbind(-1)
    total = n.sum(1)
    safe = total.clamp(min=1)
    part = torch.where(n > 0, mean, 0.0)  # an empty slab has no mean
    pooled = (n * part).sum(1) / safe
    variance = (torch.where(n > 0, m2, 0.0) + n * (part - pooled[:, None]) ** 2).sum(1) / safe
    rstd = (variance + eps).rsqrt()
    return pooled, torch.where(total > 0, rstd, 1.0)


def fold(mean, rstd, weight, bias, scale, shift, channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(a, b, m), float64 [N, C]: y = act(a (x - m) + b); m is the mean rounded to float32, b holds the
    rest."""
    per_group = channels // mean.shape[1]
    mean, rstd = (t.double().repeat_interleave(per_group, dim=1) for t in (mean, rstd))
    gain = 1.0 if scale is None else 1.0 + scale.double()
    a = rstd * gain * (1.0 if weight is None else weight.double())
    m = mean.float().double()
    b = (0.0 if bias is None else bias.double()) * gain + (0.0 if shift is None else shift.double()) - (mean - m) * a
    return a, b, m


def lines(x: torch.Tensor, values, dtype: torch.dtype) -> list[torch.Tensor]:
    """Numbers per sample and channel, [N, C] each."""
    return [torch.as_tensor(t).expand(x.shape[:2]).to(dtype).contiguous() for t in values]


class Reference:
    """Plain PyTorch on any device and in any floating dtype; sums run in float64."""

    def finish(self, y, x, partials, groups, weight, bias, scale, shift, act, eps):
        mean, rstd = merge(partials, eps)
        return self.apply(y, x, fold(mean, rstd, weight, bias, scale, shift, x.shape[1]), act), mean, rstd

    def stats(self, x: torch.Tensor, groups: int, mask: torch.Tensor | None) -> torch.Tensor:
        n, c, voxels = flat(x)
        work = work_dtype(x.dtype)
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
        work = work_dtype(x.dtype)
        a, b, m = (t[..., None, None, None] for t in lines(x, folded, work))
        z = a * (x.to(work) - m) + b
        return y.copy_(torch.nn.functional.silu(z) if act == "silu" else z)

    def _slopes(self, grad, x, folded, act):
        """(dz, x - m), in the working dtype."""
        a, b, m = (t[..., None, None, None] for t in lines(x, folded, work_dtype(x.dtype)))
        centred, dz = x.to(work_dtype(x.dtype)) - m, grad.to(work_dtype(x.dtype))
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
        p, u, v = (t[..., None, None, None] for t in lines(x, through, work_dtype(x.dtype)))
        back = u + v * centred
        if mask is not None:
            back = torch.where(mask != 0, back, 0.0)
        return torch.empty_like(x).copy_(dz * p - back)


def reference(x, groups, weight=None, bias=None, *, scale=None, shift=None, mask=None, act=None, eps=1e-5):
    """The same function in plain PyTorch; in float64 it is the oracle."""
    mask = None if mask is None else mask.to(torch.uint8)
    x = x.contiguous()
    run = Reference()
    y, partials = torch.empty_like(x), run.stats(x, groups, mask)
    return run.finish(y, x, partials, groups, weight, bias, scale, shift, act or "none", eps)[0]
