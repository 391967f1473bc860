"""attention3d: what parity does not show, the network's layer against padded windows, and bad input by its words."""

from __future__ import annotations

import copy
import importlib
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mrisr.errors import BackendError, UsageError
from mrisr.nn.blocks import WindowAttention
from mrisr.ops.attention3d import attention3d
from mrisr.ops.attention3d.measured import sdpa_was_faster


def draw(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


def padded_windows(layer: WindowAttention, x: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """The layer by padding, cutting into whole windows and PyTorch's attention under a mask."""
    size, k, s = x.shape[2:], layer.window, layer.shift
    tokens = x.permute(0, 2, 3, 4, 1)
    normed = tokens * torch.rsqrt(tokens.square().mean(-1, keepdim=True) + 1e-6) * layer.scale
    pad = [v for n in reversed(size) for v in (s, -(n + s) % k)]

    def windows(t):
        t = F.pad(t, (0, 0, *pad))
        t = t.unflatten(3, (-1, k)).unflatten(2, (-1, k)).unflatten(1, (-1, k))
        return t.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, k**3, t.shape[-1])

    q, k_, v = (t.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for t in windows(layer.qkv(normed)).chunk(3, -1))
    key = windows(active.permute(0, 2, 3, 4, 1).float())[..., 0][:, None, None] > 0
    y = F.scaled_dot_product_attention(q, k_, v, attn_mask=key | ~key.any(-1, keepdim=True)).transpose(1, 2).flatten(2)
    grid = [(n + s + k - 1) // k for n in size]
    y = y.view(len(x), *grid, k, k, k, -1).permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)
    y = layer.out(y[:, s:, s:, s:][:, : size[0], : size[1], : size[2]])
    return x + y.permute(0, 4, 1, 2, 3) * active


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("head_dim", [16, 32])
def test_the_layer_is_attention_in_padded_windows(shifted, head_dim):
    torch.manual_seed(0)
    layer = WindowAttention(64, head_dim, shifted)
    torch.nn.init.normal_(layer.out.weight, std=0.1)
    x, active = draw(2, 64, 9, 8, 11).requires_grad_(), draw(2, 1, 9, 8, 11) > 0
    active[..., :8, :8, :8] = False  # a window with no key at all
    found, expected = layer(x, active), padded_windows(layer, x, active)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    leaves = [x, *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected))):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1)


def by_hand(layer: WindowAttention, x: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """The layer over the whole volume, queries and keys normalised, in plain operations and float64."""
    x, layer = x.double(), copy.deepcopy(layer).double()
    tokens = x.permute(0, 2, 3, 4, 1).flatten(1, 3)
    normed = tokens * torch.rsqrt(tokens.square().mean(-1, keepdim=True) + 1e-6) * layer.scale
    q, k, v = (t.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for t in layer.qkv(normed).chunk(3, -1))
    q, k = (
        t * torch.rsqrt(t.square().mean(-1, keepdim=True) + 1e-6) * g for t, g in ((q, layer.q_gain), (k, layer.k_gain))
    )
    key = (active.flatten(2) > 0)[:, :, None]
    logits = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~key, -math.inf)
    y = layer.out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2)).transpose(1, 2)
    return x + y.reshape(x.shape) * active


def test_the_layer_over_the_whole_volume_with_normalised_queries_and_keys():
    torch.manual_seed(0)
    layer = WindowAttention(64, 32, shifted=True, everywhere=True, qk_norm=True)
    assert {name for name, _ in layer.named_parameters()} >= {"q_gain", "k_gain"}
    for p in (layer.out.weight, layer.scale, layer.q_gain, layer.k_gain):
        torch.nn.init.normal_(p, 0.6, std=0.1)
    x, active = draw(2, 64, 9, 5, 11), draw(2, 1, 9, 5, 11) > 0
    torch.testing.assert_close(layer(x, active).double(), by_hand(layer, x, active), rtol=0, atol=2e-5)


def test_the_layer_over_the_whole_volume_has_a_limit():
    layer = WindowAttention(16, 16, everywhere=True)
    with pytest.raises(UsageError, match="at most 65536 tokens; these are .41, 40, 40.; process the volume in tiles"):
        layer(torch.zeros(1, 16, 41, 40, 40), None)


@pytest.mark.parametrize("backend", ["native", "sdpa", "reference"])
def test_a_part_of_a_volume_has_the_windows_of_the_whole(backend):
    qkv = draw(1, 12, 9, 10, 96)
    call = dict(heads=1, window=4, backend=backend)
    part = attention3d(qkv[:, 2:10, 6:, 2:6], shift=(2 + 2, 2 + 6, 2 + 2), **call)
    torch.testing.assert_close(part, attention3d(qkv, shift=2, **call)[:, 2:10, 6:, 2:6], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["native", "sdpa", "reference"])
def test_nan_stays_in_its_window_and_behind_the_mask(backend):
    qkv = draw(1, 4, 4, 8, 96)
    qkv[0, 1, 2, 5] = math.nan
    y = attention3d(qkv, 1, window=4, backend=backend)
    assert y[:, :, :, 4:].isnan().all() and not y[:, :, :, :4].isnan().any()
    mask = torch.ones(1, 4, 4, 8, dtype=torch.bool)
    mask[0, 1, 2, 5] = False
    y = attention3d(qkv, 1, window=4, mask=mask, backend=backend)
    assert y.isnan().any(-1).sum() == 1 and y[0, 1, 2, 5].isnan().all()  # its own query alone


def test_gradients_agree_with_finite_differences():
    qkv, gains = draw(1, 3, 2, 2, 24, dtype=torch.float64).requires_grad_(), draw(2, 4, dtype=torch.float64)
    mask = draw(1, 3, 2, 2) > -0.5
    gains = [g.clone().requires_grad_() for g in gains]
    torch.autograd.gradcheck(
        lambda t, q, k: attention3d(t, 2, window=2, shift=1, mask=mask, norm_eps=1e-3, q_gain=q, k_gain=k),
        (qkv, *gains),
    )


def test_results_do_not_depend_on_the_thread_count():
    qkv, before = draw(1, 9, 10, 11, 192).requires_grad_(), torch.get_num_threads()
    found = []
    for count in (1, 3):
        torch.set_num_threads(count)
        y = attention3d(qkv, 2, shift=4, backend="native")
        found.append((y, torch.autograd.grad(y.square().sum(), qkv)[0]))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(heads=5), r"the last axis of qkv \(96\) must be 3 \* heads \* head_dim; heads=5"),
        (dict(qkv=draw(2, 3, 96)), r"must be floating point \[N, D, H, W, 3 \* heads \* head_dim\]"),
        (dict(window=0), "window must be None or from 1 to 1048576 tokens; it is 0"),
        (dict(window=None, shift=1), r"a shift needs windows; shift=\[1, 1, 1\], window=None"),
        (dict(shift=(1, 2)), r"shift must have three entries; it is \(1, 2\)"),
        (dict(mask=torch.ones(1, 2, 2, 3, dtype=torch.bool)), r"mask must be \[1, 2, 2, 2\]; it is \[1, 2, 2, 3\]"),
        (dict(mask=torch.ones(1, 2, 2, 2)), "mask must be bool or uint8; it is torch.float32"),
        (dict(q_gain=torch.ones(32)), "q_gain and k_gain belong to the normalisation; give norm_eps too"),
        (dict(norm_eps=0.0), "norm_eps must be None or positive; it is 0.0"),
        (dict(scale=math.inf), "scale must be finite; it is inf"),
    ],
)
def test_it_says_what_does_not_fit(change, says):
    with pytest.raises(UsageError, match="attention3d: .*" + says):
        attention3d(**{"qkv": draw(1, 2, 2, 2, 96), "heads": 1, **change})


def test_backends_give_their_reasons():
    with pytest.raises(BackendError, match="it keeps no log-sum-exp, which the gradients need"):
        attention3d(draw(1, 2, 2, 2, 96).requires_grad_(), 1, backend="sdpa")
    with pytest.raises(BackendError, match="it takes float32, float16 and bfloat16; qkv is torch.float64"):
        attention3d(draw(1, 2, 2, 2, 96, dtype=torch.float64), 1, backend="native")


def test_the_measured_table_decides_by_the_nearest_size():
    row = ("a", "bfloat16", 64, 8)
    rows = ((*row, 512, 2.0, 1.0), (*row, 50_000, 1.0, 2.0))
    assert sdpa_was_faster(rows, "a", "bfloat16", 64, 8, 700)
    assert not sdpa_was_faster(rows, "a", "bfloat16", 64, 8, 40_000)
    assert not sdpa_was_faster(rows, "another", "bfloat16", 64, 8, 700)


def test_the_benchmark_writes_the_table(monkeypatch):
    """Rows of the same device are replaced, others stay, and what is written is the literal that is read."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    benchmark = importlib.import_module("attention3d")
    source, names = benchmark.TABLE.read_text(), benchmark.COLUMNS
    first = [dict(zip(names, (device, "bfloat16", 64, 8, 4096, 1.5, 2.0))) for device in ("a", "b")]
    again = [dict(zip(names, ("a", "float32", 32, None, 512, 0.5, 0.25)))]
    found: dict = {}
    exec(benchmark.tabulated(benchmark.tabulated(source, first), again), found)
    assert found["ROWS"] == (("b", "bfloat16", 64, 8, 4096, 1.5, 2.0), ("a", "float32", 32, None, 512, 0.5, 0.25))
    assert benchmark.tabulated(source, []) == source
