"""The norms beyond float32 parity: half precision through the backward pass, in place, threads, contracts."""

from __future__ import annotations

import pytest
import torch

from mrisr.errors import UsageError
from mrisr.ops.group_norm import apply, group_norm
from mrisr.ops.rms_norm import plain, rms_norm
from tests.ops import cases, parity

SPECS = {name: cases.SPECS[name] for name in ("rms_norm", "group_norm")}
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
        args = parity.arguments(spec, case, dtype)
        found = parity.derivatives(lambda **kw: spec.call(**kw, backend=backend), spec, args)
        expected = parity.derivatives(spec.reference, spec, parity.cast(args, torch.float64))
        for key, gradient in found.items():
            assert gradient.dtype == dtype
            scale = max(1.0, float(expected[key].abs().nan_to_num(0.0).max()))
            error = parity.deviation(gradient.double() / scale, expected[key] / scale)
            # The upstream gradient is rounded too, at every voxel.
            assert error <= 8 * HALVES[dtype], (case, key, error)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_place_and_into_another_layout(backend, dtype, layout):
    x, scale, shift = draw(2, 24, 3, 4, 5, dtype=dtype, layout=layout), draw(2, 24), draw(2, 24)
    for run in (
        lambda x, out=None: rms_norm(x, scale, shift, act="silu", out=out, backend=backend),
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
    for run in (rms_norm, lambda x, out: group_norm(x, 2, out=out)):
        with pytest.raises(
            UsageError, match="out= keeps nothing for a backward pass; leave it out, or use torch.no_grad"
        ):
            run(x.clone().requires_grad_(), out=x)
        with pytest.raises(UsageError, match="out must be dense, torch.float32 .* it is torch.float16"):
            run(x, out=x.half())


def test_contracts_of_rms_norm():
    x = draw(1, 8, 2, 3, 4)
    for change, says in (
        (dict(x=x[0]), r"rms_norm: x must be floating point \[N, C, D, H, W\]"),
        (dict(x=x, scale=torch.ones(8)), r"scale must be floating point \[1, 8\]; it is torch.float32 \[8\]"),
        (dict(x=x, act="relu"), "act must be 'silu' or None; it is 'relu'"),
        (dict(x=x, eps=0.0), "eps must be positive; it is 0.0"),
    ):
        with pytest.raises(UsageError, match=says):
            rms_norm(**change)


def test_rms_norm_is_plain_pytorch_to_a_tracer():
    """OpenVINO converts by tracing, and knows PyTorch's operators only."""
    x, scale, shift = draw(1, 8, 2, 3, 4), draw(1, 8), draw(1, 8)
    traced = torch.jit.trace(lambda x, s, t: rms_norm(x, s, t, act="silu"), (x, scale, shift))
    assert "mrisr::" not in str(traced.graph)
    torch.testing.assert_close(traced(x, scale, shift), rms_norm(x, scale, shift, act="silu"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(plain(x), rms_norm(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_the_thread_count(layout, dtype):
    x = draw(2, 12, 13, 17, 19, dtype=dtype, layout=layout)
    before, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaf, scale = x.clone().requires_grad_(), draw(2, 12).requires_grad_()
            a = rms_norm(leaf, scale, act="silu")
            b = group_norm(leaf, 3, scale=scale, act="silu")
            gradients = torch.autograd.grad((a.float() * b.float()).sum(), (leaf, scale))
            found.append((a, b, *gradients))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(p, q) for p, q in zip(found[0], other))


def test_silu_is_accurate_over_its_whole_range():
    """To 1e-6 of the value from -87 to 87: group norm with given statistics is silu alone."""
    z = torch.linspace(-87, 87, 20001, dtype=torch.float64).float().reshape(1, 1, 1, 1, -1)
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    found = apply(z, zero, one, act="silu", backend="native").double()
    expected = torch.nn.functional.silu(z.double())
    assert ((found - expected).abs() <= 1e-6 * expected.abs()).all()
