"""sampler_step beyond parity: operator contract, tiles bit for bit, the noise's own numbers, bad input by its words."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch

from mrisr.errors import UsageError
from mrisr.ops import sampling as module
from mrisr.ops.noise import normal_noise
from mrisr.ops.sampling import clocks, sampler_step

BACKENDS = ["native", "reference"]
GRID = (11, 13, 70)
TABLE = torch.tensor([[0.9, 0.4, 0.8, 0.3, -0.2, 0.5], [0.7, 0.6, 1.1, -0.3, 0.1, 0.2]])


def draw(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=dtype)


def volumes(shape=GRID):
    return draw(3, *shape).unbind(0)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (-0.5, 0.5)])
def test_opcheck(raw, bounds):
    x, f, before = (v.clone().requires_grad_() for v in volumes((2, 3, 4)))
    args = (x, f, before, TABLE, clocks(2)[1], raw, *bounds, True, [0, 0, 0], [2, 3, 4], "")
    torch.library.opcheck(module._sampler_step, args)


def test_compiles_into_one_graph():
    def step(x, f, before):
        following, x0 = sampler_step(x, f, TABLE, clocks(2)[1], before=before, clamp=(-1, 1))
        return following + 2 * x0

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*volumes()), step(*volumes()))


@pytest.mark.parametrize("raw", [True, False])
def test_gradients_agree_with_finite_differences(raw):
    args = [v.double().requires_grad_() for v in volumes((2, 2, 3))]

    def step(x, f, before):
        options = dict(before=before, raw=raw, noise=True, clamp=(-0.9, 0.9))
        return sampler_step(x, f, TABLE.double(), clocks(2)[0], **options)

    torch.autograd.gradcheck(step, args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tile_is_a_slice_of_the_whole_bit_for_bit(backend):
    x, f, before = volumes()
    clock = clocks(2, sample=3, seed=-7)[1]
    options = dict(noise=True, clamp=(-1.0, 1.5), backend=backend)
    whole = sampler_step(x, f, TABLE, clock, before=before, **options)
    for origin, shape in (((0, 0, 0), (1, 1, 1)), ((3, 4, 5), (6, 7, 33)), ((10, 12, 53), (1, 1, 17))):
        part = tuple(slice(o, o + n) for o, n in zip(origin, shape))
        options |= dict(origin=origin, grid_shape=GRID)
        tile = sampler_step(x[part], f[part], TABLE, clock, before=before[part], **options)
        assert all(torch.equal(t, w[part]) for t, w in zip(tile, whole))


@pytest.mark.parametrize("backend", BACKENDS)
def test_its_noise_is_that_of_the_next_step(backend):
    table = torch.zeros(3, 6)
    table[2, 5] = 1
    zero = torch.zeros(GRID)
    clock = clocks(3, sample=5, seed=2**64 - 3)[2]
    found, _ = sampler_step(zero, zero, table, clock, noise=True, backend=backend)
    assert torch.equal(found, normal_noise(GRID, seed=2**64 - 3, sample=5, step=3, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_voxel(backend):
    x, f, before = (v.clone() for v in volumes((3, 4, 5)))
    x[0, 0, 0] = f[1, 1, 1] = before[2, 2, 2] = torch.nan
    following, x0 = sampler_step(x, f, TABLE, clocks(2)[0], before=before, clamp=(-1, 1), backend=backend)
    assert following.isnan().nonzero().tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert x0.isnan().nonzero().tolist() == [[0, 0, 0], [1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_of_f_costs_nothing_more(dtype):
    x, f, before = volumes()
    half = f.to(dtype)
    widened = sampler_step(x, half.float(), TABLE, clocks(2)[1], before=before)
    assert all(map(torch.equal, sampler_step(x, half, TABLE, clocks(2)[1], before=before), widened))


def test_threads_do_not_matter():
    x, f, before = draw(3, 40, 50, 67).unbind(0)
    found = []
    for count in (1, 2, 5):
        used = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            found.append(sampler_step(x, f, TABLE, clocks(2)[1], before=before, noise=True, backend="native")[0])
        finally:
            torch.set_num_threads(used)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_what_is_x0_already_is_not_copied():
    x, f, _ = volumes()
    assert sampler_step(x, f, TABLE, clocks(2)[0], raw=False)[1] is f


X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(x=X.half()), r"x must be float32 \(or float64, for reference\); it is torch.float16"),
        (dict(f=X[:1]), r"f must be float32, float16 or bfloat16 \[2, 3, 4\] as x; it is torch.float32 \[1, 3, 4\]"),
        (dict(f=X.long()), r"f must be float32, float16 or bfloat16 \[2, 3, 4\] as x; it is torch.int64"),
        (dict(before=X.half()), r"before must be torch.float32 \[2, 3, 4\] as x; it is torch.float16"),
        (dict(table=TABLE[:, :5]), r"table must be torch.float32 \[steps, 6\] with steps >= 1; it is .* \[2, 5\]"),
        (dict(table=TABLE[:0]), r"table must be .* with steps >= 1; it is torch.float32 \[0, 6\]"),
        (dict(clock=torch.zeros(3)), r"clock must be int64 \[3\] \(see `clocks`\); it is torch.float32 \[3\]"),
        (dict(clock=torch.tensor([2, 0, 0])), "the table has 2 steps; the clock is at step 2"),
        (dict(clock=torch.tensor([-1, 0, 0])), "the table has 2 steps; the clock is at step -1"),
        (dict(clamp=(1, -1)), r"clamp must be \(low, high\) with low <= high; it is \(1, -1\)"),
        (dict(clamp=(math.nan, 1)), "clamp must be"),
        (
            dict(noise=True, grid_shape=(2, 3, 3)),
            "the box must lie inside the grid; on axis 2 it starts at 0 with 4 voxels, and",
        ),
        (dict(noise=True, x=X.reshape(24), f=X.reshape(24)), r"noise needs x of one volume, .*; it is \[24\]"),
        (dict(clock=torch.zeros(3, dtype=torch.int64, device="meta")), "clock is on meta, x on cpu; move one"),
    ],
)
def test_it_says_what_does_not_fit(change, says):
    with pytest.raises(UsageError, match="sampler_step: " + says):
        sampler_step(**{"x": X, "f": X, "table": TABLE, "clock": clocks(2)[0], **change})


def test_clocks_refuse_a_sample_that_has_no_word():
    with pytest.raises(UsageError, match=r"sample must lie in \[0, 2\*\*32\); it is -1"):
        clocks(3, sample=-1)
    assert clocks(0).shape == (0, 3)


def test_the_core_checks_for_itself():
    core = pytest.importorskip("mrisr._native")
    floats = (ctypes.c_float * 16)()
    clock = (ctypes.c_int64 * 3)()
    a, c, inf = ctypes.addressof(floats), ctypes.addressof(clock), math.inf
    box = (1, 1, 1), (0, 0, 0), (1, 1, 1)
    for says, args in (
        ("null pointer", ([0, a, a, a, 0], a, 1, c, True, False, -inf, inf, *box, 0, 1)),
        ("x0 is a null pointer", ([a, 0, a, a, 0], a, 1, c, True, False, -inf, inf, *box, 0, 1)),
        ("x0 is a null pointer", ([a, 0, a, a, 0], a, 1, c, False, False, -1, inf, *box, 0, 1)),
        ("at least one row; it has 0", ([a, a, a, a, 0], a, 0, c, True, False, -inf, inf, *box, 0, 1)),
        ("low <= high", ([a, a, a, a, 0], a, 1, c, True, False, 1, -1, *box, 0, 1)),
        (r"shape\[0\] must not be", ([a, a, a, a, 0], a, 1, c, True, False, -1, 1, (-1, 1, 1), *box[1:], 0, 1)),
        ("inside the grid", ([a, a, a, a, 0], a, 1, c, True, True, -1, 1, (2, 1, 1), *box[1:], 0, 1)),
    ):
        with pytest.raises(ValueError, match=says):
            core.sampler_step(*args)
    clock[0] = 5  # what a GPU does, which cannot raise
    core.sampler_step([a, a + 4, a + 8, a + 12, 0], a + 16, 1, c, True, False, -inf, inf, *box, 0, 1)
    assert math.isnan(floats[0]) and math.isnan(floats[1])
