"""What ops.py times of the network's own operators: normalisation and attention, at the student's and teacher's sizes.

See op_cases.py. A family that this version of mrisr lacks yields nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch._functorch.config
from contest import F32, Contest, compiled, draw, ours
from torch.nn import functional as F

torch._functorch.config.donated_buffer = False  # a compiled backward pass is run again and again on one graph

# channels, (D, H, W): more than the caches hold, about what they hold, and less
MAPS = ((32, (96, 96, 96)), (64, (48, 48, 48)), (128, (32, 40, 32)))
GPU_MAPS = ((32, (132, 156, 132)), (64, (132, 156, 132)), (128, (66, 78, 66)))


def has(family: str) -> bool:
    from mrisr import ops

    return family in ops.families()


TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def maps(device: str, quick: bool) -> Iterator[tuple[torch.Tensor, str]]:
    """Channels-last feature maps and their names; on a GPU in bfloat16 too."""
    for dtype in (torch.float32,) if device == "cpu" else (torch.bfloat16, torch.float32):
        for channels, size in ((8, (4, 5, 6)),) if quick else MAPS if device == "cpu" else GPU_MAPS:
            x = draw(1, channels, *size, device=device).to(dtype).contiguous(memory_format=torch.channels_last_3d)
            yield x, f"C={channels}, {'x'.join(map(str, size))}, {str(dtype).removeprefix('torch.')}"


def film(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(0.1 * draw(1, x.shape[1], device=x.device, seed=i) for i in (3, 4))


def filmed(h: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return F.silu(h * (1 + scale.to(h))[:, :, None, None, None] + shift.to(h)[:, :, None, None, None])


def both_ways(family: str, name: str, x, fused, plain, rival_x, quick: bool, reads: int) -> Iterator[Contest]:
    """Forward, and the gradient with respect to x.

    Args:
        fused: (x, backend) -> y, ours. plain: (x) -> y in PyTorch's own operators; also the oracle, in float64.
        rival_x: what the rivals are given, in the layout that they are right and fast in.
        reads: times that forward has to read x.
    """
    size, tolerance = x.numel() * x.element_size(), TOLERANCE[x.dtype]
    wide = x.double().cpu().contiguous().requires_grad_()
    expected = plain(wide)
    kind, there = x.device.type, torch.empty_like(x)
    mine = ours(family, kind, partial(fused, x))
    # Fresh memory costs a CPU more than the operator does; the network gives it the memory that it has.
    mine |= {f"{backend}, out=": partial(call, out=there) for backend, call in mine.items()}
    yield Contest(
        family,
        name,
        mine,
        {"eager": partial(plain, rival_x), "compile": partial(compiled(plain, quick), rival_x)},
        expected=expected.detach(),
        tolerance=tolerance,
        bytes_moved=(reads + 1) * size,
    )
    up = draw(*x.shape, device=x.device, seed=9).to(x)
    gradient = torch.autograd.grad(expected, wide, up.double().cpu())[0]

    def back(function, of: torch.Tensor):
        leaf, out = of.detach().requires_grad_(), None
        tensor = up.contiguous(memory_format=memory_format(of))

        def call(**options) -> torch.Tensor:
            nonlocal out  # forward once, when first called
            out = function(leaf, **options) if out is None else out
            return torch.autograd.grad(out, leaf, tensor, retain_graph=True)[0]

        return call

    yield Contest(
        family,
        f"{name}, backward",
        {backend: partial(back(fused, x), backend=backend) for backend in ours(family, kind, fused)},
        {"eager": back(plain, rival_x), "compile": back(compiled(plain, quick), rival_x)},
        expected=gradient,
        tolerance=tolerance,
        bytes_moved=3 * size,
    )


def memory_format(x: torch.Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last_3d


def group_norm(device: str, quick: bool) -> Iterator[Contest]:
    from mrisr.ops import group_norm as family

    for x, name in maps(device, quick):
        channels, (scale, shift) = x.shape[1], film(x)
        weight, bias = 1 + 0.1 * draw(channels, device=device, seed=1), draw(channels, device=device, seed=2)

        def fused(x, weight=weight, bias=bias, scale=scale, shift=shift, **options):
            return family.group_norm(x, len(weight) // 8, weight, bias, scale=scale, shift=shift, act="silu", **options)

        def plain(x, weight=weight, bias=bias, scale=scale, shift=shift):
            return filmed(F.group_norm(x, len(weight) // 8, weight.to(x), bias.to(x)), scale, shift)

        # PyTorch's group norm loses digits in channels-last on a CPU; it gets the layout in which it is right.
        yield from both_ways("group_norm", name, x, fused, plain, x.contiguous(), quick, reads=2)


def rms_norm(device: str, quick: bool) -> Iterator[Contest]:
    from mrisr.ops import rms_norm as family

    for x, name in maps(device, quick):
        scale, shift = film(x)

        def fused(x, scale=scale, shift=shift, **options):
            return family.rms_norm(x, scale, shift, act="silu", **options)

        def plain(x, scale=scale, shift=shift):
            return filmed(x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + family.EPS), scale, shift)

        yield from both_ways("rms_norm", name, x, fused, plain, x, quick, reads=1)


def attention3d(device: str, quick: bool) -> Iterator[Contest]:
    if not has("attention3d"):
        return
    from mrisr.ops import attention3d as family

    size, heads, head_dim = ((8, 8, 9), 1, 32) if quick else ((32, 40, 32), 4, 64)
    qkv = draw(1, *size, 3 * heads * head_dim, device=device)
    tokens = size[0] * size[1] * size[2]
    for shift in (0, 4):

        def rival(qkv=qkv, shift=shift):
            return windows_by_sdpa(qkv, heads, shift)

        yield Contest(
            "attention3d",
            f"{'x'.join(map(str, size))}, {heads} heads of {head_dim}, shift {shift}",
            ours("attention3d", device, partial(inference, family.attention3d, qkv, heads, shift=shift)),
            {"SDPA with partition": rival, "compile": compiled(rival, quick)},
            expected=family.reference(qkv.double().cpu(), heads, shift=shift),
            tolerance=1e-5 if device == "cpu" else 2e-3,
            bytes_moved=F32 * (qkv.numel() + qkv.numel() // 3),
            flop=4 * tokens * 8**3 * heads * head_dim,
        )


def inference(function, *args, **options) -> torch.Tensor:
    with torch.no_grad():
        return function(*args, **options)


def windows_by_sdpa(qkv: torch.Tensor, heads: int, shift: int, window: int = 8) -> torch.Tensor:
    """8^3 windows the usual way: pad, cut into windows (a copy), PyTorch's attention, put back (another)."""
    n, *size, width = qkv.shape
    pad = [v for s in reversed(size) for v in (shift, -(s + shift) % window)]
    inside = F.pad(qkv.new_ones(n, *size, 1), (0, 0, *pad))
    t, key = (_cut(v, window) for v in (F.pad(qkv, (0, 0, *pad)), inside))
    q, k, v = (p.unflatten(-1, (heads, -1)).transpose(1, 2) for p in t.chunk(3, dim=-1))
    mask = None if bool(size == [s + a for s, a in zip(size, _extra(pad))]) else (key[..., 0] > 0)[:, None, None, :]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    grid = [(s + a) // window for s, a in zip(size, _extra(pad))]
    y = y.view(n, *grid, window, window, window, width // 3).permute(0, 1, 4, 2, 5, 3, 6, 7)
    y = y.reshape(n, *(g * window for g in grid), width // 3)
    return y[:, shift : shift + size[0], shift : shift + size[1], shift : shift + size[2]]


def _extra(pad: list[int]) -> list[int]:
    return [a + b for a, b in zip(pad[4::-2], pad[5::-2])]


def _cut(t: torch.Tensor, window: int) -> torch.Tensor:
    n, d, h, w, c = t.shape
    t = t.view(n, d // window, window, h // window, window, w // window, window, c)
    return t.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window**3, c)


FAMILIES = {
    "group_norm": group_norm,
    "rms_norm": rms_norm,
    "attention3d": attention3d,
}
