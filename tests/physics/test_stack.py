"""The forward model of a stack that lies askew, and the joint solution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mrisr.errors import UsageError
from mrisr.grid import Grid
from mrisr.ops.resample import resample3d, resample3d_adjoint
from mrisr.physics.psf import AxisPSF
from mrisr.physics.stack import Measured, StackModel, nearest_axes, solve

TARGET = Grid((20, 22, 24), np.diag([1.0, 1.0, 1.0, 1.0]))
SLICES = (AxisPSF("kspace", 1.0), AxisPSF("kspace", 1.0), AxisPSF("gaussian", 4.0))
# Sagittal slices of 4 mm, stored (y, -z, -x).
SAGITTAL = Grid((22, 24, 5), np.array([[0, 0, -4.0, 17.5], [1, 0, 0, 0], [0, -1, 0, 23], [0, 0, 0, 1.0]]))


def turned(degrees: float = 3.0, shift=(1.0, 2.0, -0.5)) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    first, second = np.eye(4), np.eye(4)
    first[:2, :2], second[1:3, 1:3] = [[c, -s], [s, c]], [[c, -s], [s, c]]
    moved = first @ second
    moved[:3, 3] = shift
    return moved


@pytest.mark.parametrize("moved", [None, turned()])
def test_the_adjoint_is_exact(moved):
    torch.manual_seed(0)
    model = StackModel.of(TARGET, SAGITTAL, SLICES, moved)
    x, v = torch.rand(TARGET.shape, dtype=torch.float64), torch.rand(SAGITTAL.shape, dtype=torch.float64)
    assert model.forward(x).shape == v.shape and model.adjoint(v).shape == x.shape
    assert float((model.forward(x) * v).sum()) == pytest.approx(float((x * model.adjoint(v)).sum()), rel=1e-10)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("order", [1, 3, 5])
def test_the_adjoint_of_resampling_is_what_autograd_gives(order, backend):
    torch.manual_seed(0)
    x = torch.rand(2, 7, 8, 9, dtype=torch.float64, requires_grad=True)
    y = torch.rand(2, 6, 9, 7, dtype=torch.float64)
    resample3d(x, y.shape[1:], turned(5), order=order, backend=backend).backward(y)
    found = resample3d_adjoint(y, x.shape[1:], turned(5), order=order, backend=backend)
    torch.testing.assert_close(found, x.grad, rtol=1e-10, atol=1e-12)


def test_what_the_adjoint_refuses():
    with pytest.raises(UsageError, match="order must be one of"):
        resample3d_adjoint(torch.rand(3, 3, 3), (4, 4, 4), np.eye(4), order=2)


def test_a_stack_shows_what_lies_where_it_looks():
    """A bright plane x = 6 is in the sagittal slice whose centre is nearest; of a head that moved by 4, in the next."""
    x = torch.zeros(TARGET.shape)
    x[5:8] = 1.0
    there = StackModel.of(TARGET, SAGITTAL, SLICES).forward(x).mean(dim=(0, 1))
    assert int(there.argmax()) == 3  # its centre is x = 5.5
    by_four = np.eye(4)
    by_four[0, 3] = 4.0
    assert int(StackModel.of(TARGET, SAGITTAL, SLICES, by_four).forward(x).mean(dim=(0, 1)).argmax()) == 2


def test_samples_that_see_beyond_the_target_do_not_count():
    far = np.eye(4)
    far[1, 3] = 11.0  # the head is half out of the stack's first stored axis
    whole, half = (StackModel.of(TARGET, SAGITTAL, SLICES, m).covered() for m in (None, far))
    assert whole.float().mean() > 0.5 and not half[:10].any() and half[12:].any()


def test_the_nearest_axes_are_each_taken_once():
    assert nearest_axes(np.linalg.inv(TARGET.affine) @ turned(40) @ SAGITTAL.affine) == (1, 2, 0)


def test_the_solution_is_that_of_the_normal_equations():
    """Against a dense solve of the same, on a grid that is small enough for one."""
    torch.manual_seed(0)
    target, stack = Grid((5, 6, 4), np.eye(4)), Grid((5, 3, 4), np.diag([1.0, 2.0, 1.0, 1.0]))
    psf = (AxisPSF("kspace", 1.0), AxisPSF("gaussian", 2.0), AxisPSF("kspace", 1.0))
    model = StackModel.of(target, stack, psf, turned(2, (0.1, 0.2, 0.1)))
    v, weight = torch.rand(stack.shape, dtype=torch.float64), torch.rand(stack.shape, dtype=torch.float64)
    prior, trust, smooth = torch.rand(target.shape, dtype=torch.float64), 0.3, 0.2
    eye = torch.eye(120, dtype=torch.float64).reshape(120, *target.shape)
    a = torch.stack([model.forward(e).flatten() for e in eye], dim=1)
    d = torch.cat([torch.stack([e.diff(dim=k).flatten() for e in eye], dim=1) for k in range(3)])
    left = a.T @ (weight.flatten()[:, None] * a) + trust * torch.eye(120, dtype=torch.float64) + smooth * d.T @ d
    right = a.T @ (weight * v).flatten() + trust * prior.flatten()
    found = solve(
        [Measured(model, v, weight)], torch.zeros_like(prior), prior=prior, trust=trust, smooth=smooth, iterations=200,
        tolerance=1e-12,
    )  # fmt: skip
    torch.testing.assert_close(found.flatten(), torch.linalg.solve(left, right), rtol=1e-7, atol=1e-9)
