"""Derived series: what a PACS, a validator, another converter and this reader make of them."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from mrisr import grid as grids
from mrisr.errors import InputError, MrisrWarning, OutputError, UsageError
from mrisr.io import dicom
from mrisr.volume import Volume

pydicom = pytest.importorskip("pydicom", reason="the dicom extra (pydicom) is not installed")

# The six real series of which derived ones are shown: name, group, voxel size of the result in mm.
SIX = {
    "ge_3d_oblique_phantom": (None, 2.5),
    "siemens_2d_t1w_gap_hfs": (None, 2.2),
    "siemens_xa30_enhanced_t1w": (None, 2.6),
    "hitachi_classic_one_frame": (None, 1.3),
    "philips_enhanced_b0map": (1, 2.5),
    "ge_classic_no_frame_of_reference": (None, 0.9),
}


def program(name: str) -> str:
    """The path of a program that a wheel of the dev extra installed."""
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(
        name, path=Path(sys.executable).parent
    )
    if not found:
        pytest.skip(f"{name} (extra dev) is not installed")
    return found


def quiet_find(folder, group=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MrisrWarning)
        return dicom.find(folder, group=group)


def run(series: dicom.Series, size: float, model: str = "base") -> tuple[Volume, dict]:
    """A result as mrisr makes it, geometry included, by interpolation; and its account."""
    volume = series.volume()
    target = grids.plan(volume.grid, voxel_size=size)
    index = np.linalg.inv(volume.affine) @ target.affine
    data = ndimage.affine_transform(volume.data, index[:3, :3], index[:3, 3], target.shape, order=1, mode="nearest")
    info = {
        "model": model,
        "weights": hashlib.sha256(model.encode()).hexdigest(),
        "mode": "mean",
        "input": {"voxel_size": volume.voxel_size},
        "target": {"voxel_size": target.voxel_size},
    }
    return Volume(data, target.affine), info


@pytest.fixture(scope="module")
def derived(archive, tmp_path_factory):
    """derived(name) -> (source series, result, Written), each made once."""
    made = {}

    def make(name: str):
        if name not in made:
            group, size = SIX[name]
            series = quiet_find(archive(name), group)
            result, info = run(series, size)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MrisrWarning)
                made[name] = (
                    series,
                    result,
                    dicom.write_series(result, series, info, tmp_path_factory.mktemp("derived") / "out"),
                )
        return made[name]

    return make


@pytest.mark.parametrize("name", SIX)
def test_the_validator_finds_no_error(name, derived):
    validator = program("dciodvfy")
    for path in derived(name)[2].files[:: max(1, len(derived(name)[2].files) // 2)]:
        done = subprocess.run([validator, str(path)], capture_output=True, text=True)
        found = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        assert done.returncode == 0 and not found


@pytest.mark.parametrize("name", SIX)
def test_another_converter_finds_the_planned_grid_and_the_same_voxels(name, derived, tmp_path):
    """dcm2niix of source and derived series: centre of the field of view, corners, voxels, left and right included."""
    series, result, written = derived(name)
    converted = dcm2niix(written.folder, tmp_path)
    # None of the vendors whose peculiarities it would apply.
    assert json.loads(converted.with_name("out.json").read_text()).get("Manufacturer") in (None, "Open source")
    image = nib.load(converted)
    # Same axes but for the direction of rows, which dcm2niix flips: by place, not by index.
    steps = np.linalg.inv(result.affine) @ image.affine
    assert np.allclose(steps, np.rint(steps), atol=2e-3)
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (np.array(image.shape) - 1)
    places = nib.affines.apply_affine(image.affine, corners)
    planned = nib.affines.apply_affine(result.affine, np.rint(nib.affines.apply_affine(steps, corners)))
    assert np.abs(places - planned).max() < 0.002
    index = np.indices(image.shape).reshape(3, -1).T
    there = np.rint(nib.affines.apply_affine(steps, index)).astype(int)
    ours = result.data[tuple(there.T)].reshape(image.shape)
    assert np.abs(np.asarray(image.dataobj) - ours).max() <= 0.5 * written.slope + 1e-3

    source = series.affine @ [*((np.array(series.shape) - 1) / 2), 1]
    centre = image.affine @ [*((np.array(image.shape) - 1) / 2), 1]
    assert np.abs(source - centre).max() < 0.002


def dcm2niix(folder: Path, out: Path) -> Path:
    done = subprocess.run(
        [program("dcm2niix"), "-f", "out", "-b", "y", "-z", "n", "-o", str(out), str(folder)],
        capture_output=True,
        text=True,
    )
    assert (out / "out.nii").is_file(), done.stdout
    return out / "out.nii"


@pytest.mark.parametrize("name", SIX)
def test_read_again_it_is_the_same(name, derived):
    _, result, written = derived(name)
    again = dicom.read(written.folder)
    assert np.array_equal(again.data, np.rint(result.data / written.slope).astype(np.float32) * written.slope)
    assert np.allclose(again.affine, result.affine, atol=1e-9)


@pytest.mark.parametrize("name", SIX)
def test_references_resolve_uids_are_unique_nothing_private(name, derived):
    series, result, written = derived(name)
    held = {(f.sop_instance, f.number if f.multi_frame else None): f for f in series.frames}
    normal, seen = series.frames[0].normal, set()
    for k, path in enumerate(written.files):
        ds = pydicom.dcmread(path)
        assert not [e for e in ds.iterall() if e.tag.is_private]
        assert ds.InstanceNumber == k + 1
        seen.add(ds.SOPInstanceUID)
        place = float(np.array(ds.ImagePositionPatient, float) @ normal)
        near = []
        for item in ds.SourceImageSequence:
            code = item.PurposeOfReferenceCodeSequence[0]
            assert (code.CodeValue, code.CodingSchemeDesignator) == ("121322", "DCM")
            number = int(item.ReferencedFrameNumber) if "ReferencedFrameNumber" in item else None
            near.append(float(held[item.ReferencedSOPInstanceUID, number].position @ normal))
        ends = [float(series.frames[i].position @ normal) for i in (0, -1)]
        assert len(near) <= 2
        if len(near) == 2:
            assert near[0] < place < near[1]
        elif ends[0] + 0.01 < place < ends[1] - 0.01:
            assert abs(near[0] - place) < 0.01
    assert len(seen) == len(written.files) == result.data.shape[2]
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in seen)


def test_a_reader_sees_that_it_is_synthetic_and_the_patient_stays(derived):
    series, _, written = derived("siemens_2d_t1w_gap_hfs")
    ds, source = pydicom.dcmread(written.files[0]), pydicom.dcmread(series.frames[0].part.path)
    assert list(ds.ImageType) == ["DERIVED", "SECONDARY", "M", "RESAMPLED"]
    assert ds[0x0008001C].value == "YES" and ds.BurnedInAnnotation == "NO"
    assert ds.SeriesDescription == f"{source.SeriesDescription} RESEARCH SYNTH" and len(ds.SeriesDescription) <= 64
    assert ds.SeriesNumber == source.SeriesNumber + 1000
    assert "not for diagnosis" in ds.ImageComments and "base" in ds.ImageComments
    assert ds.DerivationCodeSequence[0].CodeValue == "113085"
    assert [e.PurposeOfReferenceCodeSequence[0].CodeValue for e in ds.ContributingEquipmentSequence] == ["109102"]
    assert ds.DerivationDescription.endswith("Acquired on SIEMENS Prisma_fit.")
    kept = ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "FrameOfReferenceUID")
    for key in (*kept, "SpecificCharacterSet"):
        assert ds[key].value == source[key].value
    assert ds.SOPClassUID == pydicom.uid.MRImageStorage
    for key in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue", "RescaleSlope"):
        assert key not in ds
    assert len({(str(d.WindowCenter), str(d.WindowWidth)) for d in map(pydicom.dcmread, written.files)}) == 1


def test_the_same_job_gives_the_same_bytes_another_one_other_uids(tmp_path, made):
    folder = made.series(tmp_path / "source")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    series = quiet_find(folder)
    result, info = run(series, 0.8)
    first = dicom.write_series(result, series, info, tmp_path / "a")
    again = dicom.write_series(result, quiet_find(folder), info, tmp_path / "b")
    assert [p.read_bytes() for p in first.files] == [p.read_bytes() for p in again.files]
    other = dicom.write_series(*run(series, 0.8)[:1], series, run(series, 0.8, "other")[1], tmp_path / "c")
    assert other.series_uid != first.series_uid
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [p.name for p in first.files]


def test_the_derived_series_is_left_out_beside_its_source(tmp_path, made):
    folder = made.series(tmp_path / "source")
    series = quiet_find(folder)
    result, info = run(series, 0.8)
    dicom.write_series(result, series, info, folder / "derived")
    with pytest.warns(MrisrWarning, match="left out 1 other series .made by mrisr.: 1007 .T2w RESEARCH SYNTH"):
        assert dicom.read(folder).data.shape == series.shape


def test_what_a_folder_may_hold(tmp_path, made):
    series = quiet_find(made.series(tmp_path / "source"))
    result, info = run(series, 0.8)
    with pytest.raises(OutputError, match="holds other things .IM0001.; give a new folder"):
        dicom.write_series(result, series, info, tmp_path / "source", force=True)
    dicom.write(result, tmp_path / "out", source=tmp_path / "source", info=info)
    with pytest.raises(OutputError, match="holds a derived series already; choose another name, or force"):
        dicom.write_series(result, series, info, tmp_path / "out")
    dicom.write_series(result, series, info, tmp_path / "out", force=True)
    with pytest.raises(OutputError, match="there is no directory"):
        dicom.write_series(result, series, info, tmp_path / "none" / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file; give the name of a folder"):
        dicom.check_folder(tmp_path / "file")
    with pytest.raises(UsageError, match="expected one volume"):
        dicom.write_series(Volume(np.arange(54.0).reshape(3, 3, 3, 2), np.eye(4)), series, info, tmp_path / "four")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out", "source"]


@pytest.mark.parametrize(
    "low, high, signed, slope, clipped",
    [
        (0, 4000, False, 1, False),
        (-30, 4000, True, 1, False),
        (-30, 60000, False, 1, True),
        (-30, 90000, True, None, False),
        (-20000, 50000, True, None, False),
    ],
)
def test_integers_without_a_slope_where_the_range_allows(low, high, signed, slope, clipped, tmp_path, made):
    series = quiet_find(made.series(tmp_path / "source"))
    result, info = run(series, 0.8)
    data = np.linspace(low, high, result.data.size, dtype=np.float32).reshape(result.data.shape)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        written = dicom.write_series(Volume(data, result.affine), series, info, tmp_path / "out")
    assert bool(written.clipped) == clipped == any("stored as 0" in str(w.message) for w in said)
    assert slope is None or written.slope == slope
    ds = pydicom.dcmread(written.files[0])
    assert ds.PixelRepresentation == int(signed) and ("RescaleSlope" in ds) == (slope is None)
    again = dicom.read(tmp_path / "out").data
    assert np.abs(again - data.clip(0 if clipped else None, None)).max() <= 0.5 * written.slope * 1.001 + 0.01


def test_decimal_strings_fit_sixteen_characters(tmp_path, made):
    series = quiet_find(made.series(tmp_path / "source"))
    result, info = run(series, 0.7)
    path = dicom.write_series(result, series, info, tmp_path / "out").files[1]
    ds = pydicom.dcmread(path)
    held = [e for e in ds.iterall() if e.VR == "DS"]
    assert len(held) > 5
    for element in held:
        many = element.value if element.VM > 1 else [element.value]
        assert all(len(str(v)) <= 16 for v in many if v is not None)


def test_a_source_without_uids_is_read_and_not_written_on(tmp_path, made):
    """References could not resolve, and two such scans would get the same UIDs."""
    series = quiet_find(made.series(tmp_path / "source", SOPInstanceUID=""))
    result, info = run(series, 0.8)
    with pytest.raises(InputError, match=r"IM000\d: no SOPInstanceUID \(0008,0018\), by which .*export"):
        dicom.write_series(result, series, info, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number, written", [(None, 1000), (-5, 995), (2**31 - 1001, 2**31 - 1), (2**31 - 1, None)])
def test_the_number_of_the_series(number, written, tmp_path, made):
    series = quiet_find(made.series(tmp_path / "source", SeriesNumber=number))
    result, info = run(series, 0.8)
    ds = pydicom.dcmread(dicom.write_series(result, series, info, tmp_path / "out").files[0])
    assert ds.SeriesNumber == written


def test_a_disk_that_fills_is_one_line_and_leaves_nothing(tmp_path, made):
    """pydicom wraps what the system says into a whole traceback, without its number."""
    series = quiet_find(made.series(tmp_path / "source"))
    result, info = run(series, 0.8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))  # bytes of a file: within the pixels
    try:
        with pytest.raises(OutputError) as error:
            dicom.write_series(result, series, info, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written (File too large); make room there" in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
