"""Labels, masks, phase and field maps do not pass as scans."""

import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

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


def slices_of_labels():
    """As floats, coherent within slices and not across them."""
    blocks = np.random.default_rng(0).integers(1, 8, (4, 4, 5)).repeat(6, 0).repeat(6, 1)
    return np.pad(blocks, ((6, 6), (6, 6), (0, 0))).astype(np.float32)


def shells():
    """Around points that differ, as structures of a head."""
    at = np.mgrid[:90, :80, :84].astype(np.float32)
    centres = {3: (45, 40, 42, 38), 41: (40, 42, 40, 28), 17: (52, 36, 46, 12)}
    x = np.zeros(at.shape[1:], np.float32)
    for label, (*centre, radius) in centres.items():
        x[sum((a - c) ** 2 for a, c in zip(at, centre)) < radius**2] = label
    return x


def on_other_voxels(labels, order):
    return ndimage.zoom(labels, 1.37, order=order)


def test_a_label_map_by_its_own_account_is_refused(tmp_path):
    image = nib.Nifti1Image(labels().astype(np.int16), EYE)
    nib.save(image, tmp_path / "sub-01_dseg.nii.gz")
    with pytest.raises(InputError, match="a label map .its name ends in _dseg"):
        check_kind(nifti.read(tmp_path / "sub-01_dseg.nii.gz"))
    for code, words in ((1002, "a label map"), (1003, "a label map"), (1005, "matrices"), (2003, "colours")):
        image.header["intent_code"] = code
        with pytest.raises(InputError, match=f"{words}.*intent code {code}"):
            check_kind(nifti.from_image(image))
    image = nib.Nifti1Image(np.random.default_rng(0).random((24, 24, 24)), EYE)
    image.header["intent_code"] = 3
    with pytest.warns(MrisrWarning, match="statistical map .*intent code 3"):
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
        ("labels in thick slices", slices_of_labels(), "looks like a label map"),
        ("labels by a slope", labels() / 7, "looks like a label map"),
        ("labels by a spline", on_other_voxels(shells(), 3), "a label map that was interpolated .* fractions"),
        ("labels, linearly", on_other_voxels(shells(), 1), "a label map that was interpolated .* fractions"),
        ("mask", (labels() > 0) * 1.0, "looks like a mask"),
        ("phase from 0", np.linspace(0, 2 * np.pi, 24**3).reshape(24, 24, 24), "phase image, in radians"),
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
        for scaled in (scan.data, scan.data / scan.data.max(), 7.3 * scan.data, on_other_voxels(scan.data, 3)):
            check_kind(scan.replace(scaled))
    for said in ({"meta": {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}}, {"name": "sub-01_phasediff.nii.gz"},
                 {"name": "sub-01_part-phase_bold.nii.gz"}, {"name": "sub-01_label-GM_probseg.nii.gz"},
                 {"name": "sub-01_T1map.nii.gz"}):  # fmt: skip
        with pytest.warns(MrisrWarning, match="magnitude|phase|probabilities|quantity"):
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
    with pytest.warns(MrisrWarning, match="never stated .*written as if it had been"):
        nifti.to_image(volume, "mgh")


def test_the_code_of_every_other_source_of_geometry(head):
    """What somebody says of an array is a place, but not the scanner's; what a NIfTI says of itself stays."""
    data = head((24, 24, 24))
    for image in (nifti.to_image(Volume(data, EYE)), nifti.to_image(to_volume(data, affine=EYE)[0])):
        assert int(image.header["sform_code"]) == int(image.header["qform_code"]) == 2
    scanner = nifti.to_image(Volume(data, EYE, meta={"ImageType": ["ORIGINAL"]}))  # as DICOM has it
    assert int(scanner.header["sform_code"]) == 1
    for codes in ((1, 1), (2, 1), (4, 0), (0, 1), (3, 4)):
        source = nib.Nifti1Image(data, EYE)
        source.set_sform(EYE if codes[0] else None, codes[0])
        source.set_qform(EYE if codes[1] else None, codes[1])
        image = nifti.to_image(nifti.from_image(source))
        assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == codes


def test_masked_arrays_are_not_taken_without_their_mask(head):
    data = np.ma.masked_greater(head((24, 24, 24)), 600)
    with pytest.raises(InputError, match="voxels of a masked array are masked"):
        Volume(data, EYE)
    assert Volume(np.ma.masked_greater(head((24, 24, 24)), 10**6), EYE).data.shape == (24, 24, 24)
