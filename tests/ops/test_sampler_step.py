"""sampler_step beyond parity: operator contract, the noise's own numbers, bad input by its words."""

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
TABLE = torch.tensor([[0.8, 0.3, -0.2, 0.5], [1.1, -0.3, 0.1, 0.2]])


def draw(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=dtype)


def volumes(shape=GRID):
    return draw(3, *shape).unbind(0)


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (-0.5, 0.5)])
def test_opcheck(bounds):
    x, f, before = (v.clone().requires_grad_() for v in volumes((2, 3, 4)))
    args = (x, f, before, TABLE, clocks(2)[1], *bounds, True, "")
    torch.library.opcheck(module._sampler_step, args)


def test_compiles_into_one_graph():
    def step(x, f, before):
        following, x0 = sampler_step(x, f, TABLE, clocks(2)[1], before=before, clamp=(-1, 1))
        return following + 2 * x0

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*volumes()), step(*volumes()))


def test_gradients_agree_with_finite_differences():
    args = [v.double().requires_grad_() for v in volumes((2, 2, 3))]

    def step(x, f, before):
        options = dict(before=before, noise=True, clamp=(-0.9, 0.9))
        return sampler_step(x, f, TABLE.double(), clocks(2)[0], **options)

    torch.autograd.gradcheck(step, args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_its_noise_is_that_of_the_next_step(backend):
    table = torch.zeros(3, 4)
    table[2, 3] = 1
    zero = torch.zeros(GRID)
    clock = clocks(3, sample=5, seed=2**64 - 3)[2]
    found, _ = sampler_step(zero, zero, table, clock, noise=True, backend=backend)
    assert torch.equal(found, normal_noise(GRID, seed=2**64 - 3, sample=5, step=3, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_voxel(backend):
    x, f, before = (v.clone() for v in volumes((3, 4, 5)))
    x[0, 0, 0] = f[1, 1, 1] = before[2, 2, 2] = torch.nan
    f[0, 1, 2], f[0, 1, 3] = torch.inf, -torch.inf  # an overflow is not hidden by the clamp
    following, x0 = sampler_step(x, f, TABLE, clocks(2)[0], before=before, clamp=(-1, 1), backend=backend)
    assert following.isnan().nonzero().tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert x0.isnan().nonzero().tolist() == [[1, 1, 1]]
    assert x0[0, 1, 2:4].tolist() == [math.inf, -math.inf] and following.isinf().sum() == 2


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


def test_what_is_not_clamped_is_not_copied():
    x, f, _ = volumes()
    assert sampler_step(x, f, TABLE, clocks(2)[0])[1] is f


X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(x=X.half()), r"x must be float32 \(or float64, for reference\); it is torch.float16"),
        (dict(f=X[:1]), r"f must be float32, float16 or bfloat16 \[2, 3, 4\] as x; it is torch.float32 \[1, 3, 4\]"),
        (dict(f=X.long()), r"f must be float32, float16 or bfloat16 \[2, 3, 4\] as x; it is torch.int64"),
        (dict(before=X.half()), r"before must be torch.float32 \[2, 3, 4\] as x; it is torch.float16"),
        (dict(table=TABLE[:, :3]), r"table must be torch.float32 \[steps, 4\] with steps >= 1; it is .* \[2, 3\]"),
        (dict(table=TABLE[:0]), r"table must be .* with steps >= 1; it is torch.float32 \[0, 4\]"),
        (dict(clock=torch.zeros(3)), r"clock must be int64 \[3\] \(see `clocks`\); it is torch.float32 \[3\]"),
        (dict(clock=torch.tensor([2, 0, 0])), "the table has 2 steps; the clock is at step 2"),
        (dict(clock=torch.tensor([-1, 0, 0])), "the table has 2 steps; the clock is at step -1"),
        (dict(clamp=(1, -1)), r"clamp must be \(low, high\) with low <= high; it is \(1, -1\)"),
        (dict(clamp=(math.nan, 1)), "clamp must be"),
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
    for says, args in (
        ("null pointer", ([0, a, a, a, 0], a, 1, c, False, -inf, inf, 1, 0, 1)),
        ("x0 is a null pointer", ([a, 0, a, a, 0], a, 1, c, False, -1, inf, 1, 0, 1)),
        ("at least one row; it has 0", ([a, a, a, a, 0], a, 0, c, False, -inf, inf, 1, 0, 1)),
        ("low <= high", ([a, a, a, a, 0], a, 1, c, False, 1, -1, 1, 0, 1)),
        ("count must not be negative", ([a, a, a, a, 0], a, 1, c, True, -1, 1, -1, 0, 1)),
        ("f must be float32 on the CPU", ([a, a, a, a, 0], a, 1, c, True, -1, 1, 1, 1, 1)),
    ):
        with pytest.raises(ValueError, match=says):
            core.sampler_step(*args)
    clock[0] = 5  # what a GPU does, which cannot raise
    core.sampler_step([a, a + 4, a + 8, a + 12, 0], a + 16, 1, c, False, -inf, inf, 1, 0, 1)
    assert math.isnan(floats[0])
