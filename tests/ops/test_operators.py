"""Custom-operator contracts, properties that parity does not show, and bad input by its words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mrisr.errors import UsageError
from mrisr.ops import group_norm as norm_module
from mrisr.ops import noise as noise_module
from mrisr.ops import tiles
from mrisr.ops.group_norm import apply, group_norm, merge, stats
from mrisr.ops.noise import normal_noise, words
from mrisr.ops.resample import axes, axis_apply
from mrisr.ops.tiles import blend_add_, gather


def draw(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


# --- torch.library
# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("masked", [False, True])
def test_group_norm_opcheck(layout, masked):
    x = draw(2, 8, 3, 4, 5).contiguous(memory_format=layout).requires_grad_()
    film = [draw(*s).requires_grad_() for s in ((8,), (8,), (2, 8), (2, 8))]
    mask = (draw(2, 1, 3, 4, 5) > 0).to(torch.uint8) if masked else None
    torch.library.opcheck(norm_module._group_norm, (x, 2, *film, mask, "silu", 1e-5, ""))


def test_other_opchecks():
    x = draw(3, 4, 5).requires_grad_()
    torch.library.opcheck(axes._axis_apply, (x, draw(6, 4, dtype=torch.float64), 1, ""))
    torch.library.opcheck(noise_module._normal_noise, ([2, 3, 4], [0] * 3, [2, 3, 4], 1, 0, 0, torch.device("cpu"), ""))
    torch.library.opcheck(tiles._gather, (x, [-1, 2, 3], [4, 4, 4], ""))
    args = (draw(4, 4, 4), draw(2, 2, 2), [1, 1, 3], draw(2), draw(2), draw(2), "")
    torch.library.opcheck(tiles._blend_add, args)


def test_group_norm_is_one_node_of_an_exported_graph():
    class Block(torch.nn.Module):
        def forward(self, x):
            return group_norm(x, 2, act="silu") + 1

    graph = torch.export.export(Block(), (draw(1, 4, 3, 3, 3),)).graph
    assert sum("mrisr.group_norm" in str(node.target) for node in graph.nodes) == 1


def test_compiles_into_one_graph():
    def step(x):
        return group_norm(x, 2, act="silu") * 2 + normal_noise((2, 3, 4), seed=1)

    x = draw(1, 4, 2, 3, 4).requires_grad_()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(compiled, step(x))
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (compiled, step(x))]
    torch.testing.assert_close(*gradients)


def test_gradient_agrees_with_finite_differences():
    x = draw(1, 4, 2, 3, 2, dtype=torch.float64).requires_grad_()
    w, b = (draw(4, dtype=torch.float64).requires_grad_() for _ in range(2))
    s, t = (draw(1, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    mask = draw(1, 1, 2, 3, 2) > -0.5
    torch.autograd.gradcheck(
        lambda *p: group_norm(p[0], 2, p[1], p[2], scale=p[3], shift=p[4], mask=mask, act="silu"),
        (x, w, b, s, t),
    )


# --- group norm
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_memory_format_is_kept(backend):
    x = draw(1, 8, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d)
    assert group_norm(x, 2, backend=backend).is_contiguous(memory_format=torch.channels_last_3d)
    assert group_norm(x.contiguous(), 2, backend=backend).is_contiguous()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_parts_share_the_statistics_of_the_whole(backend):
    x = draw(1, 8, 12, 6, 7) * 3 + 50
    whole = group_norm(x, 2, act="silu", backend=backend)
    halves = x[:, :, :5].contiguous(), x[:, :, 5:].contiguous()
    mean, rstd = merge(torch.cat([stats(h, 2, backend=backend) for h in halves], dim=1))
    parts = torch.cat([apply(h, mean, rstd, act="silu", backend=backend) for h in halves], dim=2)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_air_outside_the_mask_changes_nothing(backend):
    x = draw(1, 8, 10, 10, 10)
    mask = torch.zeros(1, 1, 10, 10, 10, dtype=torch.bool)
    mask[..., 2:8, 2:8, 2:8] = True
    other = torch.where(mask, x, torch.full_like(x, float("nan")))
    inside = [group_norm(v, 2, mask=mask, backend=backend)[..., 2:8, 2:8, 2:8] for v in (x, other)]
    assert torch.equal(*inside)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_nan_stays_in_its_group(backend, layout):
    x = draw(2, 8, 3, 4, 5).contiguous(memory_format=layout)
    x[1, 5, 1, 2, 3] = float("nan")
    y = group_norm(x, 2, act="silu", backend=backend)
    assert y[1, 4:].isnan().all() and not y[0].isnan().any() and not y[1, :4].isnan().any()


@pytest.mark.parametrize("change", [dict(groups=3), dict(weight=torch.ones(3)), dict(act="relu"), dict(eps=0.0)])
def test_group_norm_says_what_does_not_fit(change):
    words_of = {
        "groups": r"channels \(8\) must be divisible by groups \(3\); x.shape=\(1, 8, 2, 2, 2\)",
        "weight": r"weight must be \[8\]; it is \[3\]",
        "act": "act must be 'silu' or None; it is 'relu'",
        "eps": "eps must be positive; it is 0.0",
    }
    with pytest.raises(UsageError, match="group_norm: " + words_of[next(iter(change))]):
        group_norm(draw(1, 8, 2, 2, 2), **{"groups": 2, **change})


def test_group_norm_refuses_other_ranks_and_masks():
    with pytest.raises(UsageError, match=r"must be floating point \[N, C, D, H, W\]"):
        group_norm(draw(8, 2, 2, 2), 2)
    with pytest.raises(UsageError, match="mask must be bool or uint8; it is torch.float32"):
        group_norm(draw(1, 8, 2, 2, 2), 2, mask=draw(1, 1, 2, 2, 2))


# --- noise
# -----------------------------------------------------------------------------------------------------------


def test_philox_known_answers():
    # Random123's published vectors for philox4x32-10: all zero, all one.
    def run(counter, key):
        return [int(w) for w in noise_module.philox([torch.tensor(c) for c in counter], key)]

    assert run([0] * 4, (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert run([ones] * 4, (ones, ones)) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_native_words_are_the_reference_words():
    native = pytest.importorskip("mrisr._native")
    shape, origin, grid, seed = (3, 4, 9), (4090, 5, 70), (4096, 4096, 4096), 2**63 + 12345
    got = torch.empty(*shape, 4, dtype=torch.int32)
    native.philox_words(got.data_ptr(), shape, origin, grid, seed, 7, 2**32 - 1, 2)
    expected = words(shape, seed=seed, origin=origin, grid_shape=grid, sample=7, step=2**32 - 1)
    assert torch.equal(got.long() & 0xFFFFFFFF, expected)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_box_is_a_slice_of_the_whole_bit_for_bit(backend):
    grid = (11, 13, 70)
    whole = normal_noise(grid, seed=5, sample=2, step=1, backend=backend)
    for origin, shape in (
        ((0, 0, 0), (1, 1, 1)),
        ((3, 4, 5), (6, 7, 33)),
        ((10, 12, 53), (1, 1, 17)),
        ((2, 0, 1), (3, 13, 69)),
    ):
        box = normal_noise(shape, seed=5, sample=2, step=1, origin=origin, grid_shape=grid, backend=backend)
        assert torch.equal(box, whole[tuple(slice(o, o + n) for o, n in zip(origin, shape))])


def test_noise_is_standard_normal_and_every_key_counts():
    base = normal_noise((64, 64, 64), seed=1)
    flat = base.double().flatten()
    assert abs(flat.mean()) < 4 / len(flat) ** 0.5 and abs(flat.std() - 1) < 4 / (2 * len(flat)) ** 0.5
    assert abs((flat**4).mean() - 3) < 0.1 and flat.abs().max() < 5.8
    for other in (dict(seed=2), dict(seed=1, sample=1), dict(seed=1, step=1), dict(seed=1 + 2**32)):
        correlation = (flat * normal_noise((64, 64, 64), **other).double().flatten()).mean()
        assert abs(correlation) < 5 / len(flat) ** 0.5, other


def test_noise_says_what_is_outside():
    with pytest.raises(UsageError, match="on axis 2 it starts at 3 with 2 voxels, and the grid has 4"):
        normal_noise((1, 1, 2), seed=0, origin=(0, 0, 3), grid_shape=(4, 4, 4))
    with pytest.raises(UsageError, match=r"sample must lie in \[0, 2\*\*32\); it is -1"):
        normal_noise((1, 1, 1), seed=0, sample=-1)


# --- axis_apply, blend
# -----------------------------------------------------------------------------------------------


def test_axis_apply_takes_numpy_and_is_its_own_adjoint():
    x, matrix = draw(5, 6, 7).numpy(), np.random.default_rng(0).standard_normal((9, 6))
    out = axis_apply(x, matrix, 1)
    assert isinstance(out, np.ndarray) and out.dtype == np.float32
    np.testing.assert_allclose(out, np.einsum("oi,xiz->xoz", matrix, x.astype(np.float64)), rtol=1e-5, atol=1e-5)
    y = draw(5, 9, 7).numpy()
    assert np.vdot(out, y) == pytest.approx(np.vdot(x, axis_apply(y, matrix.T, 1)), rel=1e-5)


def test_axis_apply_says_what_does_not_fit():
    with pytest.raises(
        UsageError,
        match=r"matrix must be \[n_out, 6\] to act on axis 1 of x.shape=\(5, 6, 7\); it is \(9, 5\)",
    ):
        axis_apply(draw(5, 6, 7), np.ones((9, 5)), 1)
    with pytest.raises(UsageError, match="axis must be 0, 1 or 2"):
        axis_apply(draw(5, 6, 7), np.ones((9, 5)), 3)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_constant_in_constant_out(backend):
    size, tile, starts = 40, 16, (0, 12, 24)
    raw = np.zeros((3, size))
    for k, start in enumerate(starts):
        raw[k, start : start + tile] = np.hanning(tile + 2)[1:-1]
    axis = (raw / raw.sum(0)).astype(np.float32)
    volume = torch.zeros(size, size, size)
    piece = torch.full((tile,) * 3, 0.7)
    for i in range(27):
        k = (i // 9, i // 3 % 3, i % 3)
        weights = [axis[j, starts[j] : starts[j] + tile] for j in k]
        blend_add_(volume, piece, [starts[j] for j in k], weights, backend=backend)
    assert (volume - 0.7).abs().max() < 1e-6


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_blend_writes_its_box_only(backend):
    whole = torch.full((8, 9, 20), float("nan"))
    inner = whole[2:6, 3:7, 4:14]
    inner.zero_()
    blend_add_(
        inner,
        torch.ones(4, 4, 10),
        (0, 0, 0),
        [torch.ones(4), torch.ones(4), torch.ones(10)],
        backend=backend,
    )
    assert (inner == 1).all() and int(whole.isnan().sum()) == 8 * 9 * 20 - 4 * 4 * 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_tile_adds_what_its_values_are(dtype):
    tile, weights = draw(3, 4, 5).to(dtype), [torch.linspace(0, 1, n) for n in (3, 4, 5)]
    found = [blend_add_(torch.ones(6, 6, 6), t, (1, 2, 1), weights) for t in (tile, tile.float())]
    assert torch.equal(*found) and found[0].dtype == torch.float32


def test_blend_and_gather_say_what_does_not_fit():
    with pytest.raises(UsageError, match=r"a half tile may go into a float32 volume\); they are torch.float64 on cpu"):
        blend_add_(draw(4, 4, 4), draw(2, 2, 2).double(), (0, 0, 0), [torch.ones(2)] * 3)
    with pytest.raises(UsageError, match="weights of d, h and w entries"):
        blend_add_(draw(4, 4, 4), draw(2, 2, 2), (0, 0, 0), [torch.ones(2)] * 2 + [torch.ones(3)])
    with pytest.raises(UsageError, match=r"origin must lie in the volume \(4, 4, 4\); it is \(-1, 0, 0\)"):
        blend_add_(draw(4, 4, 4), draw(2, 2, 2), (-1, 0, 0), [torch.ones(2)] * 3)
    with pytest.raises(UsageError, match="with voxels in it"):
        gather(torch.zeros(0, 3, 3), (0, 0, 0), (1, 1, 1))
