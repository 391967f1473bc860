"""What odd vendors, archives and senders do: read right, or refused by name; nothing of it is written on."""

from __future__ import annotations

import io
import resource
import warnings
import zipfile

import numpy as np
import pytest

from mrisr.errors import InputError, MrisrError, MrisrWarning
from mrisr.io import dicom

pydicom = pytest.importorskip("pydicom", reason="the dicom extra (pydicom) is not installed")
INFO = {"model": "base", "weights": "0" * 64, "mode": "mean"}


def written(folder, out):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MrisrWarning)
        series = dicom.find(folder)
        found = dicom.write_series(series.volume(), series, INFO, out)
    return series, [pydicom.dcmread(path) for path in found.files]


def private(folder):
    """Private blocks of three kinds: with creator, without, and of an unknown representation, in a sequence too."""
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        block = dataset.private_block(0x0029, "ODD VENDOR 1.0", create=True)
        block.add_new(0x10, "UN", b"\x00\xff" * 40)
        block.add_new(0x11, "SQ", [pydicom.Dataset()])
        dataset.add_new(0x00091001, "LO", "no creator")
        item = pydicom.Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "99ODD", "x"
        item.add_new(0x00431010, "UN", b"abc")
        dataset.ProcedureCodeSequence = [item]
        dataset.save_as(path)


def test_private_elements_of_odd_vendors_are_not_written_on(tmp_path, made):
    private(made.series(tmp_path / "source"))
    _, found = written(tmp_path / "source", tmp_path / "out")
    for dataset in found:
        assert not [e for e in dataset.iterall() if e.tag.is_private]
        assert "99ODD" not in str(dataset)


def test_what_is_odd_about_names_and_uids_is_not_said_aloud(tmp_path, made, capsys):
    """pydicom's own warnings print what they are about: a patient's name, a UID."""
    odd = dict(PatientName="DOE^" + "x" * 100, StudyInstanceUID="not.a.uid", PatientBirthDate="next year")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.series(tmp_path / "source", **odd)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        series = dicom.find(tmp_path / "source")
        found = dicom.write_series(series.volume(), series, INFO, tmp_path / "out")
    assert [w for w in said if not issubclass(w.category, MrisrWarning)] == []
    assert not any("DOE" in str(w.message) or "not.a.uid" in str(w.message) for w in said)
    with pydicom.config.disable_value_validation():
        assert pydicom.dcmread(found.files[0]).StudyInstanceUID == "not.a.uid"


@pytest.mark.parametrize(
    "charset, name",
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 192", "山田^太郎=やまだ"),
        ("ISO_IR 144", "Люкceмбypг"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("GB18030", "王^小东"),
    ],
)
def test_names_survive_in_their_character_set(charset, name, tmp_path, made):
    made.series(tmp_path / "source", SpecificCharacterSet=charset, PatientName=name, SeriesDescription="T1")
    series, found = written(tmp_path / "source", tmp_path / "out")
    for dataset in found:
        assert str(dataset.PatientName) == name
        assert dataset.SpecificCharacterSet == series.frames[0].values.layers[-1].SpecificCharacterSet


def test_a_character_set_that_nobody_knows_loses_no_byte(tmp_path, made):
    raw = {0x00080005: ("CS", b"ISO_IR 999"), 0x00100010: ("PN", b"M\xfcller ")}
    made.series(tmp_path / "source", raw=raw)
    try:
        _, found = written(tmp_path / "source", tmp_path / "out")
    except MrisrError as error:
        assert "\n" not in str(error) and "anonymise" in str(error)
        return
    assert "ller" in str(found[0].PatientName)


def test_several_values_where_one_is_due(tmp_path, made):
    made.series(tmp_path / "source", raw={0x00180050: ("DS", b"3.0\\3.5 ")})
    with pytest.raises(InputError, match=r"SliceThickness \(0018,0050\): expected one number, found '3.0\\\\3.5'"):
        dicom.read(tmp_path / "source")


def test_descriptions_of_several_values_stay_one_line(tmp_path, made):
    made.series(tmp_path / "source", raw={0x0008103E: ("LO", b"T1\\MPR\\cor ")})
    _, found = written(tmp_path / "source", tmp_path / "out")
    assert found[0]["SeriesDescription"].VM == 1
    assert "RESEARCH SYNTH" in found[0].SeriesDescription and len(found[0].SeriesDescription) <= 64


def zipped(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for k, file in enumerate(sorted(folder.iterdir())):
            archive.write(file, f"{prefix}{'ab'[k % 2]}/deep/er/{file.name}")
    return path


def test_a_zip_with_nested_folders(tmp_path, made):
    folder = made.series(tmp_path / "source")
    path = zipped(folder, tmp_path / "all.zip", "PATIENT/STUDY/")
    assert np.array_equal(dicom.read(path).data, dicom.read(folder).data)


def test_a_zip_in_a_zip_is_said_and_not_opened(tmp_path, made):
    inner = zipped(made.series(tmp_path / "source"), tmp_path / "inner.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(inner, "inner.zip")
    with pytest.raises(InputError, match="outer.zip") as error:
        dicom.read(tmp_path / "outer.zip")
    assert "\n" not in str(error.value)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """400 MB of zeros behind a DICOM's first bytes, in 400 kB."""
    head = b"\0" * 128 + b"DICM"
    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("slice.dcm", "w", force_zip64=True) as member,
    ):
        member.write(head)
        for _ in range(24):
            member.write(bytes(1 << 24))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as error:
        dicom.read(tmp_path / "bomb.zip")
    assert "bomb.zip" in str(error.value) and "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_names_in_a_zip_that_leave_it_are_names_only(tmp_path, made):
    folder = made.series(tmp_path / "source")
    with zipfile.ZipFile(tmp_path / "up.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"../../../{file.name}")
    before = sorted(p.name for p in tmp_path.iterdir())
    assert dicom.read(tmp_path / "up.zip").data.shape == (made.columns, made.rows, made.slices)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def enhanced(made, turn_of_last=None):
    """One enhanced instance; its frames state the orientation each for itself."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2", "1.2.3", "1.2.9"
    dataset.Modality, dataset.SeriesNumber, dataset.NumberOfFrames = "MR", 4, made.slices
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = made.rows, made.columns, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
    dataset.PixelData = np.stack([made.pixel(k) for k in range(made.slices)]).astype("<u2").tobytes()
    frames = []
    for k in range(made.slices):
        frame, place, turn, measures = (pydicom.Dataset() for _ in range(4))
        place.ImagePositionPatient = [round(float(v), 8) for v in made.position(k)]
        axes = made.turn if turn_of_last is None or k + 1 < made.slices else turn_of_last
        turn.ImageOrientationPatient = [round(float(v), 8) for v in (*axes[:, 0], *axes[:, 1])]
        measures.PixelSpacing, measures.SliceThickness = list(made.spacing), 3.0
        frame.PlanePositionSequence, frame.PlaneOrientationSequence = [place], [turn]
        frame.PixelMeasuresSequence = [measures]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    return dataset


def test_enhanced_with_the_orientation_per_frame(tmp_path, made):
    enhanced(made).save_as(tmp_path / "all.dcm", enforce_file_format=True)
    volume, classic = dicom.read(tmp_path / "all.dcm"), dicom.read(made.series(tmp_path / "classic"))
    assert np.array_equal(volume.data, classic.data)
    assert np.allclose(volume.affine, classic.affine, atol=1e-6)


def test_enhanced_whose_last_frame_lies_otherwise(tmp_path, made):
    turned = made.turn @ np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    enhanced(made, turned).save_as(tmp_path / "all.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match="mixed orientation, 2 groups"):
        dicom.read(tmp_path / "all.dcm")


def directory(folder, names):
    from pydicom.fileset import FileSet

    held = FileSet()
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.PatientID, dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "p", "20260101", "1200", "1"
        held.add(dataset)
    held.write(names)
    return names / "DICOMDIR"


def test_a_dicomdir_some_of_whose_files_are_gone(tmp_path, made):
    """Inside of the stack it is a missing slice; at an end it is said."""
    listed = directory(made.series(tmp_path / "source"), tmp_path / "disc")
    files = sorted((p for p in listed.parent.rglob("*") if p.is_file() and p != listed),
                   key=lambda p: float(pydicom.dcmread(p).ImagePositionPatient[2]))  # fmt: skip
    files[0].unlink()
    with pytest.warns(MrisrWarning, match="listed in the DICOMDIR, but not there"):
        assert dicom.read(listed).data.shape[2] == made.slices - 1
    for path in files[1:]:
        path.unlink()
    with pytest.raises(InputError, match=f"none of its {made.slices} images is there"):
        dicom.read(listed)


def test_a_stream_of_bytes_is_no_dicom(tmp_path):
    (tmp_path / "IM1").write_bytes(io.BytesIO(b"\x08\x00\x05\x00CS\xff\xff" * 50).getvalue())
    with pytest.raises(InputError) as error:
        dicom.read(tmp_path / "IM1")
    assert "\n" not in str(error.value)
