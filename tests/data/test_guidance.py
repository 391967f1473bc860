"""Guided pairs: displaced and shaded, brought back to where the reference lies, and the network told the truth."""

import numpy as np
import pytest
import torch

from mrisr.data import guidance
from mrisr.data.guidance import BoreDistortion, Guided, random_guidance
from mrisr.data.patches import PatchSampler
from mrisr.data.synth import synthetic_volume
from mrisr.data.volumes import TrainingVolume
from mrisr.grid import Grid
from mrisr.physics import smooth


@pytest.fixture(scope="module")
def volume():
    return synthetic_volume((72, 64, 80), seed=3)


def same(a, b):
    parts = ((a.target, b.target), (a.y, b.y), (a.band, b.band), (a.cond.width, b.cond.width))
    return all(torch.equal(x, y) for x, y in parts) and a.kind == b.kind


def test_pairs_without_guidance_are_those_of_a_sampler_without(volume):
    plain, mixed = PatchSampler([volume], seed=5), PatchSampler([volume], seed=5, gradnl=0.4, bias=0.4)
    guided = 0
    for index in range(12):
        expected, found = plain.pair(index, 16), mixed.pair(index, 16)
        assert expected.cond.guidance is None
        if found.cond.guidance is None:
            assert same(expected, found)
        else:
            guided += 1
            assert not torch.equal(expected.y, found.y)
    assert 3 <= guided <= 11


def test_a_guided_pair_is_a_function_of_its_index_and_batches_mix(volume):
    first, second = (PatchSampler([volume], seed=1, gradnl=0.5, bias=0.5) for _ in range(2))
    for step in range(3):
        expected = first.batch(step, 4, 16)
    found = second.batch(2, 4, 16)
    assert torch.equal(found.y, expected.y) and torch.equal(found.cond.guidance, expected.cond.guidance)
    assert expected.cond.guidance.shape == (4, 8, 2, 2, 2)


def test_made_up_gradients_are_of_realistic_size():
    sizes, dets = [], []
    for seed in range(40):
        distortion = BoreDistortion.random(np.random.default_rng(seed), 80)
        values = distortion.forward(smooth.world(np.eye(4), [np.linspace(16, 63, 4)] * 3))
        sizes.append(float((values[:3] + distortion.bulk).norm(dim=0).max()) * distortion.voxel)
        dets += [float(values[3].min()), float(values[3].max())]
        assert float(distortion.forward(torch.full((3, 1), 39.5, dtype=torch.float64))[:3].abs().max()) < 1e-9
    assert max(sizes) < 20 and np.median(sizes) > 1.0
    assert 0.5 < min(dets) < 0.95 and 1.05 < max(dets) < 2


def test_what_the_scanner_shows_is_where_the_correction_looks():
    """The inverse at the forward mapping; the gradient beside differences; Chebyshev points beside every voxel."""
    for seed in range(6):
        distortion = BoreDistortion.random(np.random.default_rng(seed), 80)
        points = smooth.world(np.eye(4), [np.linspace(8, 71, 5)] * 3)
        there = distortion.forward(points)
        landed = points + there[:3]
        back = distortion.inverse(landed)
        assert (landed + back[:3] - points).abs().max() < 1e-3
        assert (back[3] - there[3]).abs().max() < 1e-3
        steps = 0.5 * torch.eye(3, dtype=torch.float64)[..., None]
        rows = [distortion.forward(points + s)[:3] - distortion.forward(points - s)[:3] for s in steps]
        det = torch.linalg.det(torch.eye(3) + torch.stack(rows).permute(2, 1, 0))
        assert (det - there[3]).abs().max() < 5e-3  # the gradient has a series of its own
        dense = smooth.polynomial(distortion.inverse, Grid((80, 80, 80), np.eye(4)), guidance.POINTS - 1)
        exact = distortion.inverse(smooth.world(np.eye(4), [np.array([8, 34, 60])] * 3)).reshape(4, 3, 3, 3)
        assert (dense[:, 8:61:26, 8:61:26, 8:61:26] - exact).abs().max() < 0.02


def test_a_displaced_start_lies_where_the_reference_lies_and_is_as_bright():
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 88)] * 3, indexing="ij"))
    waves = np.sin(14 * grid[0] + 1) * np.cos(11 * grid[1]) + np.sin(13 * grid[2] + 2) * np.cos(9 * grid[0])
    volume = TrainingVolume.from_array((1.0 + 0.2 * waves).astype(np.float32), (1.0, 1.0, 1.0), "waves")
    sampler, shifts, gains, moved = PatchSampler([volume], seed=2, drop=0.0, gradnl=1.0, bias=1.0), [], [], []
    for index in range(40):
        pair = sampler.pair(index, 24)
        target, y, cond, band = pair.target, pair.y, pair.cond, pair.band
        if str(pair.kind) not in ("iso1.0", "iso1.5", "iso2.0"):  # clean, and fine enough for these waves
            continue
        assert not band.any()
        inner = (slice(3, -3),) * 3
        gradient = [g[inner] for g in torch.gradient(target + y)]
        basis = torch.stack([*gradient, (target + y)[inner]]).reshape(4, -1).double()
        found = torch.linalg.lstsq(basis.T, target[inner].reshape(-1, 1).double()).solution[:, 0]
        shifts.append(float(found[:3].abs().max()))
        gains.append(float(found[3].abs()))
        moved.append(float(cond.guidance[0, 1:4].abs().max()) * 8)
    assert len(shifts) >= 8 and max(moved) > 1.5
    assert np.median(shifts) < 0.01 and np.quantile(shifts, 0.8) < 0.02
    assert np.median(gains) < 0.002 and max(gains) < 0.01


def test_the_network_is_told_the_truth_mirrored_too(volume):
    """The divergence of the told displacement is the told log determinant, to first order, in either mirror image."""
    sampler = PatchSampler([volume], seed=3, drop=0.0, gradnl=1.0)
    checked = 0
    for index in range(30):
        cond = sampler.pair(index, 48).cond
        log_det = cond.guidance[0, 4, 1:-1, 1:-1, 1:-1]
        if not cond.guidance[0, 6:].any(1).any(1).any(1).all() or float(log_det.abs().max()) < 0.03:
            continue  # too little to tell
        for axes in ([], [0], [1, 2]):
            told = cond.flipped(axes).guidance[0]
            rows = torch.stack([torch.stack(torch.gradient(told[1 + a]))[:, 1:-1, 1:-1, 1:-1] for a in range(3)])
            expected = torch.linalg.det(rows.permute(2, 3, 4, 0, 1) + torch.eye(3)).log()
            assert (told[4, 1:-1, 1:-1, 1:-1] - expected).abs().max() < 0.01
        checked += 1
    assert checked >= 3


def test_a_known_field_is_taken_out_and_told():
    guided = random_guidance(np.random.default_rng(1), 48, 16, gradnl=0.0, bias=1.0)
    assert guided.distortion is None and float(guided.field.max() / guided.field.min()) > 1.05
    x = torch.rand(48, 48, 48)
    core = (guided.core,) * 3
    assert (guided.corrected(guided.acquired(x, ())[core]) - x[core]).abs().max() < 1e-5
    told = guided.channels()[0]
    assert told[5].all() and not told[[1, 2, 3, 4, 6, 7]].any()
    assert (told[0, 0, 0, 0] - guided.field[16:24, 16:24, 16:24].log().mean()).abs() < 1e-5


def test_slices_are_resampled_along_the_displacement_too():
    """Thick slices keep their own grid until the one interpolation; a smooth object comes back."""
    from mrisr.data.patches import _Field
    from mrisr.data.scanners import Scanner, ScannerClass
    from mrisr.ops.resample import apply_axes
    from mrisr.physics.psf import AxisPSF

    size, patch = 72, 24
    line = torch.linspace(-1, 1, size)
    x = torch.exp(-3 * ((line - 0.1)[:, None, None] ** 2 + line[None, :, None] ** 2 + (line + 0.1) ** 2))
    distortion = BoreDistortion.random(np.random.default_rng(8), size)
    guided = Guided(size, patch, distortion, None)
    psf = (AxisPSF("kspace", 1.0), AxisPSF("kspace", 1.5), AxisPSF("gaussian", 3.0))
    scanner = Scanner((1.0, 1.5, 3.0), psf, 0.0, ScannerClass("slice", 3.0))
    field = _Field.draw(np.random.default_rng(0), scanner, size, patch, at_the_end=False)
    matrices = field._model().matrices
    start, positions = field.start()
    core = (guided.core,) * 3
    found = guided.start(apply_axes(guided.acquired(x, psf), matrices), start, positions, psf)
    plain = apply_axes(x, matrices)
    plain = apply_axes(plain, [np.eye(size) if m is None else m for m in start])[core]
    undone = apply_axes(
        apply_axes(guided.acquired(x, psf), matrices), [np.eye(size) if m is None else m for m in start]
    )
    assert (undone[core] - plain).abs().max() > 0.01
    assert (found - plain).abs().max() < 0.002
