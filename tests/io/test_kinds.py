"""Labels, masks, phase and field maps do not pass as scans."""

import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from mrisr.errors import InputError, MrisrWarning
from mrisr.io import nifti
from mrisr.io.adapters import to_volume
from mrisr.io.kinds import check_kind
from mrisr.volume import Volume

EYE = np.eye(4)


def labels():
    x = np.zeros((24, 24, 24))
    x[4:20, 4:20, 4:20] = 3
    x[8:16, 8:16, 8:16] = 41
    x[10:12, 8:16, 8:16] = 17
    return x


def test_a_label_map_by_its_own_account_is_refused(tmp_path):
    image = nib.Nifti1Image(labels().astype(np.int16), EYE)
    nib.save(image, tmp_path / "sub-01_dseg.nii.gz")
    with pytest.raises(InputError, match="a label map .its name ends in _dseg"):
        check_kind(nifti.read(tmp_path / "sub-01_dseg.nii.gz"))
    image.header.set_intent("label")
    with pytest.raises(InputError, match="intent code 1002"):
        check_kind(nifti.from_image(image))


def test_a_torchio_label_map_is_refused():
    torch = pytest.importorskip("torch")

    class LabelMap:  # as torchio has it: known by its name and module
        __module__ = "torchio.data.image"
        data, affine = torch.zeros(1, 4, 4, 4), EYE

    with pytest.raises(InputError, match="torchio.LabelMap"):
        to_volume(LabelMap())


@pytest.mark.parametrize(
    "kind, data, words",
    [
        ("labels", labels(), "looks like a label map"),
        ("mask", (labels() > 0) * 1.0, "looks like a mask"),
        ("phase", np.linspace(-np.pi, np.pi, 24**3).reshape(24, 24, 24), "phase image, in radians"),
        ("field", np.linspace(-80, 120, 24**3).reshape(24, 24, 24), "field map"),
    ],
)
def test_what_looks_like_something_else_is_warned_about(kind, data, words):
    with pytest.warns(MrisrWarning, match=words):
        check_kind(Volume(data, EYE))


def test_metadata_and_names_say_it(head):
    scan = Volume(head((24, 24, 24)).round(), EYE, name="sub-01_T1w.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_kind(scan)
    for said in ({"meta": {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}}, {"name": "sub-01_phasediff.nii.gz"}):
        with pytest.warns(MrisrWarning, match="magnitude|phase"):
            check_kind(replace(scan, **said))


def test_a_position_that_a_file_never_stated_is_not_the_scanners(tmp_path, head):
    path = tmp_path / "scan.mgh"
    nib.save(nib.MGHImage(head((24, 24, 24)), np.diag([1.0, 1, 1, 1])), path)
    assert int(nifti.to_image(nifti.read(path), "nifti").header["sform_code"]) == 1
    raw = bytearray(path.read_bytes())
    raw[28:30] = b"\0\0"  # ras_good_flag
    path.write_bytes(bytes(raw))
    with pytest.warns(MrisrWarning, match="ras_good_flag 0"):
        volume = nifti.read(path)
    header = nifti.to_image(volume, "nifti").header
    assert int(header["sform_code"]) == 2 and int(header["qform_code"]) == 2
