"""What headers say beside geometry and is easily passed over: refused, or said by tag; and files that are no files."""

from __future__ import annotations

import numpy as np
import pytest

from mrisr.errors import InputError, MrisrWarning
from mrisr.io import dicom

pydicom = pytest.importorskip("pydicom", reason="the dicom extra (pydicom) is not installed")

SAID = {
    "high bit": (
        dict(BitsStored=12, HighBit=15, PixelRepresentation=0),
        r"HighBit \(0028,0102\) is 15 where 12 bits are stored, and 11 is due",
    ),
    "no sign said": (
        dict(PixelRepresentation=None),
        r"no PixelRepresentation \(0028,0103\): voxels of no sign are taken",
    ),
    "no bits said": (
        dict(BitsStored=None, HighBit=None),
        r"no BitsStored \(0028,0101\): voxels of all 16 bits are taken",
    ),
    "losses": (dict(LossyImageCompression="01"), r"LossyImageCompression \(0028,2110\): compressed with losses"),
    "text": (dict(BurnedInAnnotation="YES"), r"BurnedInAnnotation \(0028,0301\): text stands in the picture"),
    "projection": (dict(ImageType=["DERIVED", "SECONDARY", "PROJECTION IMAGE"]), "says PROJECTION IMAGE: no slices"),
    "localizer": (dict(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "says LOCALIZER: no slices"),
    "thickness of 0": (dict(SliceThickness=0), r"SliceThickness \(0018,0050\) is 0 mm: not used"),
    "thickness of a room": (dict(SliceThickness=5000), r"SliceThickness \(0018,0050\) is 5000 mm: not used"),
    "negative distance": (dict(SpacingBetweenSlices=-3.3), r"SpacingBetweenSlices \(0018,0088\) is -3.3 mm: not used"),
    "another distance": (dict(SpacingBetweenSlices=1.7), "says 1.7 mm, but they lie 3.3 mm apart: positions count"),
}


@pytest.mark.parametrize("case", SAID)
def test_said_by_tag(case, tmp_path, made):
    changes, words = SAID[case]
    with pytest.warns(MrisrWarning, match=words):
        volume = dicom.read(made.series(tmp_path, **changes))
    assert volume.data.shape == (made.columns, made.rows, made.slices) and np.isfinite(volume.affine).all()


def test_a_gap_in_place_of_the_distance_is_no_doubt(tmp_path, made, recwarn):
    dicom.read(made.series(tmp_path, SliceThickness=3.0, SpacingBetweenSlices=0.3))
    assert not [w for w in recwarn if "SpacingBetweenSlices" in str(w.message)]


def test_padding_is_counted(tmp_path, made):
    """Told as a number without a sign, as files without types have it."""
    folder = made.series(
        tmp_path, PixelRepresentation=1, raw={0x00280120: ("US", (65536 - 2000).to_bytes(2, "little"))}
    )
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        pixels = np.frombuffer(dataset.PixelData, "<i2").reshape(made.rows, made.columns).copy()
        pixels[0] = -2000
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(path)
    with pytest.warns(MrisrWarning, match=rf"{made.columns * made.slices} voxels are padding \(.*: -2000\)"):
        assert dicom.read(folder).data[:, 0].max() == -2000


def test_values_by_a_table_are_refused(tmp_path, made):
    folder = made.series(tmp_path)
    for path in folder.iterdir():
        dataset, item = pydicom.dcmread(path), pydicom.Dataset()
        item.LUTDescriptor, item.ModalityLUTType = [4, 0, 16], "US"
        item[0x00283006] = pydicom.DataElement(0x00283006, "OW", bytes(8))
        dataset.ModalityLUTSequence = [item]
        dataset.save_as(path)
    with pytest.raises(InputError, match=r"IM000\d: its values come from a table \(ModalityLUTSequence"):
        dicom.read(folder)


def test_two_patients_in_one_series(tmp_path, made):
    folder = made.series(tmp_path, PatientID="a")
    made.slice_file(folder, 3, PatientID="b")
    with pytest.raises(InputError, match=r"PatientID \(0010,0020\) is another in other slices"):
        dicom.read(folder)


def test_a_link_to_nothing_among_the_slices(tmp_path, made):
    """The last slice: positions cannot show that it is missing."""
    path = made.series(tmp_path) / "IM0001"
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="IM0001: is a link to a file that is not there.*volume incomplete"):
        dicom.read(tmp_path)


def test_text_in_the_source_is_text_in_the_derived(tmp_path, made):
    from mrisr.io.dicom import template

    series = dicom.find(made.series(tmp_path, BurnedInAnnotation="YES"))
    assert template.base(series, {}, "1.2.3.4").BurnedInAnnotation == "YES"
