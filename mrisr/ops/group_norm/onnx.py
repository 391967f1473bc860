"""group_norm in ONNX's own operators, for `torch.onnx.export(custom_translation_table=mrisr.ops.onnx_translations())`.

Without a mask: Reshape, InstanceNormalization, Reshape, Mul, Add, which every runtime knows and fuses
(GroupNormalization failed on TensorRT 10.7: TensorRT issue 4336). With a mask: sums over the active voxels, in two
passes.
"""

from __future__ import annotations


def to_onnx(
    x,
    groups,
    weight=None,
    bias=None,
    scale=None,
    shift=None,
    mask=None,
    act="none",
    eps=1e-5,
    backend="",
):
    """(y, mean, rstd) of `mrisr::group_norm`; the last two are for its backward pass, and stay empty here."""
    from onnxscript import opset18 as op

    normed = _normed(op, x, groups, eps) if mask is None else _masked(op, x, mask, groups, eps)
    axes = op.Constant(value_ints=[2, 3, 4])

    def per_voxel(line):
        """[C] or [N, C] -> broadcast over x."""
        return op.Unsqueeze(line, axes)

    one = None if scale is None else per_voxel(op.Add(scale, op.CastLike(op.Constant(value_float=1.0), scale)))
    y = normed
    if weight is not None:
        y = op.Mul(y, per_voxel(op.Unsqueeze(weight, op.Constant(value_ints=[0]))))
    if bias is not None:
        y = op.Add(y, per_voxel(op.Unsqueeze(bias, op.Constant(value_ints=[0]))))
    if one is not None:
        y = op.Mul(y, one)
    if shift is not None:
        y = op.Add(y, per_voxel(shift))
    if act == "silu":
        y = op.Mul(y, op.Sigmoid(y))
    empty = op.ConstantOfShape(op.Constant(value_ints=[0, int(groups)]))
    return y, empty, empty


def _normed(op, x, groups: int, eps: float):
    rows = op.Reshape(x, op.Constant(value_ints=[0, int(groups), -1]))
    ones = op.CastLike(op.Constant(value_floats=[1.0] * int(groups)), x)
    zeros = op.CastLike(op.Constant(value_floats=[0.0] * int(groups)), x)
    return op.Reshape(op.InstanceNormalization(rows, ones, zeros, epsilon=float(eps)), op.Shape(x))


def _masked(op, x, mask, groups: int, eps: float):
    channels = op.Shape(x, start=1, end=2)
    per_group = op.Div(channels, op.Constant(value_ints=[int(groups)]))
    shape = op.Concat(op.Constant(value_ints=[0, int(groups)]), per_group, op.Constant(value_ints=[-1]), axis=0)
    rows = op.Reshape(x, shape)  # [N, groups, channels of the group, voxels]
    active = op.Cast(op.Reshape(mask, op.Constant(value_ints=[0, 1, 1, -1])), to=9)  # BOOL
    zero, one = (op.CastLike(op.Constant(value_float=v), x) for v in (0.0, 1.0))
    axes = op.Constant(value_ints=[2, 3])

    def total(values):
        return op.ReduceSum(op.Where(active, values, zero), axes, keepdims=1)

    count = op.Mul(op.ReduceSum(op.CastLike(active, x), axes, keepdims=1), op.CastLike(per_group, x))
    safe = op.Max(count, one)
    centred = op.Sub(rows, op.Div(total(rows), safe))
    variance = op.Div(total(op.Mul(centred, centred)), safe)
    # A sample without an active voxel keeps mean 0 and rstd 1.
    spread = op.Sqrt(op.Add(variance, op.CastLike(op.Constant(value_float=eps), x)))
    deviation = op.Where(op.Greater(count, zero), spread, one)
    return op.Reshape(op.Div(centred, deviation), op.Shape(x))
