"""Training pairs: repeatable, aligned, within the stated range of scanners."""

import numpy as np
import pytest
import torch

from mrisr.data.crops import random_contrast
from mrisr.data.patches import PatchSampler
from mrisr.data.scanners import ScannerClass, random_scanner
from mrisr.data.sources import find_scans, load_volumes
from mrisr.data.synth import synthetic_volume
from mrisr.data.volumes import TrainingVolume
from mrisr.errors import MrisrWarning, TrainingError


@pytest.fixture(scope="module")
def volume():
    return synthetic_volume((72, 64, 80), seed=3)


def test_synthetic_volumes_repeat_and_differ(volume):
    assert torch.equal(volume.data, synthetic_volume((72, 64, 80), seed=3).data)
    assert not torch.equal(volume.data, synthetic_volume((72, 64, 80), seed=4).data)
    assert 0.2 < float((volume.data > 0.15).float().mean()) < 0.95


def test_a_pair_is_a_function_of_its_index(volume):
    first, second = PatchSampler([volume], seed=5), PatchSampler([volume], seed=5)
    for index in (0, 3, 17):
        a, b = first.pair(index, 16), second.pair(index, 16)
        assert torch.equal(a.target, b.target) and torch.equal(a.y, b.y) and a.kind == b.kind
    assert not torch.equal(first.pair(0, 16).y, first.pair(1, 16).y)


def test_a_batch_does_not_depend_on_where_a_run_was_resumed(volume):
    running, resumed = PatchSampler([volume], seed=1), PatchSampler([volume], seed=1)
    for step in range(3):
        expected = running.batch(step, 4, 16)
    found = resumed.batch(2, 4, 16)
    assert torch.equal(found.y, expected.y) and torch.equal(found.target, expected.target)
    assert torch.equal(found.cond.width, expected.cond.width)


def test_every_batch_has_its_size(volume):
    for count in (1, 2, 3):
        assert len(PatchSampler([volume], seed=1).batch(1, count, 16).kinds) == count


def test_ranks_see_different_pairs(volume):
    sampler = PatchSampler([volume], seed=1)
    seen = [sampler.batch(step, 2, 16, rank=rank, ranks=2).y[0] for step in range(2) for rank in range(2)]
    assert len({float(y.sum()) for y in seen}) == 4


def test_the_start_lies_where_the_reference_lies():
    """A misplaced y would show as a residual that follows the gradient: x(p + s) - x(p) = s . grad x.

    Flips would hide a constant shift, so it is measured per pair; where a wave
    happens to be flat along one axis, the shift along it is not defined, hence the quantile.
    """
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 72)] * 3, indexing="ij"))
    waves = np.sin(14 * grid[0] + 1) * np.cos(11 * grid[1]) + np.sin(13 * grid[2] + 2) * np.cos(9 * grid[0])
    volume = TrainingVolume.from_array((1.0 + 0.2 * waves).astype(np.float32), (1.0, 1.0, 1.0), "waves")
    sampler, shifts = PatchSampler([volume], seed=2, drop=0.0), []
    for index in range(90):
        pair = sampler.pair(index, 16)
        target, y = pair.target, pair.y
        if str(pair.kind) not in ("iso1.0", "iso1.5", "iso2.0"):  # clean, and fine enough for these waves
            continue
        inner = (slice(3, -3),) * 3
        gradient = torch.stack([g[inner] for g in torch.gradient(target + y)]).reshape(3, -1).double()
        found = torch.linalg.lstsq(gradient.T, target[inner].reshape(-1, 1).double()).solution
        shifts.append(float(found.abs().max()))
    assert len(shifts) >= 10 and np.median(shifts) < 0.01 and np.quantile(shifts, 0.8) < 0.02


def test_slices_lie_along_the_last_axis_and_2d_scans_are_left_alone_across():
    volume = TrainingVolume.from_array(np.random.default_rng(0).random((90, 90, 30)) + 0.2, (0.7, 0.7, 3.0), "2d")
    assert volume.fine_axes == (True, True, False)
    sampler = PatchSampler([volume], seed=0, drop=0.0)
    for index in range(8):
        width = sampler.pair(index, 16).cond.width[0]
        assert bool((width.diff() >= -1e-3).all()) and float(width.min()) == 0


def test_scanners_stay_in_the_range_the_weights_claim():
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(2000):
        scanner = random_scanner(rng)
        kinds.add(scanner.kind.family)
        assert ScannerClass.parse(str(scanner.kind)) == scanner.kind
        for factor, psf in zip(scanner.factor, scanner.psf):
            assert 1.0 <= factor <= (4.0 if psf.kind == "kspace" else 8.0)
            assert psf.width <= (4.0 if psf.kind == "kspace" else 10.0)
        assert 0 <= scanner.noise <= 0.06
    assert kinds == {"iso", "aniso", "blur", "slice", "same"}


def test_families_are_those_that_are_wanted():
    rng, flat = np.random.default_rng(0), (True, True, False)
    assert {random_scanner(rng, families=("slice",)).kind.family for _ in range(200)} == {"slice"}
    assert {random_scanner(rng, families=("iso", "aniso")).kind.family for _ in range(200)} == {"iso", "aniso"}
    # A 2D scan shows no other slices.
    assert {random_scanner(rng, flat, ("slice", "iso")).kind.family for _ in range(200)} == {"iso"}
    for wanted in ("slice", "blur"):
        assert {random_scanner(rng, flat, (wanted,)).kind.family for _ in range(200)} == {"iso", "aniso", "same"}


def test_who_wants_no_denoising_gets_none(volume):
    shares = {}
    for wanted in (0.0, 1.0):
        sampler = PatchSampler([volume], seed=3, drop=0.0, denoise=wanted)
        shares[wanted] = [float(sampler.pair(i, 16).cond.denoise) for i in range(60)]
    assert not any(shares[0.0]) and any(s == 1 for s in shares[1.0]) and any(0 < s < 1 for s in shares[1.0])


def test_contrasts_are_finite_and_keep_air_dark():
    x = torch.linspace(-0.1, 2.0, 200)
    for seed in range(40):
        y = random_contrast(x, np.random.default_rng(seed))
        assert bool(torch.isfinite(y).all())
        assert float(y[(x.abs() < 0.02)].abs().max()) < 0.2


def test_a_broken_scan_is_named_and_left_out(tmp_path):
    import nibabel as nib

    good = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((12, 12, 12), np.float32), np.eye(4)), good)
    (tmp_path / "b.nii.gz").write_bytes(good.read_bytes()[:200])
    (tmp_path / "notes.txt").write_text("no scan")
    paths = find_scans(tmp_path)
    assert [p.name for p in paths] == ["a.nii.gz", "b.nii.gz"]
    with pytest.warns(MrisrWarning, match="left out of training.*b.nii.gz"), pytest.warns(match="1 of 2 scans"):
        volumes = load_volumes(paths)
    assert len(volumes) == 1
    with pytest.warns(MrisrWarning), pytest.raises(TrainingError, match="none of the 1 scans"):
        load_volumes(paths[1:])
    with pytest.raises(TrainingError, match="no scan found"):
        find_scans(_empty(tmp_path))


def _empty(folder):
    empty = folder / "empty"
    empty.mkdir()
    return empty
