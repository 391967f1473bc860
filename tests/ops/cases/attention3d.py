"""attention3d: windows, masks, layouts, gains, hard numbers."""

from __future__ import annotations

import torch

from mrisr.ops.attention3d import attention3d, reference
from mrisr.ops.attention3d.backends import FAMILY
from tests.ops.cases.spec import Spec


def _case(
    size,
    heads=2,
    head_dim=32,
    *,
    active=None,
    dead=False,
    norm=False,
    gains=False,
    loud=1.0,
    layout="packed",
    nan=None,
    **call,
):
    """A builder of arguments. active: share of tokens that are keys; dead: none in the first window. loud: factor of
    queries. layout: "packed", "cut" out of a larger volume, or "planes" (channels not innermost). nan: token
    whose key is not a number."""

    def build(generator: torch.Generator) -> dict:
        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        channels = 3 * heads * head_dim
        n, d, h, w = size
        if layout == "cut":
            qkv = draw(n, d + 2, h + 1, w + 3, channels)[:, 1 : d + 1, 1:, 2 : w + 2]
        elif layout == "planes":
            qkv = draw(n, channels, d, h, w).permute(0, 2, 3, 4, 1)
        else:
            qkv = draw(n, d, h, w, channels)
        qkv[..., : channels // 3] *= loud
        if nan is not None:
            qkv[(0, *nan, slice(channels // 3, 2 * channels // 3))] = float("nan")
        args = dict(qkv=qkv, heads=heads, **call)
        if active is not None:
            args["mask"] = torch.rand(n, d, h, w, generator=generator) < active
            if dead:
                args["mask"][(slice(None), *[slice(call["window"])] * 3)] = False
        if norm:
            args["norm_eps"] = 1e-5
        if gains:
            args.update(q_gain=1 + 0.2 * draw(head_dim), k_gain=1 + 0.2 * draw(head_dim))
        return args

    return build


SPEC = Spec(
    family=FAMILY,
    call=attention3d,
    reference=reference,
    cases={
        "global": _case((2, 3, 4, 5), window=None),
        "aligned": _case((1, 4, 8, 8), window=4),
        "shifted": _case((1, 3, 8, 2), heads=1, window=4, shift=2),
        "odd": _case((2, 5, 3, 7), heads=1, window=4, shift=(1, 0, 3)),
        "window_of_8": _case((1, 9, 8, 5), heads=1, shift=4),
        "far_shifted": _case((1, 5, 4, 3), heads=1, window=4, shift=(5, -3, 1_000_003)),
        "tiny_windows": _case((1, 3, 1, 2), window=1),
        "one_voxel": _case((1, 1, 1, 1)),
        "empty": _case((0, 4, 4, 4)),
        "masked": _case((2, 5, 6, 4), window=4, active=0.4),
        "masked_global": _case((2, 3, 5, 6), window=None, active=0.5, norm=True),
        "window_with_nothing_active": _case((1, 4, 8, 4), window=4, active=0.6, dead=True),
        "normalised": _case((1, 4, 5, 4), window=4, norm=True),
        "gains": _case((1, 6, 4, 3), window=4, norm=True, gains=True, scale=0.25),
        "cut": _case((2, 4, 3, 5), window=4, layout="cut", gains=True, norm=True),
        "channels_outermost": _case((1, 4, 3, 5), window=4, layout="planes"),
        "large_logits": _case((1, 2, 4, 6), window=4, loud=30.0),
        "not_a_number": _case((1, 4, 4, 8), window=4, nan=(1, 2, 3)),
        "head_dim_64": _case((1, 4, 4, 5), heads=1, head_dim=64, window=4, active=0.8),
        "head_dim_128": _case((1, 3, 4, 5), heads=2, head_dim=128, window=4, norm=True),
        "head_dim_24": _case((1, 3, 4, 5), heads=2, head_dim=24, window=4, gains=True, norm=True),
    },
    tolerance={torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3},
    gradients=("qkv", "q_gain", "k_gain"),
    impossible={"sdpa": ("gradients",), "triton": ("head_dim_24",)},
)
