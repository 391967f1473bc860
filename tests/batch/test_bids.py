"""`mrisr bids`: which files are taken, what is written, that a rerun completes and writes nothing more."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mrisr.batch import bids
from mrisr.cli.main import main
from mrisr.errors import InputError, MrisrWarning, OutputError, UsageError

OPTIONS = {"voxel_size": 1.5}


@pytest.fixture
def raw(make_scans, tmp_path):
    """Two participants, one with sessions; what is no anatomical image of ours lies beside them."""
    root = tmp_path / "raw"
    names = (
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_acq-fast_run-1_FLAIR.nii.gz",
        "sub-01/anat/sub-01_T2starw.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_T2w.nii",
        "sub-02/ses-b/anat/sub-02_ses-b_PDw.nii.gz",
    )
    make_scans(root, *names)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "Test", "BIDSVersion": "1.10.0"}))
    (root / "README").write_text("A dataset for tests, of phantoms, which are not anybody.\n" * 3)
    (root / "T1w.json").write_text(json.dumps({"MagneticFieldStrength": 3, "SliceThickness": 2}))
    (root / "sub-02/sub-02_T1w.json").write_text(json.dumps({"MagneticFieldStrength": 1.5, "SkullStripped": True}))
    for image in root.rglob("*.nii*"):
        beside = image.with_name(image.name.split(".")[0] + ".json")
        beside.write_text(json.dumps({"Manufacturer": "none"}))
    return root


def call(root, out, weights, *more) -> int:
    words = ["bids", root, out, "participant", "--model", weights, "--voxel-size", 1.5, "--threads", 1, *more]
    return main([str(w) for w in words])


def listing(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


EXPECTED = {
    "sub-01/anat/sub-01_res-1p5mm_desc-sr_T1w",
    "sub-01/anat/sub-01_acq-fast_run-1_res-1p5mm_desc-sr_FLAIR",
    "sub-02/ses-a/anat/sub-02_ses-a_res-1p5mm_desc-sr_T1w",
    "sub-02/ses-b/anat/sub-02_ses-b_res-1p5mm_desc-sr_T2w",
    "sub-02/ses-b/anat/sub-02_ses-b_res-1p5mm_desc-sr_PDw",
}
DATASET = {"dataset_description.json", "README", ".bidsignore"}


def test_the_derivative_dataset(raw, weights, tmp_path):
    out = tmp_path / "out"
    assert call(raw, out, weights, "--dtype", "int16", "--quiet") == 0
    files = {f"{name}{ending}" for name in EXPECTED for ending in (".nii.gz", ".json")}
    assert set(listing(out)) == files | DATASET and (out / "logs").is_dir()
    check_derivative(raw, out)
    image = nib.load(out / "sub-01/anat/sub-01_res-1p5mm_desc-sr_T1w.nii.gz")
    assert image.get_data_dtype() == np.int16 and image.header.get_zooms() == pytest.approx((1.5,) * 3)
    validated(raw, out)


def test_a_derivative_dataset_that_holds_its_report(raw, weights, tmp_path):
    out = tmp_path / "out"
    assert call(raw, out, weights, "--participant-label", "01", "--report", out, "--quiet") == 0
    assert main(["bids", str(raw), str(out), "group", "--quiet"]) == 0
    page = "sub-01/anat/sub-01_res-1p5mm_desc-sr_T1w"
    assert {"index.html", f"{page}.html"} <= set(listing(out))
    assert "3 without a page" in (out / "index.html").read_text(encoding="utf-8")
    validated(raw, out)


def check_derivative(raw: Path, out: Path) -> None:
    """What the validator does not notice: who made it, sources that are there, links that lead to the raw data."""
    described = json.loads((out / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative" and described["GeneratedBy"][0]["Name"] == "mrisr"
    assert {"Version", "Description"} < set(described["GeneratedBy"][0]) and described["SourceDatasets"]
    links = {name: (out / path).resolve() for name, path in described["DatasetLinks"].items()}
    assert links == {"raw": raw.resolve()}
    for path in out.rglob("sub-*.json"):
        beside = json.loads(path.read_text())
        (source,) = beside["Sources"]
        kind, name, inside = source.split(":")
        assert kind == "bids" and (links[name] / inside).is_file()
        assert beside["SpatialReference"] == "orig" and beside["Resolution"].startswith("1.5 x 1.5 x 1.5 mm")
        assert beside["SkullStripped"] is ("sub-02_ses-a" in path.name)
        assert not re.search(r'"/|tmp', path.read_text())
    for path in out.rglob("*.nii.gz"):
        entities = [part.split("-")[0] for part in path.name.split("_")[:-1]]
        assert entities.index("res") < entities.index("desc") and path.name.count(".") == 2


def validated(raw: Path, out: Path) -> None:
    """bids-validator (offline) has no error to tell of the output, nor of the input."""
    try:  # where it was installed, which need not be this interpreter's own folder: Deno lies beside it
        installed = metadata.files("bids-validator-deno") or ()
    except metadata.PackageNotFoundError:
        installed = ()
    tool = next((path.locate().resolve() for path in installed if path.stem == "bids-validator-deno"), None)
    if tool is None:
        pytest.skip("needs bids-validator-deno (extra dev); all else of this test has passed")
    for folder in (raw, out):
        done = subprocess.run([tool, folder, "--json"], capture_output=True, text=True, timeout=600)
        issues = json.loads(done.stdout)["issues"]["issues"] if done.stdout else done.stderr
        assert done.returncode == 0, issues


def test_inherited_sidecars_the_nearest_last(raw, tmp_path):
    found = {s.name: s for s in bids.find(raw, tmp_path / "out", OPTIONS)}
    one = found["sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz"]
    assert [p.relative_to(raw).as_posix() for p in one.sidecars] == [
        "T1w.json", "sub-02/sub-02_T1w.json", "sub-02/ses-a/anat/sub-02_ses-a_T1w.json",
    ]  # fmt: skip
    facts = one.read()[0].meta
    assert facts == {"MagneticFieldStrength": 1.5, "SliceThickness": 2, "Manufacturer": "none"}
    assert len(found["sub-02/ses-b/anat/sub-02_ses-b_PDw.nii.gz"].sidecars) == 1


def test_spreads_pictures_and_records_have_a_folder_of_their_own(raw, weights, tmp_path):
    out, more = tmp_path / "out", ("--participant-label", "02", "--session-label", "a", "--samples", 2, "--quiet")
    for folder in (out / "std", out, raw / "std"):
        assert call(raw, out, weights, "--std", folder, *more) == 4 and not out.exists()
    assert call(raw, out, weights, "--std", tmp_path / "std", *more[:-3]) == 2  # of one sample
    beside = ("--std", tmp_path / "std", "--info", tmp_path / "info", "--preview", raw / "derivatives/pictures")
    assert call(raw, out, weights, *beside, *more) == 0
    name = "sub-02/ses-a/anat/sub-02_ses-a_res-1p5mm_desc-sr_T1w"
    assert nib.load(tmp_path / f"std/{name}.nii.gz").get_fdata().max() > 0
    assert json.loads((tmp_path / f"info/{name}.json").read_text())["samples"] == 2
    assert (raw / f"derivatives/pictures/{name}.png").is_file()
    before = listing(tmp_path)
    assert call(raw, out, weights, *beside, *more) == 0 and listing(tmp_path) == before


def test_a_second_run_writes_nothing(raw, weights, tmp_path):
    out = tmp_path / "out"
    assert call(raw, out, weights, "--participant-label", "01", "--quiet") == 0
    before = listing(out)
    assert call(raw, out, weights, "--participant_label", "sub-01", "--quiet") == 0
    assert listing(out) == before
    assert call(raw, out, weights, "--session-label", "b", "--quiet") == 0
    made = {name for name in listing(out) if name.endswith(".nii.gz")} - set(before)
    assert len(made) == 2 and all("ses-b" in name for name in made)


def test_labels_of_the_resolution():
    assert bids._resolution((0.7, 0.7, 0.7)) == "0p7mm" and bids._resolution((1, 1, 1)) == "1mm"
    assert bids._resolution((0.7, 0.7, 1)) == "sr"


def test_voxels_that_are_no_cubes(raw, tmp_path):
    scan = bids.find(raw, tmp_path / "out", {"voxel_size": (0.7, 0.7, 1)})[0]
    assert "_res-sr_desc-sr_" in scan.target.name and scan.about["Resolution"].startswith("0.7 x 0.7 x 1 mm")


WRONG = {
    "no dataset": (lambda r: (r / "sub-01", r.parent / "o"), {}, InputError, "has no dataset_description.json"),
    "not there": (lambda r: (r / "x", r.parent / "o"), {}, InputError, "no such folder"),
    "no participant": (
        lambda r: (r, r.parent / "o"),
        {"participants": ["9"]},
        InputError,
        "has no sub-9; it has sub-01",
    ),
    "no session": (lambda r: (r, r.parent / "o"), {"sessions": ["z"]}, InputError, "no scan of ses-z"),
    "no label": (lambda r: (r, r.parent / "o"), {"participants": ["../x"]}, UsageError, "letters and digits"),
    "output is the input": (lambda r: (r, r), {}, OutputError, "lies in the raw dataset"),
    "output in the input": (lambda r: (r, r / "sub-01"), {}, OutputError, "lies in the raw dataset"),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_input(what, raw):
    given, more, error, words = WRONG[what]
    with pytest.raises(error, match=words):
        bids.find(*given(raw), OPTIONS, **more)


def test_derivatives_inside_and_another_dataset(raw, weights, tmp_path):
    assert bids.find(raw, raw / "derivatives" / "mrisr", OPTIONS)
    other = tmp_path / "other"
    other.mkdir()
    (other / "dataset_description.json").write_text('{"Name": "fmriprep", "GeneratedBy": [{"Name": "fMRIPrep"}]}')
    with pytest.raises(OutputError, match="is of another dataset"):
        bids.prepare(raw, other)


def test_who_has_no_scan_is_named(raw, tmp_path):
    (raw / "sub-03/anat").mkdir(parents=True)
    (raw / "sub-03/anat/sub-03_T2starw.nii.gz").write_bytes(b"")
    with pytest.warns(MrisrWarning, match=r"left out for want of T1w, .*: 1 of the participants \(sub-03\)"):
        assert len(bids.find(raw, tmp_path / "out", OPTIONS)) == 5
    with pytest.warns(MrisrWarning, match=r"in the sessions asked for: 2 of the participants \(sub-01, sub-03\)"):
        assert len(bids.find(raw, tmp_path / "out", OPTIONS, sessions=["a"])) == 1


def test_one_image_in_two_formats(raw, tmp_path):
    image = raw / "sub-01/anat/sub-01_T1w.nii.gz"
    nib.save(nib.load(image), image.with_suffix(""))
    with pytest.raises(OutputError, match=r"from sub-01/anat/sub-01_T1w.nii and from sub-01/anat/sub-01_T1w.nii.gz"):
        bids.find(raw, tmp_path / "out", OPTIONS)


def test_a_broken_scan_is_in_the_logs(raw, weights, tmp_path):
    out = tmp_path / "out"
    (raw / "sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"\x1f\x8bbroken")
    assert call(raw, out, weights, "--participant-label", "01", "--quiet") == 9
    (failure,) = json.loads((out / "logs/failures_sub-01.json").read_text())
    assert failure["Scan"] == "sub-01/anat/sub-01_T1w.nii.gz"
    assert (out / "sub-01/anat/sub-01_acq-fast_run-1_res-1p5mm_desc-sr_FLAIR.nii.gz").is_file()


def test_killed_in_the_middle_then_completed(raw, weights, tmp_path):
    """kill -9 while the first image is being written; the rerun has every result, and no leftover."""
    out = tmp_path / "out"
    slowly = (
        "import sys, time; from mrisr.io import nifti; real = nifti.write\n"
        "def write(volume, path, **how):\n    real(volume, path, **how); print('written', flush=True); time.sleep(60)\n"
        "nifti.write = write\n"
        "from mrisr.cli.main import main; main(sys.argv[1:])"
    )
    words = ["bids", raw, out, "participant", "--model", weights, "--voxel-size", "1.5", "--threads", "1"]
    with subprocess.Popen([sys.executable, "-c", slowly, *map(str, words)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert not list(out.glob("sub-*/**/anat/sub-*.nii.gz")) and list(out.rglob(".mrisr-*.part/sub-*.nii.gz"))
    assert call(raw, out, weights, "--quiet") == 0
    assert {p.relative_to(out).as_posix()[:-7] for p in out.rglob("sub-*.nii.gz")} == EXPECTED
    assert {p.name for p in out.rglob(".*")} == {".bidsignore"}
    check_derivative(raw, out)


def test_the_files_are_those_that_pybids_finds(raw, tmp_path):
    layout = pytest.importorskip("bids.layout", reason="needs pybids, for this comparison alone")
    found = {scan.source for scan in bids.find(raw, tmp_path / "out", OPTIONS)}
    dataset = layout.BIDSLayout(raw, validate=False)
    theirs = dataset.get(suffix=list(bids.SUFFIXES), extension=[".nii", ".nii.gz"], datatype="anat", return_type="file")
    assert found == {Path(path) for path in theirs}
    for scan in bids.find(raw, tmp_path / "out", OPTIONS):
        held = dataset.get_metadata(str(scan.source))
        assert scan.read()[0].meta.items() <= held.items()
