"""Group norm + FiLM + SiLU in Triton: `stats` and `apply`; the merge between them is float64 PyTorch on a
few numbers.

Layouts: dense [N, C, D, H, W] or channels-last. float32, float16, bfloat16; arithmetic in float32, partials
in float64, offsets in int64. Slabs depend on the shape alone, sums run in a fixed order, there are no
atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

SLAB = 16384  # voxels per partial, as in the native core
BLOCK = 1024


@triton.jit
def _element(index, first_voxel, slab_voxels, per_group, channels, voxels, LAST: tl.constexpr):
    """(voxel inside the sample, offset from the group's first element) of element `index` of a slab, fastest
    axis first."""
    if LAST:
        channel = index % per_group
        voxel = first_voxel + index // per_group
        offset = voxel * channels + channel
    else:
        channel = index // slab_voxels
        voxel = first_voxel + index % slab_voxels
        offset = channel * voxels + voxel
    return voxel, offset


@triton.jit
def stats_kernel(
    partials_ptr,  # float64 [N, slabs, groups, 3]
    x_ptr,
    mask_ptr,  # uint8 [N, voxels]
    channels,
    voxels,
    groups,
    slabs,
    SLAB: tl.constexpr,
    BLOCK: tl.constexpr,
    LAST: tl.constexpr,
    MASKED: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    group = unit % groups
    slab = unit // groups % slabs
    sample = unit // groups // slabs
    per_group = channels // groups
    first_voxel = slab * SLAB
    slab_voxels = tl.minimum(voxels - first_voxel, SLAB)
    count = slab_voxels * per_group
    if LAST:
        base = sample * channels * voxels + group * per_group
    else:
        base = (sample * channels + group * per_group) * voxels
    lane = tl.arange(0, BLOCK).to(tl.int64)

    total = tl.zeros((BLOCK,), tl.float32)
    active = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        index = start + lane
        inside = index < count
        voxel, offset = _element(index, first_voxel, slab_voxels, per_group, channels, voxels, LAST)
        value = tl.load(x_ptr + base + offset, mask=inside, other=0.0).to(tl.float32)
        if MASKED:
            inside = inside & (tl.load(mask_ptr + sample * voxels + voxel, mask=inside, other=0) != 0)
            value = tl.where(inside, value, 0.0)
        total += value
        active += inside.to(tl.float32)
    n = tl.sum(active, 0)
    safe = tl.maximum(n, 1.0)
    pivot = tl.sum(total, 0) / safe

    # The second reading comes from the L2 cache. What the rounded pivot lacks is in the first-order sum.
    first = tl.zeros((BLOCK,), tl.float32)
    second = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        index = start + lane
        inside = index < count
        voxel, offset = _element(index, first_voxel, slab_voxels, per_group, channels, voxels, LAST)
        if MASKED:
            inside = inside & (tl.load(mask_ptr + sample * voxels + voxel, mask=inside, other=0) != 0)
        value = tl.load(x_ptr + base + offset, mask=inside, other=0.0).to(tl.float32)
        deviation = tl.where(inside, value - pivot, 0.0)
        first += deviation
        second += deviation * deviation
    rest = tl.sum(first, 0) / safe
    m2 = tl.sum(second, 0) - n * rest * rest
    tl.store(partials_ptr + unit * 3, n.to(tl.float64))
    tl.store(partials_ptr + unit * 3 + 1, pivot.to(tl.float64) + rest.to(tl.float64))
    tl.store(partials_ptr + unit * 3 + 2, tl.where(m2 < 0.0, 0.0, m2).to(tl.float64))


@triton.jit
def apply_kernel(
    y_ptr,
    x_ptr,
    a_ptr,  # a, b, m: float32 [N, C]
    b_ptr,
    m_ptr,
    channels,
    voxels,
    total,
    BLOCK: tl.constexpr,
    LAST: tl.constexpr,
    SILU: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    if LAST:
        line = index // voxels // channels * channels + index % channels
    else:
        line = index // voxels
    a = tl.load(a_ptr + line, mask=inside, other=0.0)
    b = tl.load(b_ptr + line, mask=inside, other=0.0)
    m = tl.load(m_ptr + line, mask=inside, other=0.0)
    x = tl.load(x_ptr + index, mask=inside, other=0.0).to(tl.float32)
    z = a * (x - m) + b
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    tl.store(y_ptr + index, z.to(y_ptr.dtype.element_ty), mask=inside)


def stats(x: torch.Tensor, groups: int, mask: torch.Tensor | None) -> torch.Tensor:
    """x [N, C, D, H, W], dense -> float64 [N, slabs, groups, 3]: count, mean, sum of squared deviations."""
    n, c = x.shape[:2]
    voxels = x.shape[2] * x.shape[3] * x.shape[4]
    slabs = triton.cdiv(voxels, SLAB)
    partials = torch.empty((n, slabs, groups, 3), dtype=torch.float64, device=x.device)
    if partials.numel():
        maps = (partials, x, x if mask is None else mask)
        flags = dict(LAST=not x.is_contiguous(), MASKED=mask is not None)
        stats_kernel[(n * slabs * groups,)](*maps, c, voxels, groups, slabs, SLAB=SLAB, BLOCK=BLOCK, **flags)
    return partials


def apply(y, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, m: torch.Tensor, silu: bool) -> torch.Tensor:
    """Write y = act(a (x - m) + b), and return it; a, b, m float32 [N, C]; y as x, or x itself."""
    if x.numel():
        n, c = x.shape[:2]
        grid = (triton.cdiv(x.numel(), BLOCK),)
        voxels = x.numel() // (n * c)
        apply_kernel[grid](y, x, a, b, m, c, voxels, x.numel(), BLOCK=BLOCK, LAST=not x.is_contiguous(), SILU=silu)
    return y


# What tests/native/compile_only.py compiles without a GPU: (name, kernel, signature, constants), one per variant that
# ships.
def _variants() -> list[tuple[str, object, dict[str, str], dict[str, object]]]:
    variants = []
    for dtype in ("fp32", "fp16", "bf16"):
        for last in (False, True):
            layout = "last" if last else "first"
            for masked in (False, True):
                name = f"stats[{dtype},{layout}{',masked' if masked else ''}]"
                signature = {"partials_ptr": "*fp64", "x_ptr": f"*{dtype}"}
                signature |= {"mask_ptr": "*u8", **dict.fromkeys(("channels", "voxels", "groups", "slabs"), "i32")}
                flags = {"SLAB": SLAB, "BLOCK": BLOCK, "LAST": last, "MASKED": masked}
                variants.append((name, stats_kernel, signature, flags))
            signature = {"y_ptr": f"*{dtype}", "x_ptr": f"*{dtype}", **{f"{name}_ptr": "*fp32" for name in "abm"}}
            signature |= {"channels": "i32", "voxels": "i32", "total": "i64"}
            flags = {"BLOCK": BLOCK, "LAST": last, "SILU": True}
            variants.append((f"apply[{dtype},{layout},silu]", apply_kernel, signature, flags))
    return variants


VARIANTS = _variants()
