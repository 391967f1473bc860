"""The norms beyond float32 parity: half precision through the backward pass, in place, threads, contracts."""

from __future__ import annotations

import pytest
import torch

from mrisr import ops
from mrisr.errors import UsageError
from mrisr.ops import _parity
from mrisr.ops.add_stats import add_stats
from mrisr.ops.channel_norm import channel_norm, plain
from mrisr.ops.group_norm import group_norm, merge, stats

SPECS = {name: ops.specs()[name] for name in ("channel_norm", "group_norm", "add_stats")}
HALVES = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # rounding of one number
BACKENDS = ["native", "reference"]
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def draw(*shape, dtype=torch.float32, layout=torch.contiguous_format):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    return x.contiguous(memory_format=layout) if x.ndim == 5 else x


@pytest.mark.parametrize("dtype", list(HALVES))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", list(SPECS))
def test_gradients_in_half_precision(name, backend, dtype):
    """Arithmetic is float32, so gradients are as good as what is read and written: a few roundings of the largest."""
    spec = SPECS[name]
    for case in (
        "first",
        "last",
        "film",
        "masked_first",
        "masked_last",
        "odd_channels",
        "large_mean",
        "nan_in_one_voxel",
    ):
        if case not in spec.cases:
            continue
        args = _parity.arguments(spec, case, dtype)
        found = _parity.derivatives(lambda **kw: spec.call(**kw, backend=backend), spec, args)
        expected = _parity.derivatives(spec.reference, spec, _parity.cast(args, torch.float64))
        for key, gradient in found.items():
            assert gradient.dtype == dtype
            scale = max(1.0, float(expected[key].abs().nan_to_num(0.0).max()))
            error = _parity.deviation(gradient.double() / scale, expected[key] / scale)
            # The upstream gradient is rounded too, at every voxel.
            assert error <= 8 * HALVES[dtype], (case, key, error)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place_and_into_another_layout(backend, dtype, layout):
    x, scale, shift = draw(2, 24, 3, 4, 5, dtype=dtype, layout=layout), draw(2, 24), draw(2, 24)
    for run in (
        lambda x, out=None: channel_norm(x, scale, shift, act="silu", out=out, backend=backend),
        lambda x, out=None: group_norm(x, 4, scale=scale, shift=shift, act="silu", out=out, backend=backend),
    ):
        expected = run(x)
        other = torch.empty_like(x, memory_format=LAYOUTS[layout == LAYOUTS[0]])
        assert run(x, other) is other
        torch.testing.assert_close(other, expected, rtol=2 * HALVES.get(dtype, 1e-6), atol=1e-6)
        y = x.clone()
        assert run(y, y) is y and torch.equal(y, expected)


def test_in_place_refuses_gradients_and_misfits():
    x = draw(1, 8, 2, 3, 4)
    for run in (channel_norm, lambda x, out: group_norm(x, 2, out=out)):
        with pytest.raises(
            UsageError, match="out= keeps nothing for a backward pass; leave it out, or use torch.no_grad"
        ):
            run(x.clone().requires_grad_(), out=x)
        with pytest.raises(UsageError, match="out must be dense, torch.float32 .* it is torch.float16"):
            run(x, out=x.half())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics_of_a_sum_are_those_of_the_stored_sum(backend, dtype, layout):
    """Bit for bit on the C++ backend, at a mean of 1e4 too: what was rounded away on storing is not in them."""
    x, y = (draw(2, 8, 5, 6, 7, dtype=dtype, layout=layout) * k + 5e3 for k in (1, 2))
    mask = draw(2, 1, 5, 6, 7) > 0
    for given in (None, mask):
        total, partials = add_stats(x, y, 4, given, backend=backend)
        assert torch.equal(total, x + y) and total.stride() == x.stride()
        again = stats(total, 4, given, backend=backend)
        if backend == "native":
            assert torch.equal(partials, again)
        torch.testing.assert_close(merge(partials), merge(again), rtol=1e-6, atol=0)


def test_contracts_of_channel_norm_and_add_stats():
    x = draw(1, 8, 2, 3, 4)
    for change, says in (
        (dict(x=x[0]), r"channel_norm: x must be floating point \[N, C, D, H, W\]"),
        (dict(x=x, scale=torch.ones(8)), r"scale must be floating point \[1, 8\]; it is torch.float32 \[8\]"),
        (dict(x=x, act="relu"), "act must be 'silu' or None; it is 'relu'"),
        (dict(x=x, eps=0.0), "eps must be positive; it is 0.0"),
    ):
        with pytest.raises(UsageError, match=says):
            channel_norm(**change)
    with pytest.raises(UsageError, match="add_stats: x and y must be floating point .* alike"):
        add_stats(x, x.half(), 2)
    with pytest.raises(UsageError, match=r"channels \(8\) must be divisible by groups \(3\)"):
        add_stats(x, x, 3)
    with pytest.raises(UsageError, match=r"mask must be bool or uint8 \[1, 1, 2, 3, 4\]"):
        add_stats(x, x, 2, x > 0)
    with pytest.raises(UsageError, match=r"partials must be \[1, slabs, 2, 3\]"):
        group_norm(x, 2, partials=torch.zeros(1, 1, 4, 3))


def test_channel_norm_is_plain_pytorch_to_a_tracer():
    """OpenVINO converts by tracing, and knows PyTorch's operators only."""
    x, scale, shift = draw(1, 8, 2, 3, 4), draw(1, 8), draw(1, 8)
    traced = torch.jit.trace(lambda x, s, t: channel_norm(x, s, t, act="silu"), (x, scale, shift))
    assert "mrisr::" not in str(traced.graph)
    torch.testing.assert_close(traced(x, scale, shift), channel_norm(x, scale, shift, act="silu"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain(x), channel_norm(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_the_thread_count(layout, dtype):
    x = draw(2, 12, 13, 17, 19, dtype=dtype, layout=layout)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaf, scale = x.clone().requires_grad_(), draw(2, 12).requires_grad_()
            a = channel_norm(leaf, scale, act="silu")
            b = group_norm(leaf, 3, scale=scale, act="silu")
            gradients = torch.autograd.grad((a.float() * b.float()).sum(), (leaf, scale))
            found.append((a, b, *gradients))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(p, q) for p, q in zip(found[0], other))


def test_silu_is_accurate_over_its_whole_range():
    """To 1e-6 of the value from -87 to 87: group norm with given statistics is silu alone."""
    from mrisr.ops.group_norm import apply

    z = torch.linspace(-87, 87, 20001, dtype=torch.float64).float().reshape(1, 1, 1, 1, -1)
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    found = apply(z, zero, one, act="silu", backend="native").double()
    expected = torch.nn.functional.silu(z.double())
    assert ((found - expected).abs() <= 1e-6 * expected.abs()).all()
