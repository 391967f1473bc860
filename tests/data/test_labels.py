"""Label maps: what is one, what is drawn from it, and what a sidecar says that a scan resolves."""

import json
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from mrisr.data.crops import scan_crop
from mrisr.data.labels import BRIGHT, DARK, VESSEL, LabelVolume
from mrisr.data.pack import read_pack, write_pack
from mrisr.data.patches import Batch, PatchSampler
from mrisr.data.resolution import true_resolution
from mrisr.data.scanners import Ghost, Interleave, Scanner, ScannerClass
from mrisr.data.sources import load_volumes
from mrisr.data.synth import label_crop, synthetic_volume
from mrisr.data.volumes import TrainingVolume
from mrisr.errors import InputError, MrisrWarning, TrainingError
from mrisr.physics.psf import AxisPSF
from tests.real_data import SCANS, needs_scans

SHAPE = (56, 60, 52)

THICK = ScannerClass("slice", 4.0)


def nested_labels():
    line = [np.linspace(-1, 1, n) for n in SHAPE]
    radius = sum(v**2 for v in np.meshgrid(*line, indexing="ij")) ** 0.5
    return np.digitize(-radius, [-0.9, -0.75, -0.5, -0.3]).astype(np.int16) * 41


@pytest.fixture(scope="module")
def labels():
    return LabelVolume.from_array(nested_labels(), (1.0, 1.0, 1.0), "nested")


def save(path, data, voxel=(1.0, 1.0, 1.0)):
    nib.save(nib.Nifti1Image(data, np.diag([*voxel, 1.0])), path)
    return path


def test_a_label_map_is_told_from_a_scan(tmp_path):
    noisy = (100 * np.random.default_rng(0).random(SHAPE)).astype(np.int16)
    found = load_volumes([save(tmp_path / "a.nii.gz", nested_labels()), save(tmp_path / "b.nii.gz", noisy)])
    assert [type(v) for v in found] == [LabelVolume, TrainingVolume]
    assert found[0].data.dtype == torch.uint8 and sorted(found[0].data.unique().tolist()) == [0, 1, 2, 3, 4]


def blocks(edge, count):
    """A parcellation into cubes of `edge` voxels, `count` of them in all, each with its own label."""
    places = np.meshgrid(*[np.arange(n) // edge for n in SHAPE], indexing="ij")
    numbers = np.ravel_multi_index(places, [n // edge + 1 for n in SHAPE]).astype(np.int32)
    return np.where(numbers < count, numbers, 0)


def interpolated(labels):
    """As a linear interpolation by half a voxel along each axis leaves a label map."""
    found = labels.astype(np.float32)
    for axis in range(3):
        found = 0.5 * (found + np.roll(found, 1, axis))
    return found


def by_spline(labels, order):
    """On other voxels, from structures of more than a few voxels: thinner ones are ripples throughout."""
    return ndimage.zoom(ndimage.zoom(labels.astype(np.float32), 2, order=0), 0.87, order=order)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (by_spline(nested_labels(), 3), "expected whole numbers in a label map, found .* fractions.*nearest neighbour"),
        (by_spline(nested_labels(), 2), "expected whole numbers in a label map, found .* fractions.*nearest neighbour"),
        (interpolated(nested_labels()), "expected whole numbers in a label map, found .* fractions.*nearest neighbour"),
        (blocks(7, 400), "expected 1 to 200 labels beside 0, found"),
        (nested_labels() - 3, "expected labels from 0 to 1000000 in a label map, found -3"),
    ],
)
def test_a_label_map_that_is_none_is_left_out_of_a_mixed_folder_and_the_rest_is_learnt_from(data, reason, tmp_path):
    noisy = (100 * np.random.default_rng(0).random(SHAPE)).astype(np.int16)
    named = {"a_scan": noisy, "b_labels": nested_labels(), "c_wrong": data}
    paths = [save(tmp_path / f"{name}.nii.gz", values) for name, values in named.items()]
    with (
        pytest.warns(MrisrWarning, match=f"left out of training: .*c_wrong.nii.gz.*{reason}"),
        pytest.warns(MrisrWarning, match="1 of 3 scans were left out: c_wrong.nii.gz"),
    ):
        found = load_volumes(paths)
    assert [(type(v), v.name) for v in found] == [
        (TrainingVolume, "a_scan.nii.gz[0]"),
        (LabelVolume, "b_labels.nii.gz[0]"),
    ]


def test_a_scan_in_fractions_or_of_many_levels_on_a_background_of_one_value_stays_a_scan(tmp_path):
    inside = nested_labels() > 0
    values = 5 + 400 * np.random.default_rng(0).random(SHAPE, np.float32)
    for name, data in (("a", np.where(inside, values, -1)), ("b", np.where(inside, values, 3).astype(np.int16))):
        (volume,) = load_volumes([save(tmp_path / f"{name}.nii.gz", data)])
        assert isinstance(volume, TrainingVolume)


@pytest.mark.parametrize("largest", [1, 2, 4, 5, 10, 100])
def test_a_scan_in_fractions_stays_a_scan_however_it_is_scaled(largest, tmp_path):
    """Whole grey levels that were divided (they lie on a few steps), and a scan that was interpolated."""
    rng = np.random.default_rng(0)
    levels = np.rint(20 * (nested_labels() > 0) + 10 * nested_labels() / 41 + rng.normal(0, 1, SHAPE)).clip(0)
    smooth = ndimage.zoom(levels, 1.2, order=3)
    for name, data in (("steps", levels), ("smooth", smooth)):
        scaled = (data * (largest / data.max())).astype(np.float32)
        assert isinstance(load_volumes([save(tmp_path / f"{name}.nii.gz", scaled)])[0], TrainingVolume), name


@needs_scans
@pytest.mark.parametrize(
    "name", ["labels/bert", "labels/synthseg_11", "labels/synthsr_1", "labels_7t/ahead_0012_fs", "train/flair_1mm_p19"]
)
def test_real_label_maps_and_scans_are_told_apart_after_any_resampling(name, tmp_path):
    image = nib.load(SCANS.parent / f"{name}.nii.gz")
    middle = tuple(slice(n // 2 - 45, n // 2 + 45) for n in image.shape[:3])
    data = np.asarray(image.dataobj, np.float32)[middle]
    for factor in (0.8, 1.43):
        for order in (0, 1, 3):
            path = save(tmp_path / "resampled.nii", ndimage.zoom(data, factor, order=order))
            if name.startswith("train") or order == 0:
                kind = TrainingVolume if name.startswith("train") else LabelVolume
                assert isinstance(load_volumes([path])[0], kind)
                continue
            with (
                pytest.warns(MrisrWarning, match="expected whole numbers in a label map, found .* fractions"),
                pytest.raises(TrainingError, match="nothing to train on"),
            ):
                load_volumes([path])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (nested_labels() + 0.5, "whole numbers"),
        (nested_labels() - 1, "labels from 0"),
        (np.arange(np.prod(SHAPE)).reshape(SHAPE), "1 to 200 labels"),
        (np.zeros(SHAPE, np.uint8), "1 to 200 labels"),
    ],
)
def test_what_is_no_label_map_says_why(data, reason):
    with pytest.raises(InputError, match=reason):
        LabelVolume.from_array(data, (1, 1, 1), "odd")


def test_a_head_is_a_function_of_its_epoch_with_vessels_and_lesions(labels):
    first, again, other = labels.head(3, 0), labels.head(3, 0).clone(), labels.head(3, 1)
    labels._cache.clear()
    assert torch.equal(again, labels.head(3, 0)) and not torch.equal(first, other)
    found = set()
    for epoch in range(8):
        found |= set(labels.head(3, epoch).unique().tolist())
    assert {VESSEL, BRIGHT, DARK} <= found


def test_colours_differ_and_air_stays_dark(labels):
    crops = [label_crop(labels, 24, [0, 1, 2], np.random.default_rng(i), labels.head(0, 0)) for i in range(6)]
    assert all(c.shape == (24, 24, 24) and bool(torch.isfinite(c).all()) and float(c.min()) >= 0 for c in crops)
    assert len({round(float(c.max()), 4) for c in crops}) == 6
    assert max(float(c.max()) for c in crops) < 2


def test_packs_carry_label_maps_and_resolutions(labels, tmp_path):
    scan = TrainingVolume.from_array(
        np.random.default_rng(0).random((30, 30, 30)), (1.0, 1.0, 1.0), "scan.nii.gz[0]", (1.0, 1.2, 2.0)
    )
    write_pack(tmp_path / "both.pack", [labels, scan], {})
    first, second = read_pack(tmp_path / "both.pack")
    assert isinstance(first, LabelVolume) and torch.equal(first.data, labels.data)
    assert second.true_mm == (1.0, 1.2, 2.0) and second.fine_axes == (True, True, False)


def test_a_scan_is_degraded_from_what_it_resolves(tmp_path):
    """Along an axis of twofold zero-filling the crop is on twice as long voxels: its spectrum is full there."""
    noise = 0.02 * np.random.default_rng(0).standard_normal((95, 95, 64))
    coarse = synthetic_volume((96, 96, 65), seed=4).data.numpy() + noise
    spectrum = np.fft.fftshift(np.fft.fft(coarse, axis=2), axes=2)
    filled = np.fft.ifft(np.fft.ifftshift(np.pad(spectrum, ((0, 0), (0, 0), (32, 32))), axes=2), axis=2).real * 2
    path = save(tmp_path / "zip.nii.gz", filled.astype(np.float32), (1.0, 1.0, 0.5))
    assert true_resolution(path, filled, (1.0, 1.0, 0.5), {}) == pytest.approx((1.0, 1.0, 1.0), rel=0.1)
    (tmp_path / "volumes.json").write_text(json.dumps({"zip": {"true_mm": [1.0, 1.0, 1.0]}}))
    (volume,) = load_volumes([path])
    assert volume.true_mm == (1.0, 1.0, 1.0)
    naive = TrainingVolume.from_array(filled, (1.0, 1.0, 0.5), "naive")

    def finest(scan):
        """Power in the highest quarter of the last axis over that of the first."""
        power = torch.zeros(2)
        for seed in range(8):
            image = scan_crop(scan, 32, [0, 1, 2], np.random.default_rng(seed))
            for i, axis in enumerate((2, 0)):
                window = torch.hann_window(32).reshape([-1 if a == axis else 1 for a in range(3)])
                power[i] += torch.fft.rfft(image * window, dim=axis).abs().square().narrow(axis, 13, 4).sum()
        return float(power[0] / power[1])

    assert finest(volume) > 0.3 and finest(naive) < 0.1 * finest(volume)


@pytest.mark.parametrize(
    ("sidecar", "reason"),
    [
        ('{"a": {"true_mm": [0.5, 1, 1]}}', "contradicts the header"),
        ('{"a": {"true_mm": [1, 1]}}', "expected a list of 3 entries"),
        ('{"a": {"true_mm": [1, 1, true]}}', "expected a number above 0"),
        ('{"a": {"true_mm": [1, 1, 1' + "0" * 400 + "]}}", "at most 20"),
        ('{"a": {"x_true_over_voxel": 0.5}}', "from 1 to 10"),
        ('{"a": 3}', "expected an object"),
        ("[1]", "expected an object"),
        ("{", "not JSON"),
        ("[" * 100_000, "nests more than"),
    ],
)
def test_a_sidecar_that_is_wrong_is_named_and_its_scan_left_out(sidecar, reason, tmp_path):
    data = np.random.default_rng(0).random((12, 12, 12), np.float32)
    paths = [save(tmp_path / "scans" / f"{n}.nii.gz", data) for n in "a" if not (tmp_path / "scans").mkdir()]
    (tmp_path / "other").mkdir()
    paths.append(save(tmp_path / "other" / "b.nii.gz", data))
    (tmp_path / "scans" / "volumes.json").write_text(sidecar)
    with pytest.warns(MrisrWarning, match=f"left out of training.*{reason}"), pytest.warns(match="1 of 2 scans"):
        assert [v.name for v in load_volumes(paths)] == ["b.nii.gz[0]"]


@pytest.mark.parametrize(
    ("facts", "true_mm"),
    [
        ({"MRAcquisitionType": "2D", "SliceThickness": 3.0, "SpacingBetweenSlices": 1.2}, (1.0, 1.0, 3.0)),
        ({"MRAcquisitionType": "3D", "SliceThickness": 3.0}, (1.0, 1.0, 1.2)),
        ({"AcquiredVoxelSize": [1.0, 1.5, 1.2]}, (1.0, 1.5, 1.2)),
        ({"AcquisitionVoxelSize": [1.0, 1.4, 1.2]}, (1.0, 1.4, 1.2)),
        ({"AcquisitionVoxelSize": [1.0, 1.4, 1.2], "SliceThickness": 9.0}, (1.0, 1.4, 1.2)),
    ],
)
def test_a_scan_resolves_what_inference_would_assume_of_its_sidecar(facts, true_mm, tmp_path):
    """Overlapping slices of 3 mm at every 1.2 mm are no axis to learn 1.2 mm from."""
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).random((12, 12, 12), np.float32), (1.0, 1.0, 1.2))
    (tmp_path / "a.json").write_text(json.dumps(facts))
    (volume,) = load_volumes([path])
    assert volume.true_mm == pytest.approx(true_mm)
    assert volume.fine_axes == (True, True, true_mm[2] < 1.8)


def test_a_damaged_sidecar_of_one_scan_is_named_once_and_not_used(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).random((12, 12, 12), np.float32))
    (tmp_path / "a.json").write_text("{")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        (volume,) = load_volumes([path])
    assert [("its facts are not used" in str(w.message)) for w in said] == [True]
    assert volume.true_mm == (1.0, 1.0, 1.0)


def test_a_folder_of_scans_and_label_maps_is_said_to_be_one(labels, tmp_path):
    paths = [save(tmp_path / "scan.nii.gz", np.random.default_rng(0).random((12, 12, 12), np.float32))]
    paths.append(save(tmp_path / "aseg.nii.gz", labels.data.numpy().astype(np.float32)))
    with pytest.warns(MrisrWarning, match="holds scans and label maps; .*by their voxels: aseg.nii.gz$"):
        assert [type(v) for v in load_volumes(paths)] == [TrainingVolume, LabelVolume]


def test_what_nobody_is_told_of_is_suffered():
    x = torch.rand(24, 24, 12, generator=torch.Generator().manual_seed(0)) + 1
    psf = (AxisPSF("kspace", 1.0),) * 2 + (AxisPSF("gaussian", 4.0),)
    plain = Scanner((1, 1, 4), psf, 0.0, THICK)
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(plain.disturbed(x, 0.0, generator), x)
    woven = Scanner((1, 1, 4), psf, 0.0, THICK, interleave=Interleave(2, 0, 1.0, 1.05)).disturbed(x, 0.0, generator)
    assert torch.equal(woven[..., ::2], x[..., ::2])
    assert torch.allclose(woven[:-1, :, 1::2], 1.05 * x[1:, :, 1::2], atol=1e-5)
    ghost = Scanner((1, 1, 4), psf, 0.0, THICK, ghost=Ghost(0, 6, 0.1)).disturbed(x, 0.0, generator)
    assert torch.allclose(ghost, x + 0.1 * x.roll(6, 0))
    partial = Scanner((1, 1, 4), psf, 0.0, THICK, partial=(0.75, 1.0, 1.0)).disturbed(x, 0.0, generator)
    assert 0.001 < float((partial - x).abs().mean()) < 0.2
    uneven = Scanner((1, 1, 4), psf, 0.0, THICK, uneven=0.4)
    noise = torch.stack([uneven.disturbed(torch.full((16, 16, 16), 9.0), 0.1, generator) for _ in range(40)]).std(0)
    assert 0.05 < float(noise.mean()) < 0.2 and float(noise.std() / noise.mean()) > 0.15
    permuted = Scanner((1, 1, 4), psf, 0.0, THICK, interleave=Interleave(2, 0, 1.0, 1.05)).permuted((2, 1, 0))
    assert (permuted.interleave.axis, permuted.interleave.along) == (0, 2)


def test_some_patches_end_where_the_scan_ends_and_masked_scans_have_no_background():
    volume = synthetic_volume((96, 96, 96), seed=1)
    assert volume.masked
    sampler = PatchSampler([volume], seed=4, drop=0.0)
    beyond = sum(
        pair.kind.family == "slice" and bool((pair.y[..., :2].diff(dim=-1)).abs().sum() > 0)
        for pair in (sampler.pair(i, 16) for i in range(12))
    )
    assert beyond > 0
    from mrisr.data.patches import _Field

    ends = 0
    scanner = Scanner((1.0, 1.0, 4.0), (AxisPSF("kspace", 1.0),) * 2 + (AxisPSF("gaussian", 4.0),), 0.0, THICK)
    for seed in range(40):
        field = _Field.draw(np.random.default_rng(seed), scanner, 64, 16, at_the_end=True)
        assert all(c.start >= 0 and c.stop <= 64 and c.stop - c.start == 16 for c in field.core)
        if field.extent[2] != slice(0, field.counts[2]):
            ends += 1
            positions = field.start()[1][2][field.core[2]]
            last = field.extent[2].stop - field.extent[2].start - 1
            outside = max(-float(positions.min()), float(positions.max()) - last)
            assert 0.25 < outside <= 0.5 + 0.5 / 4  # half a slice, to within half a fine voxel
        line = torch.linspace(0, 1, 64)
        lr = field.acquire(line.expand(64, 64, 64).contiguous(), 0.0, torch.Generator())
        from mrisr.ops.resample import apply_axes

        y = apply_axes(lr, field.core_start())
        assert (y - line[field.core[2]]).abs().max() < 0.02
    assert 3 <= ends <= 18


def test_the_band_that_stays_is_what_denoise_leaves():
    volume = synthetic_volume((72, 72, 72), seed=2)
    sampler = PatchSampler([volume], seed=0, drop=0.0)
    seen = {}
    for index in range(40):
        pair = sampler.pair(index, 16)
        if pair.band.any() and pair.cond.guidance is None:
            seen.setdefault(round(float(pair.cond.denoise), 1), pair)
    assert {0.0, 1.0} <= set(seen)
    for amount, pair in seen.items():
        batch = Batch.of([pair])
        inside = pair.target[None, None] - Batch.of([kept(pair, 0.0)]).target
        assert torch.allclose(
            batch.target, pair.target[None, None] - (1 - float(pair.cond.denoise)) * inside, atol=1e-5
        )
        assert amount < 1 or torch.equal(batch.target, pair.target[None, None])


def kept(pair, denoise):
    from dataclasses import replace

    return replace(pair, cond=replace(pair.cond, denoise=torch.tensor([denoise])))
