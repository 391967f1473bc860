"""rms_norm in ONNX's own operators, for `torch.onnx.export(custom_translation_table=mrisr.ops.onnx_translations())`."""

from __future__ import annotations

from mrisr.ops.rms_norm.reference import EPS


def to_onnx(x, scale=None, shift=None, act="none", eps=EPS, backend=""):
    """y of `mrisr::rms_norm`."""
    from onnxscript import opset18 as op

    y = op.ReduceMean(op.Mul(x, x), op.Constant(value_ints=[1]), keepdims=1)
    y = op.Div(x, op.Sqrt(op.Add(y, op.CastLike(op.Constant(value_float=eps), x))))
    axes = op.Constant(value_ints=[2, 3, 4])
    if scale is not None:
        y = op.Mul(y, op.Unsqueeze(op.Add(scale, op.CastLike(op.Constant(value_float=1.0), scale)), axes))
    if shift is not None:
        y = op.Add(y, op.Unsqueeze(shift, axes))
    return op.Mul(y, op.Sigmoid(y)) if act == "silu" else y
