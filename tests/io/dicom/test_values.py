"""Values as real files have them: read where they can be, else refused in one line by file, tag and value."""

from __future__ import annotations

import zipfile
import zlib

import numpy as np
import pytest

from mrisr.errors import InputError, MrisrWarning
from mrisr.io import dicom

pydicom = pytest.importorskip("pydicom", reason="the dicom extra (pydicom) is not installed")

SPACING, SLOPE, POSITION = 0x00280030, 0x00281053, 0x00200032

# What stands in the header of each slice -> the words of the refusal
REFUSED = {
    "spacing with commas": ({SPACING: ("DS", b"2,0\\2,0 ")}, r"PixelSpacing \(0028,0030\).*'2,0\\\\2,0'"),
    "one spacing": ({SPACING: ("DS", b"2.0 ")}, r"PixelSpacing \(0028,0030\): expected 2 numbers, found '2.0'"),
    "three spacings": ({SPACING: ("DS", b"1\\1\\1 ")}, "expected 2 numbers, found"),
    "negative spacing": ({SPACING: ("DS", b"-1\\1")}, "expected two distances above 0 mm"),
    "slope with a comma": ({SLOPE: ("DS", b"1,5 ")}, r"RescaleSlope \(0028,1053\): expected one number, found '1,5'"),
    "two slopes": ({SLOPE: ("DS", b"1\\2 ")}, "expected one number, found '1"),
    "slope of 0": ({SLOPE: ("DS", b"0 ")}, "expected a factor other than 0"),
    "slope that is no number": ({SLOPE: ("DS", b"nan ")}, "expected one number, found 'nan'"),
    "slope beyond numbers": ({SLOPE: ("DS", b"1e999 ")}, "expected one number"),
    "position of two": ({POSITION: ("DS", b"1\\2 ")}, r"ImagePositionPatient \(0020,0032\): expected 3 numbers"),
    "no rows": ({0x00280010: ("US", b"\0\0")}, r"Rows \(0028,0010\): expected 1 to 4096"),
    "two rows": ({0x00280010: ("US", b"\5\0\5\0")}, "expected a whole number|expected one number"),
    "crooked orientation": (
        {0x00200037: ("DS", b"1\\0\\0\\1\\0\\0 ")},
        "expected two unit vectors at right angles",
    ),
    "odd sign": ({0x00280103: ("US", b"\2\0")}, r"PixelRepresentation \(0028,0103\): expected 0 .no sign. or 1"),
    "no size": ({0x00280010: ("US", b"")}, r"Rows \(0028,0010\): expected 1 to 4096, found nothing"),
    "odd bits": ({0x00280100: ("US", b"\7\0")}, r"BitsAllocated \(0028,0100\): expected 8, 16 or 32 bits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_file_tag_and_value(case, tmp_path, made):
    raw, words = REFUSED[case]
    made.series(tmp_path, raw=raw)
    with pytest.raises(InputError, match=words) as caught:
        dicom.read(tmp_path)
    assert "IM000" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        {SLOPE: ("DS", b"")},
        {SLOPE: ("DS", b"  ")},
        {SPACING: ("UT", b"0.8\\1.2 ")},
        {SPACING: ("LO", b"0.80\\1.20")},
        {SPACING: ("DS", b" .8 \\+1.2E+000 ")},
        {0x00280008: ("IS", b"1 ")},
        {0x00280008: ("IS", b"")},
        {0x00280010: ("UL", b"\5\0\0\0")},
    ],
)
def test_read_all_the_same(raw, tmp_path, made):
    made.series(tmp_path / "plain")
    made.series(tmp_path / "odd", raw=raw)
    plain, odd = dicom.read(tmp_path / "plain"), dicom.read(tmp_path / "odd")
    assert np.array_equal(plain.data, odd.data) and np.allclose(plain.affine, odd.affine, atol=1e-9)


def test_monochrome1_is_inverted_and_said(tmp_path, made):
    made.series(tmp_path, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11, PixelRepresentation=0)
    with pytest.warns(MrisrWarning, match=r"PhotometricInterpretation \(0028,0004\) is MONOCHROME1"):
        volume = dicom.read(tmp_path)
    assert volume.data[6, 4, 3] == 4095 - made.pixel(3)[4, 6]


def test_zero_filling_shows_in_the_acquired_width(tmp_path, made):
    made.series(tmp_path, AcquisitionMatrix=[0, 3, 4, 0], InPlanePhaseEncodingDirection="ROW")
    with pytest.warns(MrisrWarning, match=r"zero-filled: AcquisitionMatrix \(0018,1310\)"):
        volume = dicom.read(tmp_path)
    # 7 columns of 1.2 mm from 4 phase steps, 5 rows of 0.8 mm from 3 samples
    assert np.allclose(volume.meta["AcquiredVoxelSize"], [7 * 1.2 / 4, 5 * 0.8 / 3, 3.0])


def test_files_without_preamble_are_read_and_said(tmp_path, made):
    expected = dicom.read(made.series(tmp_path)).data
    path = tmp_path / "IM0001"
    path.write_bytes(path.read_bytes()[132:])
    with pytest.warns(MrisrWarning, match="IM0001: lacks the preamble of a DICOM file; read all the same"):
        assert np.array_equal(dicom.read(tmp_path).data, expected)


@pytest.mark.parametrize("keep", [0, 100, 140, 400, 0.98])
def test_a_slice_that_is_cut_short_is_refused_by_name(keep, tmp_path, made):
    """The first or last slice: positions cannot show that it is missing."""
    path = made.series(tmp_path) / "IM0001"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.raises(InputError, match="IM0001: .*volume incomplete were it left out"):
        dicom.read(tmp_path)


def test_deflated(tmp_path, made):
    expected = dicom.read(made.series(tmp_path)).data
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        dataset.save_as(path)
    assert np.array_equal(dicom.read(tmp_path).data, expected)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="its deflated data are cut short.*left out"):
        dicom.read(tmp_path)


def test_a_huge_length_takes_no_memory(tmp_path, made):
    """An element that claims 4 GB, in a file of 1 kB."""
    path = made.series(tmp_path) / "IM0002"
    data = path.read_bytes()
    at = data.index(b"\x08\x00\x3e\x10LO")
    path.write_bytes(data[:at] + b"\x08\x00\x3e\x10UT\0\0\xf0\xff\xff\xff" + data[at + 8 :])
    with pytest.raises(InputError, match="IM0002"):
        dicom.read(tmp_path)


def test_a_zip_that_unpacks_to_too_much(tmp_path, made):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("IM1", b"\0" * 128 + b"DICM" + b"\0" * (80 << 20))
    with pytest.raises(InputError, match="a.zip: IM1: unpacks to .* bytes from"):
        dicom.read(tmp_path / "a.zip")
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "b.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="b.zip"):
        dicom.read(tmp_path / "b.zip")
    assert zlib.crc32(data) == zlib.crc32((tmp_path / "a.zip").read_bytes())


@pytest.mark.parametrize("seed", range(3))
def test_damaged_bytes_are_refused_or_read_never_more(seed, tmp_path, made):
    """300 files with random bytes changed, cut out or put in."""
    import warnings

    folder = made.series(tmp_path / "s", SeriesDescription="a", ProtocolName="b")
    path = folder / "IM0003"
    whole = path.read_bytes()
    random = np.random.default_rng(seed)
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(random.integers(1, 6)):
            at = int(random.integers(0, len(data)))
            kind = random.integers(3)
            if kind == 0:
                data[at] = int(random.integers(256))
            elif kind == 1:
                del data[at : at + int(random.integers(1, 9))]
            else:
                data[at:at] = random.bytes(int(random.integers(1, 9)))
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MrisrWarning)
            try:
                volume = dicom.read(folder)
            except InputError as error:
                assert "\n" not in str(error)
            else:
                assert np.isfinite(volume.data).all()
