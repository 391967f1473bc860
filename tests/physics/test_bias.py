"""Bias fields: smooth, positive, found again where they are known, and refused where they cannot be divided by."""

import builtins

import numpy as np
import pytest
import torch

from mrisr.errors import InputError, MrisrWarning, UsageError
from mrisr.grid import Grid, plan
from mrisr.physics import bias

SHAPE, VOXEL = (48, 56, 44), (3.5, 3.5, 4.0)


@pytest.fixture(scope="module")
def shaded(head):
    """(clean, scan, field, mask): three tissues, shaded by a known field of geometric mean 1 over the head."""
    smooth = head(SHAPE, noise=0.0)
    mask = smooth > 150
    clean = np.select([~mask, smooth == 900, smooth > 500], [10.0, 900.0, 700.0], 450.0)
    clean += np.random.default_rng(0).normal(0, 8.0, SHAPE)
    field = bias.bias_field(SHAPE, torch.Generator().manual_seed(3), 0.5).numpy()
    field = field / np.exp(np.log(field[mask]).mean())
    return clean, (clean * field).astype(np.float32), field, mask


def spread(values) -> float:
    """Standard deviation of the logarithm."""
    return float(np.log(values).std())


def test_random_fields_are_smooth_and_repeatable():
    first, second = (bias.bias_field((64, 60, 50), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second) and bool((first > 0).all())
    assert float(torch.diff(first.log(), dim=0).abs().max()) < 0.1


def test_n4_finds_most_of_a_known_field(shaded):
    pytest.importorskip("SimpleITK")
    clean, scan, field, mask = shaded
    found = bias.estimate(scan, VOXEL, iterations=(40, 40, 40)).numpy()
    assert found.shape == SHAPE and found.dtype == np.float32 and found.min() > 0
    assert spread(field[mask]) > 0.1
    assert spread(found[mask] / field[mask]) < 0.5 * spread(field[mask])
    with_zeros = scan.copy()
    with_zeros[:6], with_zeros[20, 20, 20] = 0, -3
    assert np.isfinite(bias.estimate(with_zeros, VOXEL, iterations=(5,)).numpy()).all()


def test_the_t1w_t2w_way_finds_most_of_a_known_field(shaded):
    clean, scan, field, mask = shaded
    t2w = np.where(mask, 250000.0 / np.maximum(clean, 150), clean) * field
    found = bias.estimate_t1w_t2w(scan, t2w, VOXEL).numpy()
    assert spread(found[mask] / field[mask]) < 0.5 * spread(field[mask])
    assert found.min() > 0
    with pytest.raises(InputError, match="T1w is .* T2w is"):
        bias.estimate_t1w_t2w(scan, t2w[:-1], VOXEL)


def test_what_is_taken_out_can_be_put_back():
    field = bias.bias_field((12, 10, 14), torch.Generator().manual_seed(0), 0.1).double().requires_grad_()
    x = torch.rand(2, 1, 12, 10, 14, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(bias.restore(bias.remove(x, field), field), x, rtol=1e-14)
    torch.autograd.backward(bias.remove(x, field).sum())
    assert torch.allclose(x.grad, (1 / field.detach()).expand_as(x)) and field.grad.abs().min() > 0


def test_a_field_moves_between_grids_in_the_log_domain():
    source = Grid((20, 22, 18), np.diag([3.0, 3.0, 3.0, 1.0]))
    target = plan(source, voxel_size=2.0)
    lines = [torch.linspace(-0.5, 0.5, n, dtype=torch.float64) for n in source.shape]
    field = (0.3 * lines[0][:, None, None] - 0.4 * lines[2][None, None]).exp().expand(source.shape)
    moved = bias.on_grid(field, source, target)
    step = (torch.diff(moved.log(), dim=0), torch.diff(moved.log(), dim=2))
    assert moved.shape == target.shape
    assert torch.allclose(step[0], torch.full_like(step[0], 0.3 / 19 * 2 / 3), atol=1e-9)
    assert torch.allclose(step[1], torch.full_like(step[1], -0.4 / 17 * 2 / 3), atol=1e-9)
    assert bias.guidance(field, source, target).shape == (1, *target.shape)


def test_fields_that_cannot_be_used_are_refused():
    x, good = torch.ones(4, 5, 6), torch.ones(4, 5, 6)
    for change, words in (
        (lambda f: f[:3], "its grid is .3, 5, 6., the scan's .4, 5, 6."),
        (lambda f: f.index_put((torch.tensor(1),), torch.tensor(0.0)), "30 voxels are zero or below"),
        (lambda f: f - 2, "120 voxels are zero or below"),
        (lambda f: f * float("nan"), "not finite"),
        (lambda f: f.index_put((torch.tensor(1),), torch.tensor(1e4)), "varies by less than 100x"),
    ):
        for use in (bias.remove, bias.restore):
            with pytest.raises(InputError, match=words):
                use(x, change(good.clone()))
    grid = Grid((4, 5, 6), np.eye(4))
    bias.check_same_grid(grid, grid)
    moved = np.eye(4)
    moved[0, 3] = 2.0
    with pytest.raises(InputError, match="lies 2 voxels away"):
        bias.check_same_grid(Grid((4, 5, 6), moved), grid)
    with pytest.raises(InputError, match="its grid is"):
        bias.check_same_grid(Grid((4, 5, 7), np.eye(4)), grid)


def test_estimates_say_what_they_need(shaded, monkeypatch):
    scan = shaded[1]
    with pytest.raises(InputError, match="voxels of tissue above zero"):
        bias.estimate(scan, VOXEL, mask=np.zeros(SHAPE, bool))
    with pytest.raises(InputError, match="the mask is"):
        bias.estimate(scan, VOXEL, mask=np.ones((2, 2, 2), bool))
    with pytest.raises(UsageError, match="expected a scan"):
        bias.estimate(scan[0], VOXEL)
    wild = torch.from_numpy(np.where(np.arange(48)[:, None, None] < 24, 1.0, 20.0) * np.ones(SHAPE, np.float32))
    with pytest.warns(MrisrWarning, match="look at it"):
        bias._normalised(wild, np.ones(SHAPE, bool))
    real = builtins.__import__

    def without(name, *rest):
        if name == "SimpleITK":
            raise ImportError("No module named 'SimpleITK'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"needs SimpleITK .*pip install '\.\[bias\]'"):
        bias.estimate(scan, VOXEL)
