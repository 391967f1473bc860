"""``mrisr correct`` as a user sees it."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from mrisr.physics import bias, coils, gradnl

GRAD = " 0.100 m = R0, lnorm = 4?\n  1 A( 3, 0)  -0.2000  z\n101 A( 3, 1)  -0.1500  x\n"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def coefficients(tmp_path_factory):
    path = tmp_path_factory.mktemp("coil") / "made_up.grad"
    path.write_text(GRAD)
    return path


@pytest.fixture(scope="session")
def head_scan(tmp_path_factory, head):
    """An oblique NIfTI head in scanner coordinates about the isocentre, 26 x 28 x 24 voxels of 6 mm."""
    affine = np.diag([-6.0, 6.0, 6.0, 1.0])
    turn = np.eye(4)
    turn[1:3, 1:3] = [[0.96, -0.28], [0.28, 0.96]]
    affine = turn @ affine
    affine[:3, 3] = -affine[:3, :3] @ (12.5, 13.5, 11.5)
    image = nib.Nifti1Image(head((26, 28, 24)).astype(np.int16), affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    path = tmp_path_factory.mktemp("head") / "scan.nii.gz"
    nib.save(image, path)
    return path


def field_file(path, head_scan, change=lambda f: f):
    image = nib.load(head_scan)
    field = bias.bias_field(image.shape, torch.Generator().manual_seed(0), 0.1).numpy()
    nib.save(nib.Nifti1Image(change(field), image.affine), path)
    return path


def test_geometry_and_shading_with_every_output(head_scan, coefficients, tmp_path, mrisr_command):
    given = field_file(tmp_path / "given.nii", head_scan)
    end = mrisr_command(
        "correct", "-i", head_scan, "-o", tmp_path / "o.nii.gz", "--gradnl", coefficients, "--corrected", "none",
        "--bias", given, "--displacement", tmp_path / "d.nii.gz", "--jacobian", tmp_path / "j.nii.gz",
        "--bias-field", tmp_path / "f.nii.gz", "--info", tmp_path / "i.json", "--threads", 1,
    )  # fmt: skip
    assert (end.code, end.out, end.errors, end.warnings) == (0, "", [], [])
    assert names(tmp_path) == ["d.nii.gz", "f.nii.gz", "given.nii", "i.json", "j.nii.gz", "o.nii.gz"]
    scan, made = nib.load(head_scan), {n: nib.load(tmp_path / f"{n}.nii.gz") for n in "odjf"}
    for image in made.values():
        assert np.array_equal(image.affine, scan.affine) and image.get_data_dtype() == np.float32
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 1
    grid = gradnl.Grid(scan.shape, scan.affine)
    warp = gradnl.correction(coils.read(coefficients), grid)
    flat = torch.from_numpy(scan.get_fdata(dtype=np.float32) / nib.load(given).get_fdata(dtype=np.float32))
    assert np.allclose(made["o"].get_fdata(), warp.forward(flat).numpy(), atol=0.1)
    assert made["d"].shape == (*scan.shape, 3)
    assert np.allclose(made["d"].get_fdata(), warp.offset.permute(1, 2, 3, 0).numpy(), atol=1e-4)
    assert np.allclose(made["j"].get_fdata(), warp.gain.numpy(), atol=1e-5)
    record = json.loads((tmp_path / "i.json").read_text())
    assert record["gradnl"]["largest_mm"] > 5 and "given.nii" in record["bias"]["from"]
    assert "stated by --corrected" in end.err and "bias field: from" in end.err


def test_a_displacement_that_was_written_does_the_same(head_scan, coefficients, tmp_path, mrisr_command):
    common = ("correct", "-i", head_scan, "--corrected", "none", "--quiet")
    first = mrisr_command(
        *common, "-o", tmp_path / "a.nii", "--gradnl", coefficients, "--displacement", tmp_path / "d.nii"
    )
    second = mrisr_command(*common, "-o", tmp_path / "b.nii", "--gradnl", tmp_path / "d.nii")
    assert (first.code, second.code, first.err, second.err) == (0, 0, "", "")
    a, b = (nib.load(tmp_path / f"{n}.nii").get_fdata()[3:-3, 3:-3, 3:-3] for n in "ab")
    assert np.abs(a - b).max() < 0.02 * a.max()


def test_what_the_scanner_corrected_is_left_alone(head_scan, coefficients, tmp_path, mrisr_command):
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(head_scan.read_bytes())
    made = {}
    for word in ("ND", "DIS2D", "DIS3D"):
        (tmp_path / "scan.json").write_text(json.dumps({"ImageType": ["ORIGINAL", "PRIMARY", word]}))
        end = mrisr_command("correct", "-i", scan, "-o", tmp_path / "o.nii", "--gradnl", coefficients, "--force")
        assert end.code == 0 and f"ImageType holds {word}" in end.err
        made[word] = nib.load(tmp_path / "o.nii").get_fdata()
    assert "corrected by the scanner already" in end.warnings[0]
    stored = nib.load(scan).get_fdata()
    assert np.array_equal(made["DIS3D"], stored)
    assert np.abs(made["DIS2D"] - stored).max() > 5 and np.abs(made["DIS2D"] - made["ND"]).max() > 5


def test_bias_is_estimated_and_can_be_put_back(head_scan, tmp_path, mrisr_command):
    pytest.importorskip("SimpleITK")
    end = mrisr_command(
        "correct", "-i", head_scan, "-o", tmp_path / "o.nii", "--bias", "auto", "--bias-field", tmp_path / "f.nii"
    )
    assert end.code == 0 and "estimated by N4" in end.err
    product = nib.load(tmp_path / "o.nii").get_fdata() * nib.load(tmp_path / "f.nii").get_fdata()
    assert np.allclose(product, nib.load(head_scan).get_fdata(), atol=0.01)
    end = mrisr_command("correct", "-i", head_scan, "-o", tmp_path / "p.nii", "--bias", "auto", "--t2w", head_scan)
    assert end.code == 0 and "estimated from this scan and" in end.err


def test_every_frame_of_a_series_is_corrected(head_scan, coefficients, tmp_path, mrisr_command):
    image = nib.load(head_scan)
    both = np.stack([image.get_fdata(), image.get_fdata()[::-1]], axis=-1).astype(np.float32)
    series = nib.Nifti1Image(both, image.affine, image.header)
    series.set_data_dtype(np.float32)
    nib.save(series, tmp_path / "s.nii")
    common = ("--gradnl", coefficients, "--corrected", "none", "--quiet")
    assert mrisr_command("correct", "-i", tmp_path / "s.nii", "-o", tmp_path / "o.nii", *common).code == 0
    assert mrisr_command("correct", "-i", head_scan, "-o", tmp_path / "p.nii", *common).code == 0
    assert nib.load(tmp_path / "o.nii").shape == (*image.shape, 2)
    assert np.allclose(
        nib.load(tmp_path / "o.nii").get_fdata()[..., 0], nib.load(tmp_path / "p.nii").get_fdata(), atol=1e-2
    )


def test_assumptions_are_said(scan, coefficients, tmp_path, mrisr_command):
    """Plain NIfTI, aligned coordinates: corrected because that was asked for."""
    end = mrisr_command("correct", "-i", scan, "-o", tmp_path / "o.nii", "--gradnl", coefficients, "--quiet")
    assert end.code == 0 and len(end.warnings) == 2
    assert "nothing says whether the scanner corrected it" in end.warnings[0]
    assert "not said to lead to scanner coordinates (code 2, expected 1)" in end.warnings[1]


def test_errors_are_one_line_and_leave_nothing(head_scan, coefficients, tmp_path, mrisr_command):
    work = tmp_path / "work"
    work.mkdir()
    wrong = tmp_path / "wrong.grad"
    wrong.write_text(GRAD.replace("0.2000", "9.0"))
    (tmp_path / "prose.grad").write_text("hello\n")
    zeros = field_file(tmp_path / "zeros.nii", head_scan, lambda f: np.where(f > f.mean(), f, 0))
    small = field_file(tmp_path / "small.nii", head_scan, lambda f: f[1:])
    (tmp_path / "ge.nii").write_bytes(nib.load(head_scan).to_bytes())
    (tmp_path / "ge.json").write_text(json.dumps({"Manufacturer": "GE MEDICAL SYSTEMS"}))
    cases = [
        ((), 2, "expected --gradnl, --bias or both"),
        (("--bias", "auto", "--jacobian", work / "j.nii"), 2, "--jacobian: needs --gradnl"),
        (("--gradnl", coefficients, "--bias-field", work / "f.nii"), 2, "--bias-field: needs --bias"),
        (("--bias", zeros, "--t2w", zeros), 2, "needs --bias auto"),
        (("--bias", "auto", "--info", work / "i.txt"), 2, "ending in .json"),
        (("--gradnl", wrong), 3, "expected at most 50 mm"),
        (("--gradnl", tmp_path / "none.grad"), 3, "cannot be read"),
        (("--gradnl", tmp_path / "prose.grad"), 3, "holds no coefficients"),
        (("--gradnl", head_scan), 3, "expected a displacement field"),
        (("--gradnl", coefficients, "-i", tmp_path / "ge.nii"), 3, "the scan is from 'GE"),
        (("--bias", zeros), 3, "voxels are zero or below"),
        (("--bias", small), 3, "its grid is (25, 28, 24), the scan's (26, 28, 24)"),
        (("--bias", tmp_path / "none.nii"), 3, "no such file"),
        (("--bias", "auto", "-o", work / "o.txt"), 4, "output format is not known"),
        (("--bias", zeros, "-o", zeros, "--force"), 4, "is a file of the input"),
    ]
    for options, code, words in cases:
        end = mrisr_command("correct", "-i", head_scan, "-o", work / "o.nii", *options)
        assert end.code == code and len(end.errors) == 1 and words in end.errors[0], (options, end.err)
        assert names(work) == []
