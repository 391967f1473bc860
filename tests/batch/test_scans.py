"""The one rule of what -i and -o mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from mrisr.batch import scans
from mrisr.errors import InputError, MrisrWarning, OutputError, UsageError
from mrisr.io.dicom import parts


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def dicom_series(folder: Path, number: int, description: str, count: int = 2) -> Path:
    """Files with the header of an MR series and no pixels: enough to be told apart."""
    pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, f"1.2.{number}.{k + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        header.SOPClassUID, header.SOPInstanceUID = MRImageStorage, f"1.2.{number}.{k + 1}"
        header.SeriesInstanceUID, header.SeriesNumber = f"1.2.{number}", number
        header.SeriesDescription, header.Rows = description, 4
        header.save_as(folder / f"{number}_{k}", enforce_file_format=True)
    return folder


def targets(work, output: Path) -> dict[str, str]:
    return {scan.name: scan.target.relative_to(output).as_posix() for scan in work.scans}


@pytest.fixture
def places(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in", tmp_path / "out"


def test_one_file_to_one_file(places):
    source, out = places
    touched(source, "a.nii.gz")
    work = scans.find(source / "a.nii.gz", out.with_suffix(".mgz"))
    assert work.folder is None and work.scans[0].target == out.with_suffix(".mgz")


def test_a_folder_keeps_names_and_subfolders(places):
    source, out = places
    touched(source, "a.nii.gz", "s1/a.nii", "s1/deep/b.mgz", "p.hdr", "p.img", ".hidden.nii", ".git/x.nii", "note.txt")
    assert targets(scans.find(source, out), out) == {
        "a.nii.gz": "a.nii.gz", "p.hdr": "p.nii", "s1/a.nii": "s1/a.nii", "s1/deep/b.mgz": "s1/deep/b.mgz",
    }  # fmt: skip
    assert [f.name for f in scans.find(source / "p.hdr", out).scans[0].files] == ["p.hdr", "p.img"]


def test_one_file_into_a_folder(places):
    source, out = places
    touched(source, "s/a.nii.gz")
    assert targets(scans.find(source / "s" / "a.nii.gz", out), out) == {"a.nii.gz": "a.nii.gz"}


def test_patterns_lists_and_several_paths_are_the_same_batch(places, tmp_path):
    source, out = places
    touched(source, "s1/a.nii", "s2/a.nii", "s2/b.txt")
    expected = {"s1/a.nii": "s1/a.nii", "s2/a.nii": "s2/a.nii"}
    listed = tmp_path / "list.txt"
    listed.write_text("# two scans\nin/s1/a.nii\n\nin/s2/*.nii\n")
    for inputs in ([source / "s1/a.nii", source / "s2/a.nii"], f"{source}/*/*.nii", f"{source}/**/*.nii", listed):
        assert targets(scans.find(inputs, out), out) == expected, inputs


def test_links_to_folders_are_followed_once(places):
    source, out = places
    touched(source, "s/a.nii")
    (source / "s" / "round").symlink_to(source)
    assert targets(scans.find(source, out), out) == {"s/a.nii": "s/a.nii"}


def test_one_dicom_series_is_one_scan(places):
    source, out = places
    dicom_series(source / "IMG", 3, "t1 mprage")
    work = scans.find(source, out)
    assert len(work.scans) == 1 and work.scans[0].to_dicom and work.scans[0].target == out
    assert len(work.scans[0].files) == 2
    single = scans.find(source, out.with_suffix(".nii.gz"), series="t1")
    assert single.folder is None and (single.scans[0].source, single.scans[0].series) == (source, "t1")
    assert targets(scans.find(source, out, form="nifti"), out) == {"in": "in.nii.gz"}
    assert targets(scans.find([source, source / "IMG" / "3_0"], out, form="nifti"), out)


def test_every_series_gets_a_folder(places):
    source, out = places
    dicom_series(source / "x", 3, "t1 mprage")
    dicom_series(source / "x", 4, "flair")
    one = scans.find(source, out)  # which of the two, reading says: there they are listed
    assert len(one.scans) == 1 and len(one.scans[0].files) == 4
    every = scans.find(source, out, every_series=True)
    assert targets(every, out) == {"x/3_t1_mprage": "x/3_t1_mprage", "x/4_flair": "x/4_flair"}
    assert [scan.series for scan in every.scans] == ["1.2.3", "1.2.4"]


def test_images_beside_dicom_are_named_not_mixed_in(places):
    source, out = places
    dicom_series(source / "x", 3, "t1")
    touched(source, "x/mask.nii.gz", "y/a.nii")
    with pytest.warns(MrisrWarning, match=r"1 images beside them are left out \(mask.nii.gz\)"):
        work = scans.find(source, out, every_series=True)
    assert {s.name for s in work.scans} == {"x/3_t1", "y/a.nii"}


WRONG = {
    "an empty folder": ([], lambda s, o: (s, o), InputError, "holds no scan"),
    "nothing there": ([], lambda s, o: (s / "no.nii", o), InputError, "no such file"),
    "a pattern of nothing": ([], lambda s, o: (f"{s}/*.nii", o), InputError, "matches no file"),
    "no scan": (["a.doc"], lambda s, o: (s / "a.doc", o), InputError, "expected a file name in"),
    "many to one": (["a.nii", "b.nii"], lambda s, o: (s, o.with_suffix(".nii")), UsageError, "hold 2 scans"),
    "twice": (["a.nii"], lambda s, o: ([s / "a.nii", s], o), UsageError, "given twice"),
    "one target": (["p.hdr", "p.nii"], lambda s, o: (s, o), OutputError, "p.hdr and from p.nii"),
    "one sidecar": (["a.mgz", "a.nii"], lambda s, o: (s, o), OutputError, "rename one of them"),
    "inside the input": (["a.nii"], lambda s, o: (s, s / "sub"), OutputError, "lies inside the input"),
    "the input itself": (["a.nii"], lambda s, o: (s, s), OutputError, "is the folder of the originals"),
    "a list of absent files": (["l.txt"], lambda s, o: (s / "l.txt", o), InputError, "line 1 names"),
    "another format": (["a.nii"], lambda s, o: (s / "a.nii", o.with_suffix(".mha")), OutputError, "not known"),
    "an original": (["a.nii"], lambda s, o: (s / "a.nii", s), OutputError, "is the original a.nii itself"),
    "an original by a pattern": (["a.nii", "b.nii"], lambda s, o: (f"{s}/?.nii", s), OutputError, "is the original"),
    "found by the next run": (["x/a.nii"], lambda s, o: (f"{s}/**/*.nii", s / "o"), OutputError, "the next run would"),
    "entered by the next run": (["x/a.nii"], lambda s, o: (f"{s}/*", s / "o" / "p"), OutputError, "the next run would"),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_input_is_one_line(what, places):
    names, given, error, words = WRONG[what]
    source, out = places
    touched(source, *names)
    with pytest.raises(error, match=words) as caught:
        scans.find(*given(source, out))
    assert "\n" not in str(caught.value) and not out.exists()


def test_an_absent_file_of_a_list_by_its_line(places):
    source, out = places
    touched(source, "a.nii")
    (source / "l.txt").write_text("# scans\n\na.nii\n b.nii\n")
    with pytest.raises(InputError, match=r"l.txt: line 4 names .*b.nii, which is not there \(1 of 2 are missing\)"):
        scans.find(source / "l.txt", out)


def test_a_pattern_in_a_list_is_no_pattern_of_its_folder(places):
    source, out = places
    touched(source / "old [1] ü", "a.nii", "s/b.nii")
    (source / "old [1] ü" / "l.txt").write_text("*.nii\ns/b.nii\n")
    assert list(targets(scans.find(source / "old [1] ü" / "l.txt", out), out)) == ["a.nii", "s/b.nii"]


def test_notes_that_cannot_be_read_stop_nobody(places, monkeypatch):
    source, out = places
    touched(source, "a.nii", "notes.txt", "IM_1")
    refused = ["notes.txt"]
    real = parts.Part.read

    def read(part, *most):
        if part.name in refused:
            raise InputError(f"{part}: cannot be read (Permission denied)")
        return real(part, *most)

    monkeypatch.setattr(parts.Part, "read", read)
    assert list(targets(scans.find(source, out), out)) == ["a.nii"]
    refused.append("IM_1")  # it may be a slice
    with pytest.raises(InputError, match="IM_1: cannot be read"):
        scans.find(source, out)


def test_only_dicom_becomes_dicom(places):
    source, out = places
    touched(source, "a.nii")
    with pytest.raises(UsageError, match="only DICOM can become DICOM"):
        scans.find(source, out, form="dicom")


def test_lists_as_other_systems_write_them_and_lists_of_lists(places):
    source, out = places
    touched(source, "a.nii", "b.nii")
    (source / "w.txt").write_bytes(b"\xef\xbb\xbfa.nii\r\n\r\nmore.txt\r\n")
    (source / "more.txt").write_text("b.nii")
    assert list(targets(scans.find(source / "w.txt", out), out)) == ["a.nii", "b.nii"]
    (source / "more.txt").write_text("w.txt")
    with pytest.raises(InputError, match=r"w.txt: the list names itself \(by way of .*more.txt\); take that line out"):
        scans.find(source / "w.txt", out)


def test_images_of_other_formats_are_named(places):
    source, out = places
    touched(source, "a.nii", "b/c.nrrd", "d.MNC", "e+orig.HEAD", "e+orig.BRIK", "notes.md")
    with pytest.warns(
        MrisrWarning, match=r"left out 3 images of formats not read here \(d.MNC, e\+orig.HEAD, b/c.nrrd\)"
    ):
        assert list(targets(scans.find(source, out), out)) == ["a.nii"]


def test_both_halves_of_a_pair_in_capitals_are_one_scan(places):
    source, out = places
    touched(source, "A.HDR", "A.IMG")
    assert list(targets(scans.find(source, out), out)) == ["A.HDR"]
