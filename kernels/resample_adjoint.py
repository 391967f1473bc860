"""The gradient of sampled B-splines with respect to their coefficients, in Triton, without atomics.

Target voxels are sorted by the first coefficient that they read. Those that read a given coefficient are then
(order + 1)^2 runs of the sorted list, wherever the displacement leads, and one program sums them up in that order: the
same bits every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mrisr.kernels.resample import BLOCK, _axis, _inner, _middle


@triton.jit
def locate_kernel(
    cell_ptr,  # int64 [N, voxels]: the first coefficient that a voxel reads
    fraction_ptr,  # [N, 3, voxels]
    displacement_ptr,
    matrix_ptr,
    n0,
    n1,
    n2,
    target1,
    target2,
    voxels,
    blocks,
    ORDER: tl.constexpr,
    MIRROR: tl.constexpr,
    MOVED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    batch = unit // blocks
    voxel = unit % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = voxel < voxels
    row = voxel // target2
    i = (row // target1).to(tl.float64)
    j = (row % target1).to(tl.float64)
    k = (voxel % target2).to(tl.float64)
    field = displacement_ptr + batch * 3 * voxels
    x, tx, _ = _axis(matrix_ptr, field, voxel, inside, voxels, i, j, k, n0, 0, MOVED, MIRROR)
    y, ty, _ = _axis(matrix_ptr, field, voxel, inside, voxels, i, j, k, n1, 1, MOVED, MIRROR)
    z, tz, _ = _axis(matrix_ptr, field, voxel, inside, voxels, i, j, k, n2, 2, MOVED, MIRROR)
    cell = (x * (n1 + ORDER + 1) + y) * (n2 + ORDER + 1) + z
    tl.store(cell_ptr + batch * voxels + voxel, cell, mask=inside)
    fraction = fraction_ptr + batch * 3 * voxels + voxel
    tl.store(fraction, tx, mask=inside)
    tl.store(fraction + voxels, ty, mask=inside)
    tl.store(fraction + 2 * voxels, tz, mask=inside)


@triton.jit
def _spline(t, tap, ORDER: tl.constexpr):
    """The B-spline of one coefficient, by its distance from the position: the tap differs from lane to lane."""
    d = tl.abs(t + (ORDER // 2 - tap).to(tl.float32))
    if ORDER == 1:
        w = 1.0 - d
    elif ORDER == 3:
        u = 2.0 - d
        w = tl.where(d < 1.0, (2.0 / 3.0) + d * d * (0.5 * d - 1.0), u * u * u * (1.0 / 6.0))
    else:
        u = 3.0 - d
        w = tl.where(d < 2.0, _middle(2.0 - d), u * u * u * u * u * (1.0 / 120.0))
        w = tl.where(d < 1.0, _inner(d), w)
    return w


@triton.jit
def adjoint_kernel(
    out_ptr,  # [N, C, size]
    grad_ptr,  # [N, C, voxels], in the order of the cells
    cell_ptr,  # int64 [N or 1, voxels], ascending
    fraction_ptr,  # [N or 1, 3, voxels], in the order of the cells
    start_ptr,  # int64 [N or 1, size + 1]: voxels with a smaller cell
    channels,
    sx,
    sy,
    size,
    voxels,
    blocks,
    shared,  # 1 where the whole batch shares a displacement
    ORDER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    unit = tl.program_id(0).to(tl.int64)
    volume = unit // blocks
    field = tl.where(shared == 1, 0, volume // channels)
    q = unit % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = q < size
    starts = start_ptr + field * (size + 1)
    cells = cell_ptr + field * voxels
    fractions = fraction_ptr + field * 3 * voxels
    total = tl.zeros((BLOCK,), tl.float32)
    for tap in range((ORDER + 1) * (ORDER + 1)):
        a = tap // (ORDER + 1)
        b = tap % (ORDER + 1)
        # Cells from which the last axis reaches q. The ORDER cells before each line's and plane's beginning lie at the
        # end of the one before, where no voxel reads first: crossing over finds nothing.
        top = q - a * sx - b * sy
        begin = tl.load(starts + tl.maximum(top - ORDER, 0), mask=inside, other=0)
        end = tl.load(starts + tl.maximum(top + 1, 0), mask=inside, other=0)
        for step in range(tl.max(end - begin, 0)):
            at = begin + step
            here = at < end
            c = top - tl.load(cells + at, mask=here, other=0)
            weight = _spline(tl.load(fractions + at, mask=here, other=0.0), a, ORDER)
            weight *= _spline(tl.load(fractions + voxels + at, mask=here, other=0.0), b, ORDER)
            weight *= _spline(tl.load(fractions + 2 * voxels + at, mask=here, other=0.0), c, ORDER)
            grad = tl.load(grad_ptr + volume * voxels + at, mask=here, other=0.0)
            total += tl.where(here, weight * grad, 0.0)
    tl.store(out_ptr + volume * size + q, total, mask=inside)


def adjoint(displacement, grad, matrix, source, target, order: int, mirror: bool) -> torch.Tensor:
    """float32 [N, C, *source + 2 halo]: the gradient with respect to the coefficients. grad: [N, C, *target]."""
    padded = [n + order + 1 for n in source]
    out = grad.new_zeros((*grad.shape[:2], *padded))
    voxels = target[0] * target[1] * target[2]
    if out.numel() == 0 or voxels == 0:
        return out
    fields = 1 if displacement is None else displacement.shape[0]
    cell = torch.empty((fields, voxels), dtype=torch.int64, device=grad.device)
    fraction = grad.new_empty((fields, 3, voxels))
    blocks = triton.cdiv(voxels, BLOCK)
    locate_kernel[(fields * blocks,)](
        cell,
        fraction,
        grad if displacement is None else displacement,
        torch.tensor(matrix, dtype=torch.float64, device=grad.device),
        *source,
        *target[1:],
        voxels,
        blocks,
        ORDER=order,
        MIRROR=mirror,
        MOVED=displacement is not None,
        BLOCK=BLOCK,
    )
    cell, by_cell = torch.sort(cell, dim=1, stable=True)
    size = padded[0] * padded[1] * padded[2]
    starts = torch.searchsorted(cell, torch.arange(size + 1, device=grad.device).expand(fields, -1).contiguous())
    fraction = fraction.gather(2, by_cell[:, None].expand(-1, 3, -1))
    grad = grad.flatten(2).gather(2, by_cell[:, None].expand(*grad.shape[:2], -1))
    blocks = triton.cdiv(size, BLOCK)
    adjoint_kernel[(grad.shape[0] * grad.shape[1] * blocks,)](
        out,
        grad,
        cell,
        fraction,
        starts,
        grad.shape[1],
        padded[1] * padded[2],
        padded[2],
        size,
        voxels,
        blocks,
        int(fields == 1),
        ORDER=order,
        BLOCK=BLOCK,
    )
    return out


def _variants() -> list[tuple[str, object, dict[str, str], dict[str, object]]]:
    places = {"cell_ptr": "*i64", "fraction_ptr": "*fp32"}
    arguments = places | {"displacement_ptr": "*fp32", "matrix_ptr": "*fp64"}
    arguments |= dict.fromkeys(("n0", "n1", "n2", "target1", "target2"), "i32")
    arguments |= dict.fromkeys(("voxels", "blocks"), "i64")
    runs = places | {"out_ptr": "*fp32", "grad_ptr": "*fp32", "start_ptr": "*i64", "channels": "i32", "shared": "i32"}
    runs |= dict.fromkeys(("sx", "sy", "size", "voxels", "blocks"), "i64")
    variants = []
    for order in (1, 3, 5):
        constants = {"ORDER": order, "BLOCK": BLOCK}
        variants.append((f"adjoint[order {order}]", adjoint_kernel, runs, constants))
        for mirror in (False, True):
            name = f"locate[order {order}{', mirror' if mirror else ''}]"
            variants.append((name, locate_kernel, arguments, constants | {"MIRROR": mirror, "MOVED": True}))
    return variants


VARIANTS = _variants()
