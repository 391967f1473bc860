"""B-splines sampled along a displacement, in Triton: values, and the gradient by the displacement.

Every voxel reads its (order + 1)^3 coefficients in a fixed order and writes only itself. Positions are formed in
float64 (600 voxels leave float32 four digits), everything else in float32; offsets are int64. The gradient by the
coefficients is in resample3d_adjoint.py.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl

# The interpreter pays by the block, not by the voxel.
BLOCK = 1024 if os.environ.get("TRITON_INTERPRET") == "1" else 128


@triton.jit
def _inner(t):
    """Quintic B-spline at distance t <= 1 from its centre."""
    return 0.55 + t * t * (-0.5 + t * t * (0.25 - t * (1.0 / 12.0)))


@triton.jit
def _inner_slope(t):
    return t * (-1.0 + t * t * (1.0 - t * (5.0 / 12.0)))


@triton.jit
def _middle(u):
    """... at distance 2 - u, 0 <= u <= 1."""
    return (1.0 + u * (5.0 + u * (10.0 + u * (10.0 + u * (5.0 - u * 5.0))))) * (1.0 / 120.0)


@triton.jit
def _middle_slope(u):
    return (1.0 + u * (4.0 + u * (6.0 + u * (4.0 - u * 5.0)))) * (1.0 / 24.0)


@triton.jit
def _weights(t, ORDER: tl.constexpr):
    """The B-splines of ORDER + 1 coefficients at fraction t; what is left of the six is not used. Mirrored taps share a
    polynomial, in 1 - t."""
    u = 1.0 - t
    if ORDER == 1:
        w0, w1, w2, w3, w4, w5 = u, t, t, t, t, t
    elif ORDER == 3:
        w0 = u * u * u * (1.0 / 6.0)
        w1 = (2.0 / 3.0) + t * t * (0.5 * t - 1.0)
        w2 = (2.0 / 3.0) + u * u * (0.5 * u - 1.0)
        w3 = t * t * t * (1.0 / 6.0)
        w4, w5 = t, t
    else:
        w0 = u * u * u * u * u * (1.0 / 120.0)
        w1 = _middle(u)
        w2 = _inner(t)
        w3 = _inner(u)
        w4 = _middle(t)
        w5 = t * t * t * t * t * (1.0 / 120.0)
    return w0, w1, w2, w3, w4, w5


@triton.jit
def _weight_slopes(t, ORDER: tl.constexpr):
    """d(_weights) / dt."""
    u = 1.0 - t
    if ORDER == 1:
        one = 0.0 * t + 1.0
        w0, w1, w2, w3, w4, w5 = -one, one, t, t, t, t
    elif ORDER == 3:
        w0 = u * u * -0.5
        w1 = t * (1.5 * t - 2.0)
        w2 = u * (2.0 - 1.5 * u)
        w3 = t * t * 0.5
        w4, w5 = t, t
    else:
        w0 = u * u * u * u * (-1.0 / 24.0)
        w1 = -_middle_slope(u)
        w2 = _inner_slope(t)
        w3 = -_inner_slope(u)
        w4 = _middle_slope(t)
        w5 = t * t * t * t * (1.0 / 24.0)
    return w0, w1, w2, w3, w4, w5


@triton.jit
def _pick(w0, w1, w2, w3, w4, w5, TAP: tl.constexpr):
    if TAP == 0:
        w = w0
    elif TAP == 1:
        w = w1
    elif TAP == 2:
        w = w2
    elif TAP == 3:
        w = w3
    elif TAP == 4:
        w = w4
    else:
        w = w5
    return w


@triton.jit
def _weight_of(w0, w1, w2, w3, w4, w5, tap, ORDER: tl.constexpr):
    """_pick of a tap that is known at run time only: the loop over planes stays a loop."""
    w = tl.where(tap == 0, w0, w1)
    if ORDER > 1:
        w = tl.where(tap == 2, w2, w)
        w = tl.where(tap == 3, w3, w)
    if ORDER > 3:
        w = tl.where(tap == 4, w4, w)
        w = tl.where(tap == 5, w5, w)
    return w


@triton.jit
def _locate(position, n, MIRROR: tl.constexpr):
    """float64 position -> (first tap, the halo counted in; fraction; d(held or reflected position) / d(position))."""
    end = (n - 1).to(tl.float64)
    if MIRROR:
        period = tl.maximum(2 * (n - 1), 1).to(tl.float64)
        place = position - period * tl.floor(position / period)
        beyond = place > end
        place = tl.where(beyond, period - place, place)
        place = tl.where(place > end, end, place)
        place = tl.where(place < 0.0, 0.0 * end, place)
        slope = tl.where(beyond, -1.0, 1.0)
        slope = tl.where(n == 1, 0.0, slope)
    else:
        place = tl.where(position < -0.5, 0.0 * end - 0.5, position)
        place = tl.where(place > end + 0.5, end + 0.5, place)
        slope = tl.where(place == position, 1.0, 0.0)
    is_nan = position != position
    slope = tl.where(is_nan, position.to(tl.float32), slope)
    below = tl.floor(place)
    tap = tl.where(place == place, below, 0.0 * end).to(tl.int32) + 1
    return tap.to(tl.int64), (place - below).to(tl.float32), slope


@triton.jit
def _axis(
    matrix_ptr,
    displacement_ptr,
    voxel,
    inside,
    voxels,
    i,
    j,
    k,
    n,
    AXIS: tl.constexpr,
    MOVED: tl.constexpr,
    MIRROR: tl.constexpr,
):
    row = matrix_ptr + 4 * AXIS
    position = tl.load(row) * i + tl.load(row + 1) * j + tl.load(row + 3) + tl.load(row + 2) * k
    if MOVED:
        position += tl.load(displacement_ptr + AXIS * voxels + voxel, mask=inside, other=0.0).to(tl.float64)
    return _locate(position, n, MIRROR)


@triton.jit
def value_kernel(
    out_ptr,  # [N, C, voxels]
    coefficients_ptr,  # [N, C, X + 2h, Y + 2h, Z + 2h]
    displacement_ptr,  # [N or 1, 3, voxels]
    matrix_ptr,  # float64 [3, 4]
    channels,
    n0,
    n1,
    n2,
    target1,
    target2,
    voxels,
    blocks,
    field_stride,  # 0 where the whole batch shares a displacement
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
    field = displacement_ptr + batch * field_stride
    x, tx, _ = _axis(matrix_ptr, field, voxel, inside, voxels, i, j, k, n0, 0, MOVED, MIRROR)
    y, ty, _ = _axis(matrix_ptr, field, voxel, inside, voxels, i, j, k, n1, 1, MOVED, MIRROR)
    z, tz, _ = _axis(matrix_ptr, field, voxel, inside, voxels, i, j, k, n2, 2, MOVED, MIRROR)
    sy = (n2 + ORDER + 1).to(tl.int64)
    sx = sy * (n1 + ORDER + 1)
    size = sx * (n0 + ORDER + 1)
    first = x * sx + y * sy + z
    x0, x1, x2, x3, x4, x5 = _weights(tx, ORDER)
    y0, y1, y2, y3, y4, y5 = _weights(ty, ORDER)
    z0, z1, z2, z3, z4, z5 = _weights(tz, ORDER)
    for channel in range(channels):
        volume = batch * channels + channel
        base = coefficients_ptr + volume * size + first
        total = tl.zeros((BLOCK,), tl.float32)
        for a in range(ORDER + 1):
            plane = tl.zeros((BLOCK,), tl.float32)
            for b in tl.static_range(ORDER + 1):
                line = tl.zeros((BLOCK,), tl.float32)
                for c in tl.static_range(ORDER + 1):
                    value = tl.load(base + a * sx + b * sy + c, mask=inside, other=0.0)
                    line += _pick(z0, z1, z2, z3, z4, z5, c) * value
                plane += _pick(y0, y1, y2, y3, y4, y5, b) * line
            total += _weight_of(x0, x1, x2, x3, x4, x5, a, ORDER) * plane
        tl.store(out_ptr + volume * voxels + voxel, total, mask=inside)


@triton.jit
def slope_kernel(
    out_ptr,  # [N, 3, voxels]
    coefficients_ptr,
    displacement_ptr,
    matrix_ptr,
    grad_ptr,  # [N, C, voxels]
    channels,
    n0,
    n1,
    n2,
    target1,
    target2,
    voxels,
    blocks,
    field_stride,
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
    field = displacement_ptr + batch * field_stride
    x, tx, turn_x = _axis(matrix_ptr, field, voxel, inside, voxels, i, j, k, n0, 0, MOVED, MIRROR)
    y, ty, turn_y = _axis(matrix_ptr, field, voxel, inside, voxels, i, j, k, n1, 1, MOVED, MIRROR)
    z, tz, turn_z = _axis(matrix_ptr, field, voxel, inside, voxels, i, j, k, n2, 2, MOVED, MIRROR)
    sy = (n2 + ORDER + 1).to(tl.int64)
    sx = sy * (n1 + ORDER + 1)
    size = sx * (n0 + ORDER + 1)
    first = x * sx + y * sy + z
    x0, x1, x2, x3, x4, x5 = _weights(tx, ORDER)
    y0, y1, y2, y3, y4, y5 = _weights(ty, ORDER)
    z0, z1, z2, z3, z4, z5 = _weights(tz, ORDER)
    dx0, dx1, dx2, dx3, dx4, dx5 = _weight_slopes(tx, ORDER)
    dy0, dy1, dy2, dy3, dy4, dy5 = _weight_slopes(ty, ORDER)
    dz0, dz1, dz2, dz3, dz4, dz5 = _weight_slopes(tz, ORDER)
    along_x = tl.zeros((BLOCK,), tl.float32)
    along_y = tl.zeros((BLOCK,), tl.float32)
    along_z = tl.zeros((BLOCK,), tl.float32)
    for channel in range(channels):
        volume = batch * channels + channel
        base = coefficients_ptr + volume * size + first
        grad = tl.load(grad_ptr + volume * voxels + voxel, mask=inside, other=0.0)
        sum_x = tl.zeros((BLOCK,), tl.float32)
        sum_y = tl.zeros((BLOCK,), tl.float32)
        sum_z = tl.zeros((BLOCK,), tl.float32)
        for a in range(ORDER + 1):
            plane = tl.zeros((BLOCK,), tl.float32)
            plane_y = tl.zeros((BLOCK,), tl.float32)
            plane_z = tl.zeros((BLOCK,), tl.float32)
            for b in tl.static_range(ORDER + 1):
                line = tl.zeros((BLOCK,), tl.float32)
                line_z = tl.zeros((BLOCK,), tl.float32)
                for c in tl.static_range(ORDER + 1):
                    value = tl.load(base + a * sx + b * sy + c, mask=inside, other=0.0)
                    line += _pick(z0, z1, z2, z3, z4, z5, c) * value
                    line_z += _pick(dz0, dz1, dz2, dz3, dz4, dz5, c) * value
                plane += _pick(y0, y1, y2, y3, y4, y5, b) * line
                plane_y += _pick(dy0, dy1, dy2, dy3, dy4, dy5, b) * line
                plane_z += _pick(y0, y1, y2, y3, y4, y5, b) * line_z
            weight = _weight_of(x0, x1, x2, x3, x4, x5, a, ORDER)
            sum_x += _weight_of(dx0, dx1, dx2, dx3, dx4, dx5, a, ORDER) * plane
            sum_y += weight * plane_y
            sum_z += weight * plane_z
        along_x += grad * sum_x
        along_y += grad * sum_y
        along_z += grad * sum_z
    out = out_ptr + batch * 3 * voxels + voxel
    tl.store(out, along_x * turn_x, mask=inside)
    tl.store(out + voxels, along_y * turn_y, mask=inside)
    tl.store(out + 2 * voxels, along_z * turn_z, mask=inside)


def _launch(kernel, out, arrays, displacement, matrix, source, target, channels: int, order: int, mirror: bool) -> None:
    voxels = target[0] * target[1] * target[2]
    if out.numel() == 0:
        return
    blocks = triton.cdiv(voxels, BLOCK)
    coefficients, *rest = arrays
    shared = displacement is None or displacement.shape[0] == 1
    kernel[(out.shape[0] * blocks,)](
        out,
        coefficients,
        coefficients if displacement is None else displacement,
        torch.tensor(matrix, dtype=torch.float64, device=out.device),
        *rest,
        channels,
        *source,
        *target[1:],
        voxels,
        blocks,
        0 if shared else 3 * voxels,
        ORDER=order,
        MIRROR=mirror,
        MOVED=displacement is not None,
        BLOCK=BLOCK,
    )


def value(coefficients, displacement, matrix, source, target, order: int, mirror: bool) -> torch.Tensor:
    """float32 [N, C, *target]; the arguments of csrc/core/resample3d.h, contiguous."""
    out = coefficients.new_empty((*coefficients.shape[:2], *target))
    channels = coefficients.shape[1]
    _launch(value_kernel, out, (coefficients,), displacement, matrix, source, target, channels, order, mirror)
    return out


def slope(coefficients, displacement, grad, matrix, source, target, order: int, mirror: bool) -> torch.Tensor:
    """float32 [N, 3, *target]: the gradient with respect to the displacement."""
    out = coefficients.new_empty((coefficients.shape[0], 3, *target))
    channels = coefficients.shape[1]
    _launch(slope_kernel, out, (coefficients, grad), displacement, matrix, source, target, channels, order, mirror)
    return out


def _variants() -> list[tuple[str, object, dict[str, str], dict[str, object]]]:
    sizes = dict.fromkeys(("channels", "n0", "n1", "n2", "target1", "target2"), "i32")
    sizes |= dict.fromkeys(("voxels", "blocks", "field_stride"), "i64")
    pointers = {"out_ptr": "*fp32", "coefficients_ptr": "*fp32", "displacement_ptr": "*fp32", "matrix_ptr": "*fp64"}
    variants = []
    for order in (1, 3, 5):
        for mirror in (False, True):
            name = f"[order {order}{', mirror' if mirror else ''}]"
            constants = {"ORDER": order, "MIRROR": mirror, "MOVED": True, "BLOCK": BLOCK}
            variants.append((f"value{name}", value_kernel, pointers | sizes, constants))
            variants.append((f"slope{name}", slope_kernel, pointers | {"grad_ptr": "*fp32"} | sizes, constants))
    return variants


VARIANTS = _variants()
