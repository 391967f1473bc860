"""One interpolation along a displacement, against scipy and against the per-axis matrices; adjoints; NaN; bad input."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch

from mrisr import grid as grids
from mrisr.errors import BackendError, UsageError
from mrisr.ops.resample import apply_axes, bspline_matrix, centred_matrix, jacobian_determinant, resample3d
from mrisr.ops.resample import spline as module
from mrisr.ops.resample.matrices import coefficient_matrix
from mrisr.ops.resample.prefilter import _prefilter, _prefilter_adjoint, halo, prefilter

BACKENDS = ["native", "reference"]
ORDERS = [1, 3, 5]
IDENTITY = np.eye(4)


def draw(*shape, dtype=torch.float64, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def index_grid(shape) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float64)


def scipys(x: np.ndarray, positions: np.ndarray, order: int, boundary: str) -> np.ndarray:
    """map_coordinates where it has our boundary; for "linear" on a volume continued by odd reflection, far enough that
    its own boundary is forgotten (the pole's 40th power is 1e-15)."""
    if boundary == "mirror":
        return scipy.ndimage.map_coordinates(x, positions, order=order, mode="mirror")
    margin = 40
    wide = np.pad(x, margin, mode="reflect", reflect_type="odd")
    held = [np.clip(p, -0.5, n - 0.5) for p, n in zip(positions, x.shape)]
    return scipy.ndimage.map_coordinates(wide, np.stack(held) + margin, order=order, mode="mirror")


# --- the oracle


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("boundary", ["linear", "mirror"])
@pytest.mark.parametrize("order", ORDERS)
def test_it_is_scipys_map_coordinates(order, boundary, backend):
    x, target = draw(13, 9, 17), (11, 10, 21)
    ratio = [n / m for n, m in zip(x.shape, target)]
    matrix = centred_matrix(x.shape, target, ratio)
    field = 3 * draw(3, *target, seed=4)  # a tenth of the positions lies outside
    positions = np.einsum("ab,bxyz->axyz", matrix[:, :3], index_grid(target)) + matrix[:, 3, None, None, None]
    expected = scipys(x.numpy(), positions + field.numpy(), order, boundary)
    options = dict(displacement=field, order=order, boundary=boundary, backend=backend)
    assert np.abs(resample3d(x, target, matrix, **options).numpy() - expected).max() < 1e-9
    options["displacement"] = field.float()
    found = resample3d(x.float(), target, matrix, **options)
    moved = positions + field.float().double().numpy()
    expected = scipys(x.float().double().numpy(), moved, order, boundary)
    assert np.abs(found.numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("boundary", ["linear", "mirror"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 40, 300])
def test_the_recursion_solves_the_dense_system(n, order, boundary):
    x, h = draw(3, 1, n), halo(order)
    found = prefilter(x, order, boundary, backend="native")[h:-h, h, h:-h].numpy()
    dense = coefficient_matrix(3, order, boundary) @ x[:, 0].numpy() @ coefficient_matrix(n, order, boundary).T
    assert np.abs(found - dense).max() < 1e-10


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("factor", [1.5, 1.3, 1 / 0.7, 1 / 1.6, 2.0])
def test_no_displacement_is_the_separable_path(order, factor, backend):
    source = grids.Grid((14, 11, 9), np.diag([1.0, 1.2, 0.9, 1.0]))
    target = grids.plan(source, factor=factor)
    matrix = np.linalg.inv(source.affine) @ target.affine
    axes = [
        bspline_matrix(n, grids.axis_positions(n, m, r), order)
        for n, m, r in zip(source.shape, target.shape, grids.ratios(source, target))
    ]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        x = draw(2, *source.shape, dtype=dtype)
        plain = apply_axes(x, axes)
        still = torch.zeros(3, *target.shape, dtype=dtype)
        fast = resample3d(x, target.shape, matrix, order=order)
        assert (fast - plain).abs().max() <= (1e-12 if dtype == torch.float64 else 1e-6)
        general = resample3d(x, target.shape, matrix, displacement=still, order=order, backend=backend)
        assert (general - plain).abs().max() < tolerance


def test_mirror_takes_the_separable_path_to_the_same_values():
    x, target = draw(9, 8, 7), (12, 12, 12)
    matrix = centred_matrix(x.shape, target, (0.9, 0.7, 1.4))  # beyond both ends of every axis
    fast = resample3d(x, target, matrix, boundary="mirror")
    general = resample3d(x, target, matrix, boundary="mirror", displacement=torch.zeros(3, *target).double())
    torch.testing.assert_close(fast, general, rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_displacement_is_a_shift(backend):
    x = draw(12, 13, 14, dtype=torch.float32)
    shift = torch.tensor([2.0, -3.0, 1.0])[:, None, None, None].expand(3, *x.shape)
    out = resample3d(x, x.shape, IDENTITY, displacement=shift, backend=backend)
    assert (out[:-2, 3:, :-1] - x[2:, :-3, 1:]).abs().max() < 5e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_ramp_stays_a_ramp_wherever_it_is_sampled(order, backend):
    size = (8, 9, 10)
    slope = np.array([1.0, -2.0, 0.5])
    ramp = torch.from_numpy(np.tensordot(slope, index_grid(size), 1) + 3)
    field = draw(3, *size).clamp(-0.5, 0.5)
    positions = np.clip(index_grid(size) + field.numpy(), -0.5, np.array(size)[:, None, None, None] - 0.5)
    out = resample3d(ramp, size, IDENTITY, displacement=field, order=order, backend=backend)
    assert np.abs(out.numpy() - np.tensordot(slope, positions, 1) - 3).max() < 1e-11


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_interpolation_of_a_turned_and_finer_grid(backend):
    """Any affine: two oblique grids, against scipy at the positions of the world."""
    angle = 0.3
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix = np.linalg.inv(np.diag([1.0, 1.1, 2.0, 1.0])) @ turn @ np.diag([0.7, 0.7, 0.7, 1.0])
    x, target = draw(10, 12, 9), (9, 10, 14)
    positions = np.einsum("ab,bxyz->axyz", matrix[:3, :3], index_grid(target)) + matrix[:3, 3, None, None, None]
    out = resample3d(x, target, matrix, boundary="mirror", backend=backend)
    assert np.abs(out.numpy() - scipys(x.numpy(), positions, 5, "mirror")).max() < 1e-9


# --- derivatives


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("boundary", ["linear", "mirror"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_the_backward_is_the_adjoint(order, boundary, dtype, tolerance, backend):
    x = draw(2, 2, 9, 3, 11, dtype=dtype).requires_grad_()
    target = (7, 6, 9)
    matrix = centred_matrix(x.shape[2:], target, (1.5, 0.5, 1.2))
    field = 2 * draw(2, 3, *target, dtype=dtype)
    y = draw(2, 2, *target, dtype=dtype, seed=9)
    out = resample3d(x, target, matrix, displacement=field, order=order, boundary=boundary, backend=backend)
    (back,) = torch.autograd.grad(out, x, y)
    forward, backward = (out.double() * y.double()).sum(), (x.double() * back.double()).sum()
    assert abs(forward - backward) < tolerance * out.double().norm() * y.double().norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("boundary", ["linear", "mirror"])
@pytest.mark.parametrize("order", [3, 5])
def test_gradients_agree_with_finite_differences(order, boundary, backend):
    x = draw(1, 2, 4, 3, 5).requires_grad_()
    field = (1.3 * draw(3, 2, 3, 2)).requires_grad_()
    matrix = centred_matrix((4, 3, 5), (2, 3, 2), (1.7, 1.0, 2.0))

    def run(x, field):
        return resample3d(x, (2, 3, 2), matrix, displacement=field, order=order, boundary=boundary, backend=backend)

    # Every entry of the Jacobian takes minutes by the reference; its formulas are held to autograd's by parity, too.
    assert torch.autograd.gradcheck(run, (x, field), fast_mode=backend == "reference")


def test_the_prefilters_adjoint_has_an_adjoint():
    x = draw(3, 4, 5).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v: prefilter(v, 5), (x,))


def test_one_displacement_for_a_batch_gets_the_sum_of_its_gradients():
    x, field = draw(3, 2, 5, 6, 7), draw(1, 3, 5, 6, 7).requires_grad_()
    whole = resample3d(x, (5, 6, 7), IDENTITY, displacement=field)
    (together,) = torch.autograd.grad(whole.square().sum(), field)
    each = [resample3d(v[None], (5, 6, 7), IDENTITY, displacement=field) for v in x]
    (apart,) = torch.autograd.grad(sum(e.square().sum() for e in each), field)
    torch.testing.assert_close(together, apart)


# --- intensity


def test_the_jacobian_of_an_affine_displacement_is_its_determinant():
    shear = np.array([[0.1, 0.02, -0.3], [0.05, -0.2, 0.1], [0.0, 0.2, 0.15]])
    field = torch.from_numpy(np.einsum("ab,bxyz->axyz", shear, index_grid((4, 5, 6))))
    matrix = np.array([[0.7, 0.1, 0, 2], [0, -0.9, 0, 1], [0.2, 0, 1.5, 0]])
    expected = np.linalg.det(matrix[:, :3] + shear) / np.linalg.det(matrix[:, :3])
    assert (jacobian_determinant(matrix, field) - expected).abs().max() < 1e-12
    assert (jacobian_determinant(matrix, torch.zeros(2, 3, 1, 2, 1)) - 1).abs().max() < 1e-6
    leaf = draw(3, 3, 2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: jacobian_determinant(matrix, d), (leaf,))


@pytest.mark.parametrize("ratio", [1.0, 0.8])
def test_modulation_keeps_the_amount_of_signal(ratio):
    size = (28, 28, 28)
    where = index_grid(size) - 13.5
    blob = torch.from_numpy(np.exp(-(where**2).sum(0) / 18))
    target = [round(n / ratio) for n in size]
    matrix = centred_matrix(size, target, (ratio,) * 3)
    mm = (index_grid(target) - (target[0] - 1) / 2) * ratio
    field = torch.from_numpy(1.5 * np.stack([np.sin(mm[1] / 5), np.cos(mm[2] / 6), np.sin(mm[2] / 5 + 1)]))
    total = blob.sum()
    plain, kept = (
        resample3d(blob, target, matrix, displacement=field, modulate=m).sum() * ratio**3 for m in (False, True)
    )
    assert abs(kept / total - 1) < 2e-3 < 0.02 < abs(plain / total - 1)
    given = jacobian_determinant(matrix, field)
    again = resample3d(blob, target, matrix, displacement=field, modulate=-given)
    assert abs(again.sum() * ratio**3 - kept) < 1e-9


def test_modulation_by_volume():
    x, field = draw(2, 3, 5, 4, 6), 0.3 * draw(2, 3, 5, 4, 6)
    plain = resample3d(x, (5, 4, 6), IDENTITY, displacement=field)
    kept = resample3d(x, (5, 4, 6), IDENTITY, displacement=field, modulate=True)
    torch.testing.assert_close(kept, plain * jacobian_determinant(IDENTITY, field).abs()[:, None])
    with pytest.raises(UsageError, match="modulate needs a displacement"):
        resample3d(x, (5, 4, 6), IDENTITY, modulate=True)
    with pytest.raises(UsageError, match=r"modulate must be \[5, 4, 6\], or one of these .*; it is \[5, 4\]"):
        resample3d(x, (5, 4, 6), IDENTITY, displacement=field, modulate=torch.ones(5, 4))
    with pytest.raises(UsageError, match="jacobian_determinant: matrix must be invertible"):
        jacobian_determinant(np.zeros((3, 4)), field)


# --- the operator's contract


def test_opchecks():
    x, field = draw(1, 2, 4, 5, 3).requires_grad_(), draw(1, 3, 3, 4, 2).requires_grad_()
    torch.library.opcheck(_prefilter, (x, 3, "linear", ""))
    torch.library.opcheck(_prefilter_adjoint, (draw(7, 8, 9).requires_grad_(), 5, "mirror", ""))
    coefficients = prefilter(x, 5).detach().requires_grad_()
    plain = ([1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0, 0], [4, 5, 3], [3, 4, 2], 5, "linear", "")
    torch.library.opcheck(module._resample3d, (coefficients, field, *plain))
    torch.library.opcheck(module._slope, (coefficients.detach(), field.detach(), draw(1, 2, 3, 4, 2), *plain))
    torch.library.opcheck(module._adjoint, (field.detach(), draw(1, 2, 3, 4, 2), *plain))


def test_compiles_into_one_graph():
    matrix = IDENTITY.tolist()

    def step(x, field):
        return resample3d(x, (4, 4, 4), matrix, displacement=field).square()

    x, field = draw(5, 6, 7), draw(3, 4, 4, 4)
    torch.testing.assert_close(torch.compile(step, fullgraph=True, backend="aot_eager")(x, field), step(x, field))


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_neither_direction_depends_on_the_thread_count(threads):
    x, field = draw(2, 20, 21, 22, dtype=torch.float32), 4 * draw(3, 17, 18, 70, dtype=torch.float32)
    matrix = centred_matrix((20, 21, 22), (17, 18, 70), (1.2, 1.2, 0.3))

    def everything():
        a, b = x.clone().requires_grad_(), field.clone().requires_grad_()
        out = resample3d(a, (17, 18, 70), matrix, displacement=b, backend="native")
        return out.detach(), *torch.autograd.grad(out.square().sum(), (a, b))

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything()
        torch.set_num_threads(threads)
        assert all(torch.equal(p, q) for p, q in zip(alone, everything()))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_axes_keep_their_positions(backend):
    """600 voxels: float32 positions would be off by 3e-5 of a voxel."""
    x, target = draw(1, 2, 600), (1, 2, 900)
    field = 0.3 * draw(3, *target)
    matrix = centred_matrix(x.shape, target, (1, 1, 2 / 3))
    exact = resample3d(x, target, matrix, displacement=field.float().double(), boundary="mirror")
    out = resample3d(x.float(), target, matrix, displacement=field.float(), boundary="mirror", backend=backend).double()
    assert (out - exact).abs().max() < 1e-5


# --- NaN, and what lies outside


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("boundary", ["linear", "mirror"])
def test_a_displacement_of_nan_is_nan_there(boundary, backend):
    x, field = draw(6, 7, 8, dtype=torch.float32), torch.zeros(3, 6, 7, 8)
    field[1, 2, 3, 4] = field[0, 5, 6, 7] = float("nan")
    out = resample3d(x, x.shape, IDENTITY, displacement=field, boundary=boundary, backend=backend)
    assert out[2, 3, 4].isnan() and out[5, 6, 7].isnan() and int(out.isnan().sum()) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sample_of_nan_goes_as_far_as_the_spline(backend):
    x, field = draw(9, 9, 9, dtype=torch.float32), torch.full((3, 9, 9, 9), 0.25)
    x[4, 4, 4] = float("nan")
    hit = resample3d(x, x.shape, IDENTITY, displacement=field, order=1, backend=backend).isnan()
    expected = torch.zeros_like(hit)
    expected[3:5, 3:5, 3:5] = True
    assert torch.equal(hit, expected)
    for order in (3, 5):  # the prefilter's tails have no end
        assert resample3d(x, x.shape, IDENTITY, displacement=field, order=order, backend=backend).isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_outside_linear_holds_the_edge_and_mirror_repeats(backend):
    x = draw(5, 6, 7)
    far = torch.zeros(3, 5, 6, 7, dtype=torch.float64)
    far[0] = 1e7
    near = far.clone()
    near[0] = 5.0
    at_edge, further = (resample3d(x, x.shape, IDENTITY, displacement=d, backend=backend) for d in (near, far))
    assert torch.equal(at_edge, further)
    endless = far * float("inf")
    endless[1:] = 0
    assert torch.equal(resample3d(x, x.shape, IDENTITY, displacement=endless, backend=backend), further)
    period = torch.tensor([8.0, 10.0, 12.0])[:, None, None, None].expand(3, 5, 6, 7) * 1000
    options = dict(boundary="mirror", backend=backend)
    torch.testing.assert_close(resample3d(x, x.shape, IDENTITY, displacement=period, **options), x)
    assert resample3d(x, x.shape, IDENTITY, displacement=endless, **options).isnan().all()


@pytest.mark.parametrize("boundary", ["linear", "mirror"])
def test_constant_in_constant_out(boundary):
    out = resample3d(
        torch.full((5, 4, 1), 0.7), (6, 6, 6), IDENTITY, displacement=9 * draw(3, 6, 6, 6), boundary=boundary
    )
    assert (out - 0.7).abs().max() < 1e-6


# --- bad input


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(order=2), r"resample3d: order must be one of \(1, 3, 5\), found 2"),
        (dict(boundary="wrap"), r"boundary must be one of \('linear', 'mirror'\), found 'wrap'"),
        (dict(x=torch.zeros(4, 5)), r"floating point \[..., X, Y, Z\] with voxels in it; it is torch.float32 \(4, 5\)"),
        (dict(x=torch.zeros(4, 5, 6, dtype=torch.int16)), r"it is torch.int16 \(4, 5, 6\)"),
        (dict(x=torch.zeros(4, 0, 6)), r"with voxels in it; it is torch.float32 \(4, 0, 6\)"),
        (dict(shape=(2, 3)), r"shape must be three voxel counts; it is \(2, 3\)"),
        (dict(shape=(2, -3, 4)), r"shape must be three voxel counts; it is \(2, -3, 4\)"),
        (dict(matrix=np.eye(3)), r"matrix must be \[3, 4\] or \[4, 4\] and finite"),
        (dict(matrix=np.full((3, 4), np.nan)), "and finite; it is .*nan"),
        (dict(matrix=np.ones((4, 4))), r"last row of a \[4, 4\] matrix must be 0 0 0 1; it is \[1.0, 1.0, 1.0, 1.0\]"),
        (dict(displacement=torch.zeros(3, 4, 4, 5)), r"must be \[3, 4, 4, 4\].*; it is \[3, 4, 4, 5\]"),
        (dict(displacement=torch.zeros(2, 3, 4, 4, 4)), r"it is \[2, 3, 4, 4, 4\] and x.shape=\(4, 5, 6\)"),
        (dict(displacement=torch.zeros(3, 4, 4, 4, dtype=torch.int32)), "floating point on the device of x"),
    ],
)  # fmt: skip
def test_resample3d_says_what_does_not_fit(change, says):
    arguments = {**dict(x=torch.zeros(4, 5, 6), shape=(4, 4, 4), matrix=IDENTITY), **change}
    with pytest.raises(UsageError, match=says):
        resample3d(**arguments)


def test_prefilter_says_what_does_not_fit():
    with pytest.raises(UsageError, match=r"prefilter: x must be floating point \[..., X, Y, Z\]"):
        prefilter(torch.zeros(3, 4))
    with pytest.raises(UsageError, match="prefilter: order must be one of"):
        prefilter(torch.zeros(3, 4, 5), 4)
    with pytest.raises(BackendError, match="it takes float32 and float64; x is torch.float16"):
        prefilter(torch.zeros(3, 4, 5, dtype=torch.float16), backend="native")
