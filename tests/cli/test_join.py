"""``mrisr upscale --join`` and ``mrisr bids --join``: NIfTI, DICOM, a BIDS session."""

from __future__ import annotations

import json
import re

import nibabel as nib
import numpy as np
import pytest

from tests.stacks import FINE, phantom, series, stack

pytest.importorskip("SimpleITK", reason="SimpleITK is not installed (extra join)")
NAMES = {2: "ax", 0: "sag", 1: "cor"}
HOW = ("--voxel-size", 1, "--threads", 1)


@pytest.fixture(scope="module")
def stacks():
    truth = phantom()
    return {name: stack(truth, axis) for axis, name in NAMES.items()}


def written(volume, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume.data, volume.affine), path)
    return path


def test_three_images_become_one(stacks, weights, tmp_path, mrisr_command):
    paths = [written(v, tmp_path / f"{name}.nii.gz") for name, v in stacks.items()]
    out = tmp_path / "out.nii.gz"
    common = ("upscale", "--join", "-i", *paths, "-o", out, "--model", weights, *HOW)
    end = mrisr_command(*common, "--reference", 1, "--skip-existing")
    assert (end.code, end.errors) == (0, []) and "joined with 2 more" in end.out + end.err
    image, told = nib.load(out), json.loads((tmp_path / "out.json").read_text())
    assert image.shape == FINE.shape and np.allclose(image.affine, FINE.affine)
    assert told["Sources"] == ["sag.nii.gz", "ax.nii.gz", "cor.nii.gz"]
    own = told["Mrisr"]
    assert [s["Name"] for s in own["Stacks"]] == told["Sources"] and own["Stacks"][1]["Registered"]
    assert [o["Name"] for o in own["Input"]["JoinedWith"]] == told["Sources"][1:]
    middle = np.array([*FINE.center, 1])  # nothing has moved
    assert np.allclose(own["Stacks"][2]["TransformMM"] @ middle, middle, atol=0.1) and str(tmp_path) not in str(told)
    assert "skipped" in mrisr_command(*common, "--reference", 1, "--skip-existing").err
    end = mrisr_command(*common)
    assert end.code == 4 and len(end.errors) == 1  # it is there
    end = mrisr_command("upscale", "--join", "-i", *paths, "-o", paths[0], "--force", "--model", weights, *HOW)
    assert end.code == 4 and "is a file of the input" in end.errors[0]


def test_an_image_of_one_frame_is_one_stack(stacks, weights, tmp_path, mrisr_command):
    """[X, Y, Z, 1], which converters write: also as the reference, by whose frames 4D results are written."""
    ax = stacks["ax"]
    nib.save(nib.Nifti1Image(ax.data[..., None], ax.affine), tmp_path / "ax.nii.gz")
    paths = tmp_path / "ax.nii.gz", written(stacks["sag"], tmp_path / "sag.nii.gz")
    out = tmp_path / "out.nii.gz"
    end = mrisr_command("upscale", "--join", "-i", *paths, "-o", out, "--model", weights, *HOW)
    assert (end.code, end.errors) == (0, []) and nib.load(out).shape == FINE.shape


@pytest.mark.parametrize("given", ["file", "folder", "frames", "series"])
def test_one_alone_is_as_without_joining(stacks, weights, tmp_path, mrisr_command, given):
    """As in Python, where a list of one is that one; also of several frames, by a folder or by a series' number."""
    volume = stacks["ax"] if given != "frames" else stacks["ax"].replace(np.stack([stacks["ax"].data] * 2, axis=3))
    source, series_of = written(volume, tmp_path / "in" / "ax.nii.gz"), ()
    if given == "folder":
        source = source.parent
    elif given == "series":
        pytest.importorskip("pydicom", reason="the dicom extra (pydicom) is not installed")
        source, series_of = series(volume, tmp_path / "study", 3), ("--series", "3")
    results = []
    for name, how in (("plain", ()), ("joined", ("--join", "--no-register", "--join-force"))):
        out = tmp_path / f"{name}.nii.gz"
        end = mrisr_command("upscale", *how, "-i", source, *series_of, "-o", out, "--model", weights, *HOW)
        assert (end.code, end.errors) == (0, []), end
        record = json.loads((tmp_path / f"{name}.json").read_text())["Mrisr"]
        assert "Stacks" not in record and "joined with" not in end.out + end.err
        results.append((nib.load(out).get_fdata(), record["Options"]))
    assert np.array_equal(results[0][0], results[1][0]) and results[0][1] == results[1][1]


def test_what_is_refused_leaves_nothing(stacks, weights, tmp_path, mrisr_command):
    first = written(stacks["ax"], tmp_path / "in" / "ax.nii.gz")
    second = written(stacks["sag"].replace(1000 - stacks["sag"].data), tmp_path / "in" / "flair.nii.gz")
    out = tmp_path / "out.nii.gz"
    common = ("upscale", "-o", out, "--model", weights, *HOW)
    for words, code, text in (
        (("--join", "-i", first, second), 3, "flair.nii.gz: is unlike"),
        (("--join", "--reference", 1, "-i", first), 2, "expected a number from 0 to 0, found 1"),
        (("--join", "--reference", 2, "-i", first, second), 2, "expected a number from 0 to 1"),
        (("-i", first, "--no-register"), 2, "--no-register: needs --join"),
        (("-i", first, "--reference", 0), 2, "--reference: needs --join"),
        (("-i", first, second), 2, "give a folder"),
    ):
        end = mrisr_command(*common, *words)
        assert end.code == code and len(end.errors) == 1 and text in end.errors[0]
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    end = mrisr_command(*common, "--join", "--join-force", "-i", first, second)
    assert end.code == 0 and any("joined all the same" in line for line in end.warnings)


def images(stacks):
    """Images that do not belong beside `ax.nii.gz`, by name: (what is written, what is said of it)."""
    sag = stacks["sag"]
    away = sag.affine.copy()
    away[0, 3] += 200
    nowhere = nib.Nifti1Image(sag.data, None)
    nowhere.header.set_zooms(sag.voxel_size)
    nowhere.header["sform_code"] = nowhere.header["qform_code"] = 0
    plain = nib.Nifti1Image(sag.data, sag.affine)
    return {
        "away": (nib.Nifti1Image(sag.data, away), None, "does not overlap ax.nii.gz by a third of the head"),
        "series": (nib.Nifti1Image(np.stack([sag.data] * 3, axis=3), sag.affine), None, "3 frames; stacks to join"),
        "nowhere": (nowhere, None, "its header does not say where it lies"),
        "person": (nib.Nifti1Image(stack(phantom(7), 0).data, sag.affine), None, "is unlike ax.nii.gz, correlation"),
        "patient": (plain, {"PatientID": "2"}, r"is of another patient than ax.nii.gz \(PatientID\)"),
        "frame": (plain, {"FrameOfReferenceUID": "1.3"}, "is of another frame of reference than"),
        "echo": (plain, {"EchoTime": 0.09}, r"has another contrast than ax.nii.gz \(EchoTime 90 and 10 ms\)"),
    }


@pytest.mark.parametrize("name", ["away", "series", "nowhere", "person", "patient", "frame", "echo"])
def test_an_image_that_does_not_belong(stacks, weights, tmp_path, mrisr_command, name):
    first = written(stacks["ax"], tmp_path / "ax.nii.gz")
    facts = {"EchoTime": 0.01, "PatientID": "1", "FrameOfReferenceUID": "1.2"}
    (tmp_path / "ax.json").write_text(json.dumps(facts))
    image, sidecar, text = images(stacks)[name]
    second = tmp_path / f"{name}.nii.gz"
    nib.save(image, second)
    if sidecar:
        second.with_name(f"{name}.json").write_text(json.dumps(sidecar))
    before = sorted(tmp_path.iterdir())
    common = ("upscale", "--join", "-o", tmp_path / "out.nii.gz", "--model", weights, *HOW)
    for pair in ((first, second), (second, first)) if name == "nowhere" else ((first, second),):
        end = mrisr_command(*common, "-i", *pair)
        assert end.code == 3 and len(end.errors) == 1
        assert re.search(f"{name}.nii.gz: {text}", end.errors[0].replace(f"{tmp_path}/", "")), end.errors
        assert sorted(tmp_path.iterdir()) == before
    if name == "echo":
        end = mrisr_command(*common, "-i", first, second, "--join-force")
        assert end.code == 0 and any("another contrast" in line for line in end.warnings)
        own = json.loads((tmp_path / "out.json").read_text())["Mrisr"]["Stacks"]
        assert [s["Gain"] for s in own] == pytest.approx([1, 1], abs=0.01)


def test_several_series_of_one_study(stacks, weights, tmp_path, mrisr_command):
    pydicom = pytest.importorskip("pydicom", reason="the dicom extra (pydicom) is not installed")
    study = tmp_path / "study"
    for number, volume in enumerate(stacks.values(), start=3):
        series(volume, study, number)
    common = ("--model", weights, *HOW)
    end = mrisr_command("upscale", "--join", "-i", study, "--series", "3,4,5", "-o", tmp_path / "derived", *common)
    assert (end.code, end.errors) == (0, [])
    slices = [pydicom.dcmread(p) for p in sorted((tmp_path / "derived").iterdir())]
    assert len(slices) == FINE.shape[2] and slices[0].StudyInstanceUID == "1.2"
    for ds in (slices[0], slices[-1]):
        sources = {item.ReferencedSOPInstanceUID for item in ds.SourceImageSequence}
        assert {f"1.2.{n}.{k}" for n in (4, 5) for k in range(1, 11)} <= sources and any(
            uid.startswith("1.2.3.") for uid in sources
        )
        assert "Joined with 2 more series" in ds.DerivationDescription
    told = json.loads((tmp_path / "derived.json").read_text())["Mrisr"]
    assert len(told["Stacks"]) == 3 and min(s["Correlation"] for s in told["Stacks"]) > 0.97


@pytest.mark.parametrize(
    "facts, text",
    [
        ({"PatientID": "2"}, "is of another patient"),
        ({"FrameOfReferenceUID": "1.2.10"}, "is of another frame of reference"),
        ({"EchoTime": 90}, r"has another contrast than .*EchoTime 90 and 10 ms"),
    ],
)
def test_series_of_two_heads_or_contrasts(stacks, weights, tmp_path, mrisr_command, facts, text):
    one = series(stacks["ax"], tmp_path / "a", 3)
    two = series(stacks["sag"], tmp_path / "b", 4, **facts)
    end = mrisr_command("upscale", "--join", "-i", one, two, "-o", tmp_path / "out", "--model", weights, *HOW)
    assert end.code == 3 and len(end.errors) == 1
    assert re.search(text, end.errors[0]) and not (tmp_path / "out").exists()


def test_a_session_of_a_bids_dataset(stacks, weights, tmp_path, mrisr_command):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for name, volume in stacks.items():
        written(volume, raw / f"sub-01/anat/sub-01_acq-{name}_T1w.nii.gz")
    written(stacks["sag"], raw / "sub-01/anat/sub-01_T1w.nii.gz")  # of no orientation: no stack of these
    written(stacks["ax"], raw / "sub-02/anat/sub-02_acq-ax_T1w.nii.gz")
    (raw / "dataset_description.json").write_text(json.dumps({"Name": "Test", "BIDSVersion": "1.10.0"}))
    end = mrisr_command("bids", raw, out, "participant", "--join", "--model", weights, *HOW)
    assert (end.code, end.errors) == (0, [])
    joined = out / "sub-01/anat/sub-01_res-1mm_desc-join_T1w.nii.gz"
    assert nib.load(joined).shape == FINE.shape
    told = json.loads(joined.with_name(joined.name.replace(".nii.gz", ".json")).read_text())
    assert told["Sources"] == [f"bids:raw:sub-01/anat/sub-01_acq-{n}_T1w.nii.gz" for n in ("ax", "sag", "cor")]
    assert len(told["Mrisr"]["Stacks"]) == 3
    names = sorted(p.name for p in (out / "sub-01/anat").glob("*.nii.gz"))
    assert names == [joined.name, "sub-01_res-1mm_desc-sr_T1w.nii.gz"]
    assert [p.name for p in (out / "sub-02/anat").glob("*.nii.gz")] == ["sub-02_acq-ax_res-1mm_desc-sr_T1w.nii.gz"]
    end = mrisr_command("bids", raw, out, "participant", "--join", "--model", weights, *HOW)
    assert end.code == 0 and "3 skipped" in end.out + end.err
