"""``mrisr upscale`` from DICOM, and into a derived series."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="the dicom extra (pydicom) is not installed")


def test_a_derived_series_beside_the_same_run_as_nifti(study, weights, tmp_path, mrisr_command):
    before = {p: p.read_bytes() for p in study.iterdir()}
    common = ("--series", 5, "--voxel-size", 2, "--model", weights, "--threads", 1)
    end = mrisr_command("upscale", "-i", study, "-o", f"{tmp_path}/out/", *common, "--info", tmp_path / "i.json")
    assert (end.code, end.errors) == (0, [])
    assert any("left out 1 other series (not chosen" in line and "6 (T6w" in line for line in end.warnings)
    assert any("left out 1 other series" in text for text in json.loads((tmp_path / "i.json").read_text())["warnings"])
    assert mrisr_command("upscale", "-i", study, "-o", tmp_path / "a.nii", *common).code == 0
    from mrisr.io import dicom

    derived, image = dicom.read(tmp_path / "out"), nib.load(tmp_path / "a.nii")
    assert np.allclose(derived.affine, image.affine, atol=1e-4) and int(image.header["sform_code"]) == 1
    assert np.abs(derived.data - image.get_fdata()).max() <= 0.501
    assert before == {p: p.read_bytes() for p in study.iterdir()}


def test_without_a_choice_the_series_are_listed(study, weights, tmp_path, mrisr_command):
    end = mrisr_command("upscale", "-i", study, "-o", tmp_path / "a.nii", "--model", weights)
    assert end.code == 3 and len(end.errors) == 1
    assert "2 series; choose one with --series" in end.errors[0] and "5 (T5w, 12 files, UID 1.2.5)" in end.errors[0]


@pytest.mark.parametrize(
    "output, more, words",
    [
        ("study", (), "is the folder of the originals|holds other things"),
        ("none/out", (), "there is no directory"),
        ("out", ("--info", "out/i.json"), "--info would lie in the folder of the derived series|no directory"),
    ],
)
def test_where_it_cannot_be_written(output, more, words, study, weights, tmp_path, mrisr_command):
    import re

    more = [tmp_path / word if "/" in word else word for word in more]
    end = mrisr_command("upscale", "-i", study, "-o", tmp_path / output, "--series", 5, "--model", weights, *more)
    assert end.code == 4 and re.search(words, end.errors[0])
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []


def test_series_of_a_scan_that_is_no_dicom(scan, weights, tmp_path, mrisr_command):
    end = mrisr_command("upscale", "-i", scan, "-o", tmp_path / "a.nii", "--series", 5, "--model", weights)
    assert end.code == 2 and "is no DICOM; leave them out" in end.errors[0]
