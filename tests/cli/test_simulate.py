"""``mrisr simulate`` as a user sees it."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="session")
def t1w(tmp_path_factory):
    """Path of a NIfTI of CSF (0), folded white (1) and grey matter (2), 2 % noise; its sidecar says 3 T."""
    rng = np.random.default_rng(0)
    shape = (40, 44, 36)
    lines = [np.linspace(-1, 1, n)[i] for n, i in zip(shape, np.ix_(*map(range, shape)), strict=True)]
    radius = np.sqrt(sum(v**2 for v in lines))
    folded = np.sin(9 * lines[0]) * np.sin(8 * lines[1]) + 0.5 * np.sin(10 * lines[2])
    label = np.select([radius > 0.85, radius < 0.3], [3, 0], np.where(folded > 0, 1, 2))
    level = np.array([180.0, 900.0, 620.0, 0.0])[label]
    scan = np.hypot(level + rng.normal(0, 18, shape), rng.normal(0, 18, shape))
    folder = tmp_path_factory.mktemp("t1w")
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (39, -43, -35)
    nib.save(nib.Nifti1Image(scan.astype(np.float32), affine), folder / "scan.nii.gz")
    np.save(folder / "label.npy", label)
    (folder / "scan.json").write_text(json.dumps({"MagneticFieldStrength": 3}))
    return folder / "scan.nii.gz"


def test_contrast_and_noise_of_each_field(t1w, tmp_path, mrisr_command):
    label, ratio, noise = np.load(t1w.parent / "label.npy"), {}, {}
    for b0 in ("1.5T", "3T", "7T"):
        out, info = tmp_path / f"{b0}.nii.gz", tmp_path / f"{b0}.json"
        end = mrisr_command("simulate", "-i", t1w, "-o", out, "--like", b0, "--info", info)
        assert (end.code, end.out, end.errors, end.warnings) == (0, "", [], []), end.err
        assert "A simulation" in end.err
        record, made = json.loads(info.read_text()), nib.load(out)
        assert record["simulated"] is True and record["from_tesla"] == 3.0
        assert np.array_equal(made.affine, nib.load(t1w).affine) and made.get_data_dtype() == np.float32
        data = made.get_fdata()
        ratio[b0] = np.median(data[label == 2]) / np.median(data[label == 1])
        noise[b0] = data[label == 1].std()
    assert ratio["7T"] < ratio["3T"] < ratio["1.5T"]
    assert noise["1.5T"] > 1.6 * noise["3T"]


def test_resolution_and_stated_noise(t1w, tmp_path, mrisr_command):
    out = tmp_path / "o.nii"
    common = ("simulate", "-i", t1w, "-o", out, "--like", "3T", "--force")
    end = mrisr_command(*common, "--voxel-size", 2, 2, 6, "--thickness", 5, "--noise", 0, "--no-contrast")
    assert end.code == 0 and "slices of 5 mm along axis 2" in end.err and "contrast: kept" in end.err
    image, scan = nib.load(out), nib.load(t1w)
    assert image.shape == (40, 44, 12) and np.allclose(image.header.get_zooms(), (2, 2, 6))
    middle = [i.affine[:3, :3] @ ((np.array(i.shape) - 1) / 2) + i.affine[:3, 3] for i in (image, scan)]
    assert np.allclose(*middle)
    assert image.get_fdata().mean() == pytest.approx(scan.get_fdata().mean(), rel=0.01)
    assert mrisr_command(*common, "--voxel-size", 4, "--noise", 10, "--no-contrast").code == 0
    assert nib.load(out).shape == (20, 22, 18)


def test_seeds_decide_noise_and_shading(t1w, tmp_path, mrisr_command):
    def made(*options):
        end = mrisr_command("simulate", "-i", t1w, "-o", tmp_path / "o.nii", "--like", 1.5, "--force", *options)
        assert end.code == 0, end.err
        return nib.load(tmp_path / "o.nii").get_fdata()

    first = made("--bias", 0.1)
    assert np.array_equal(first, made("--bias", 0.1))
    assert np.abs(first - made("--bias", 0.1, "--seed", 1)).max() > 10


def test_distortion_is_what_correct_undoes(t1w, tmp_path, mrisr_command):
    coefficients = tmp_path / "made_up.grad"
    coefficients.write_text(" 0.100 m = R0, lnorm = 4?\n  1 A( 3, 0)  -0.5000  z\n101 A( 3, 1)  -0.3000  x\n")
    end = mrisr_command(
        "simulate", "-i", t1w, "-o", tmp_path / "a.nii", "--like", "3T", "--noise", 0, "--no-contrast",
        "--gradnl", coefficients,
    )  # fmt: skip
    assert end.code == 0 and "distortion: " in end.err and "code 2, expected 1" in end.warnings[0]
    end = mrisr_command("correct", "-i", tmp_path / "a.nii", "-o", tmp_path / "b.nii", "--gradnl", coefficients)
    assert end.code == 0
    scan, bent, straight = (nib.load(p).get_fdata() for p in (t1w, tmp_path / "a.nii", tmp_path / "b.nii"))
    # Of what is larger than the voxels: interpolation takes some of the noise.
    wrong = [gaussian_filter(v - scan, 1.5).std() for v in (straight, bent)]
    assert wrong[0] < 0.3 * wrong[1]


def test_assumptions_and_errors_are_one_line(scan, t1w, tmp_path, mrisr_command):
    end = mrisr_command("simulate", "-i", scan, "-o", tmp_path / "a.nii", "--like", "7T", "--no-contrast", "--quiet")
    assert end.code == 0 and len(end.warnings) == 1 and "3 T assumed" in end.warnings[0]
    (tmp_path / "a.nii").unlink()
    flat = nib.load(t1w)
    nib.save(
        nib.Nifti1Image(np.where(flat.get_fdata() > 100, 500 + flat.get_fdata() / 100, 0), flat.affine),
        tmp_path / "f.nii",
    )
    series = np.stack([flat.get_fdata()] * 2, axis=-1)
    nib.save(nib.Nifti1Image(series, flat.affine), tmp_path / "s.nii")
    for image in ("f.nii", "s.nii"):
        (tmp_path / image.replace(".nii", ".json")).write_text(json.dumps({"MagneticFieldStrength": 3}))
    before = names(tmp_path)
    cases = [
        (("--like", "30T"), 2, "--like: expected 0.3 to 12 T"),
        (("--like", "high"), 2, "expected a number"),
        (("--like", "3T", "--from", "99"), 2, "--from: expected 0.3 to 12 T"),
        (("--like", "3T", "--voxel-size", 1), 2, "cannot be finer than the scan (2 x 2 x 2 mm)"),
        (("--like", "3T", "--voxel-size", 3, 3), 2, "one number or three"),
        (("--like", "3T", "--noise", 200), 2, "below 100"),
        (("--like", "3T", "--radius", 200), 2, "needs --gradnl"),
        (("--like", "3T", "--info", tmp_path / "i.txt"), 2, "ending in .json"),
        (("--like", "7T", "-i", tmp_path / "f.nii"), 3, "is the scan T1-weighted"),
        (("--like", "7T", "-i", tmp_path / "s.nii"), 3, "expected one 3D scan"),
        (("--like", "3T", "--gradnl", tmp_path / "none.grad"), 3, "cannot be read"),
    ]
    for options, code, words in cases:
        end = mrisr_command("simulate", "-i", t1w, "-o", tmp_path / "a.nii", *options)
        assert end.code == code and len(end.errors) == 1 and words in end.errors[0], (options, end.err)
        assert names(tmp_path) == before
