"""attention3d in ONNX's own operators, for `torch.onnx.export(custom_translation_table=mrisr.ops.onnx_translations())`.

The volume is padded to whole windows, cut into them by one Reshape, Transpose, Reshape, and put together the same way,
for any size of volume. No tensor has more than 8 axes (TensorRT's limit). Softmax(Q K^T) V stands as MatMul, Softmax,
MatMul, which engines fuse.
"""

from __future__ import annotations

OUT_OF_SIGHT = -1e9  # added to the logit of what is no key: its exponential is 0 in float32


def to_onnx(qkv, heads, window, offset, mask, q_gain, k_gain, eps, scale, save=False, backend=""):
    """(y, log-sum-exp) of `mrisr::attention3d`; the second is for its backward pass, and stays empty here. Unlike the
    operator, it takes what is no key for finite."""
    from onnxscript import opset18 as op

    cut = _Windows(op, qkv, [int(w) for w in window], [int(o) for o in offset])
    parts = op.Reshape(cut(qkv), op.Constant(value_ints=[0, 0, 3, int(heads), -1]))
    parts = op.Transpose(parts, perm=[2, 0, 3, 1, 4])  # [3, windows, heads, tokens, head_dim]
    q, k, v = (op.Gather(parts, op.Constant(value_int=i), axis=0) for i in range(3))
    if eps is not None:
        q, k = (_normed(op, x, eps, gain) for x, gain in ((q, q_gain), (k, k_gain)))
    key = op.Unsqueeze(cut(_keys(op, qkv, mask)), op.Constant(value_ints=[1]))  # [windows, 1, tokens, 1]
    key = op.Transpose(key, perm=[0, 1, 3, 2])
    one = op.CastLike(op.Constant(value_float=1.0), qkv)
    hidden = op.Mul(op.Sub(one, key), op.CastLike(op.Constant(value_float=OUT_OF_SIGHT), qkv))
    q = op.Mul(q, op.CastLike(op.Constant(value_float=float(scale)), qkv))
    logits = op.Add(op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2])), hidden)
    # Where a window has no key at all, softmax gives something, and the product nothing.
    shares = op.Mul(op.Softmax(logits, axis=-1), key)
    y = op.Transpose(op.MatMul(shares, v), perm=[0, 2, 1, 3])
    return cut.back(op.Reshape(y, op.Constant(value_ints=[0, 0, -1]))), op.ConstantOfShape(op.Constant(value_ints=[0]))


def _normed(op, x, eps: float, gain):
    mean = op.ReduceMean(op.Mul(x, x), op.Constant(value_ints=[-1]), keepdims=1)
    x = op.Div(x, op.Sqrt(op.Add(mean, op.CastLike(op.Constant(value_float=float(eps)), x))))
    return x if gain is None else op.Mul(x, gain)


def _keys(op, qkv, mask):
    """1 where a token is a key, [N, D, H, W, 1]; padding will be 0."""
    if mask is not None:
        return op.Unsqueeze(op.CastLike(mask, qkv), op.Constant(value_ints=[4]))
    shape = op.Concat(op.Shape(qkv, start=0, end=4), op.Constant(value_ints=[1]), axis=0)
    return op.Expand(op.CastLike(op.Constant(value_float=1.0), qkv), shape)


class _Windows:
    """Cuts [N, D, H, W, C] into [windows, tokens, C], and puts them back."""

    def __init__(self, op, like, window: list[int], offset: list[int]) -> None:
        self.op, self.window = op, window
        self.first = op.Constant(value_ints=offset)
        box, one = op.Constant(value_ints=window), op.Constant(value_ints=[1] * 3)
        self.size = op.Shape(like, start=1, end=4)
        # ceil((size + offset) / window), in whole numbers
        self.counts = op.Div(op.Sub(op.Add(op.Add(self.size, self.first), box), one), box)
        self.padded = op.Mul(self.counts, box)
        self.samples = op.Shape(like, start=0, end=1)

    def _each(self, values):
        op = self.op
        return [op.Gather(values, op.Constant(value_ints=[i]), axis=0) for i in range(3)]

    def __call__(self, x):
        op, none = self.op, self.op.Constant(value_ints=[0])
        last = op.Sub(op.Sub(self.padded, self.size), self.first)
        x = op.Pad(x, op.Concat(none, self.first, none, none, last, none, axis=0))
        pairs = [
            v for count, w in zip(self._each(self.counts), self.window) for v in (count, op.Constant(value_ints=[w]))
        ]
        x = op.Reshape(x, op.Concat(self.samples, *pairs, op.Constant(value_ints=[-1]), axis=0))
        x = op.Transpose(x, perm=[0, 1, 3, 5, 2, 4, 6, 7])
        tokens = self.window[0] * self.window[1] * self.window[2]
        channels = op.Shape(x, start=7, end=8)
        return op.Reshape(x, op.Concat(op.Constant(value_ints=[-1, tokens]), channels, axis=0))

    def back(self, x):
        op, end = self.op, self.op.Constant(value_ints=[-1])
        x = op.Reshape(x, op.Concat(self.samples, self.counts, op.Constant(value_ints=self.window), end, axis=0))
        x = op.Transpose(x, perm=[0, 1, 4, 2, 5, 3, 6, 7])
        x = op.Reshape(x, op.Concat(self.samples, self.padded, end, axis=0))
        return op.Slice(x, self.first, op.Add(self.first, self.size), op.Constant(value_ints=[1, 2, 3]))
