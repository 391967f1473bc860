"""What ops.py times of the network's own operators: normalisation and attention, at the student's and teacher's sizes.

See op_cases.py. A family that this version of mrisr lacks yields nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from contest import F32, Contest, compiled, draw, ours
from torch.nn import functional as F

# channels, (D, H, W) of the student's finest level and of a deeper one; quick ones beside them
MAPS = ((32, (64, 80, 64)), (128, (32, 40, 32)))
GPU_MAPS = ((32, (132, 156, 132)), (64, (132, 156, 132)), (128, (66, 78, 66)))


def has(family: str) -> bool:
    from mrisr import ops

    return family in ops.specs()


def maps(device: str, quick: bool) -> Iterator[tuple[torch.Tensor, str]]:
    """Channels-last feature maps, float32, and their names."""
    for channels, size in ((8, (4, 5, 6)),) if quick else MAPS if device == "cpu" else GPU_MAPS:
        x = draw(1, channels, *size, device=device).contiguous(memory_format=torch.channels_last_3d)
        yield x, f"C={channels}, {'x'.join(map(str, size))}"


def group_norm(device: str, quick: bool) -> Iterator[Contest]:
    from mrisr.ops import group_norm as family

    for x, name in maps(device, quick):
        channels = x.shape[1]
        groups = channels // 8
        weight, bias = 1 + 0.1 * draw(channels, device=device, seed=1), draw(channels, device=device, seed=2)
        scale, shift = (0.1 * draw(1, channels, device=device, seed=i) for i in (3, 4))
        args, film = (x, groups, weight, bias), dict(scale=scale, shift=shift, act="silu")

        # The rival gets the layout that it is right and fast in: contiguous (PyTorch's channels-last one loses digits).
        rows = x.contiguous()

        def separate(x, groups=groups, weight=weight, bias=bias, scale=scale, shift=shift):
            h = F.group_norm(x, groups, weight, bias)
            return F.silu(h * (1 + scale[:, :, None, None, None]) + shift[:, :, None, None, None])

        wide = [t.double().cpu() if isinstance(t, torch.Tensor) else t for t in args]
        expected = family.reference(*wide, scale=scale.double().cpu(), shift=shift.double().cpu(), act="silu")
        yield Contest(
            "group_norm",
            f"{name}, FiLM, SiLU",
            ours("group_norm", device, partial(family.group_norm, *args, **film)),
            {"eager": partial(separate, rows), "compile": partial(compiled(separate, quick), rows)},
            expected=expected,
            tolerance=1e-5,
            bytes_moved=3 * F32 * x.numel(),
        )


def channel_norm(device: str, quick: bool) -> Iterator[Contest]:
    if not has("channel_norm"):
        return
    from mrisr.ops import channel_norm as family

    for x, name in maps(device, quick):
        scale, shift = (0.1 * draw(1, x.shape[1], device=device, seed=i) for i in (3, 4))

        def separate(x, scale=scale, shift=shift):
            h = x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + family.EPS)
            return F.silu(h * (1 + scale[:, :, None, None, None]) + shift[:, :, None, None, None])

        yield Contest(
            "channel_norm",
            f"{name}, FiLM, SiLU",
            ours("channel_norm", device, partial(family.channel_norm, x, scale, shift, act="silu")),
            {"eager": partial(separate, x), "compile": partial(compiled(separate, quick), x)},
            expected=separate(x.double().cpu(), scale=scale.double().cpu(), shift=shift.double().cpu()),
            tolerance=1e-5,
            bytes_moved=2 * F32 * x.numel(),
        )


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


FAMILIES = {"group_norm": group_norm, "channel_norm": channel_norm, "attention3d": attention3d}
