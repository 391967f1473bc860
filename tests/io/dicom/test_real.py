"""Real series of five vendors, each as its README says: read, or refused by name."""

from __future__ import annotations

import glob
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mrisr.errors import InputError, MrisrWarning
from mrisr.io import dicom
from mrisr.io.dicom.frame import decode
from mrisr.io.dicom.header import parse
from mrisr.physics.gradnl import scanner_correction


def read(folder, **which):
    """(volume, texts of the warnings)"""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        volume = dicom.read(folder, **which)
    assert all(issubclass(w.category, MrisrWarning) for w in said)
    return volume, [str(w.message) for w in said]


# name, group -> shape, voxel size
READ = {
    ("siemens_xa30_enhanced_t1w", None): ((128, 128, 96), (2, 2, 2)),
    ("siemens_2d_t1w_gap_hfs", None): ((256, 256, 35), (1.015625, 1.015625, 4.8)),
    ("siemens_2d_t1w_gap_hfdl", None): ((256, 256, 35), (1.015625, 1.015625, 4.8)),
    ("ge_3d_oblique_phantom", None): ((256, 256, 130), (0.9375, 0.9375, 1.2)),
    ("ge_classic_no_frame_of_reference", None): ((256, 256, 4), (1, 1, 1)),
    ("hitachi_classic_one_frame", None): ((64, 64, 4), (2.34375, 2.34375, 4)),
    ("siemens_multiframe_noise", None): ((256, 256, 8), (0.9375, 0.9375, 0.9)),
    ("philips_enhanced_b0map", 1): ((64, 64, 32), (4, 4, 4)),
    ("philips_enhanced_b0map", "field_map"): ((64, 64, 32), (4, 4, 4)),
}


@pytest.mark.parametrize("name, group", READ)
def test_read(name, group, archive):
    shape, size = READ[name, group]
    volume, _ = read(archive(name), group=group)
    assert volume.data.shape == shape
    assert np.allclose(volume.voxel_size, size, atol=1e-4)


@pytest.mark.parametrize(
    "name, file",
    [
        ("ge_classic_no_frame_of_reference", "001_implicit_ground_truth.nii.gz"),
        ("hitachi_classic_one_frame", "001_ground_truth.nii.gz"),
        ("siemens_multiframe_noise", "001_ground_truth.nii.gz"),
    ],
)
def test_equal_to_another_converter(name, file, archive):
    """The reference NIfTI beside these series: every voxel at the same place in space."""
    folder = archive(name)
    volume, said = read(folder)
    assert any("left out 001_ground_truth.nii.gz" in text for text in said)
    reference = nib.load(folder / file)
    steps = np.linalg.inv(reference.affine) @ volume.affine
    assert np.allclose(steps, np.rint(steps), atol=2e-2)
    index = np.stack(np.meshgrid(*map(np.arange, volume.data.shape), indexing="ij"), -1).reshape(-1, 3)
    there = np.rint(nib.affines.apply_affine(steps, index)).astype(int)
    expected = np.asarray(reference.dataobj)[tuple(there.T)].reshape(volume.data.shape)
    assert np.array_equal(volume.data, expected)


def test_distortion_correction_is_read_from_private_elements_too(archive):
    for name in ("siemens_xa30_enhanced_t1w", "siemens_2d_t1w_gap_hfs"):
        assert scanner_correction(read(archive(name))[0].meta)[0] == "2D"


def test_a_gap_is_told_from_a_thickness(archive):
    meta = read(archive("siemens_2d_t1w_gap_hfs"))[0].meta
    assert (meta["SliceThickness"], meta["SpacingBetweenSlices"]) == (4.0, 4.8)
    assert np.allclose(meta["AcquiredVoxelSize"], [260 / 230, 1.015625, 4.0])  # 230 phase steps for 256 columns


def test_a_missing_frame_of_reference_is_generated_and_said(archive):
    folder = archive("ge_classic_no_frame_of_reference")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        series = dicom.find(folder)
    assert series.frame_of_reference.startswith("2.25.")
    assert any("no FrameOfReferenceUID (0020,0052); one was generated" in str(w.message) for w in said)


REFUSED = {
    "multi_echo": r"3 groups .*choose one with --group.*echo 1 of 20 ms, 3 frames.*echo 2 of 40 ms.*echo 3 of 60 ms",
    "philips_enhanced_b0map": r"2 groups .*--group.*1 \(magnitude, .*32 frames\); 2 \(real, .*FIELD_MAP",
    "missing_slice": "2 slices only, the others are missing",
    "mixed_orientation": "mixed orientation",
    "rgb": r"colour \(RGB\)",
    "ct_gantry_tilt": "modality CT .*not MR",
    "transfer_syntaxes": "MOSAIC",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name, archive):
    with pytest.raises(InputError, match=REFUSED[name]):
        dicom.read(archive(name))


def test_one_echo_with_a_slice_missing(archive):
    with pytest.raises(InputError, match="about 1 slice missing between"):
        dicom.read(archive("multi_echo"), group=1)


def test_a_field_map_is_read_with_a_word_of_doubt(archive):
    assert any("real, not a magnitude image" in t for t in read(archive("philips_enhanced_b0map"), group=2)[1])


def test_nine_files_of_seven_transfer_syntaxes_give_equal_voxels(archive):
    pytest.importorskip("gdcm", reason="python-gdcm decodes JPEG (extra dicom)")
    from mrisr.io.dicom.frame import frames
    from mrisr.io.dicom.header import read as read_header
    from mrisr.io.dicom.parts import Part

    pictures = []
    for path in sorted(glob.glob(str(archive("transfer_syntaxes") / "*"))):
        header = read_header(Part(Path(path)))
        frame = frames(header)[0]
        pictures.append(decode(frame, parse(frame.part, pixels=True)[0]))
    assert len(pictures) == 9 and pictures[0].max() > 100
    assert all(np.array_equal(p, pictures[0]) for p in pictures)


def test_highdicom_places_the_frames_where_this_reader_does(archive):
    """A second opinion, on the series that it takes."""
    highdicom = pytest.importorskip("highdicom", reason="highdicom (extra dev) is not installed")
    import pydicom

    for name in ("siemens_2d_t1w_gap_hfs", "siemens_2d_t1w_gap_hfdl"):
        folder = archive(name)
        theirs = highdicom.get_volume_from_series([pydicom.dcmread(p) for p in sorted(folder.iterdir())])
        ours, _ = read(folder)
        # Theirs is indexed (slice, row, column), in LPS, with slices in either direction.
        index = np.array([[0, 0, 0], [34, 0, 0], [0, 255, 0], [0, 0, 255], [17, 100, 50]])
        lps = nib.affines.apply_affine(theirs.affine, index)
        there = nib.affines.apply_affine(np.linalg.inv(ours.affine), lps * [-1, -1, 1])
        assert np.allclose(there, np.rint(there), atol=1e-3)
        values = ours.data[tuple(np.rint(there).astype(int).T)]
        assert np.array_equal(values, theirs.array[tuple(index.T)])
