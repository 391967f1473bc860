"""``mrisr upscale --adapt``: files, records, batches, DICOM, and what is refused before anything is written."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from mrisr.adapt import learn as learning
from mrisr.adapt import pairs as of_pairs
from mrisr.adapt import run, seconds
from mrisr.nn.presets import build
from mrisr.train.checkpoint import export_weights
from tests.stacks import FINE, phantom, series, stack

HOW = ("--voxel-size", 1, "--threads", 1, "--engine", "torch")
ADAPT = ("--adapt", 600)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(seconds, "STEPS", 3)
    monkeypatch.setattr(of_pairs, "VOXELS", 32**3)
    monkeypatch.setattr(learning, "RATE", 2e-3)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Weights of a preset that can learn here, with random detail, which is worse than none."""
    torch.manual_seed(0)
    net = build("student")
    torch.nn.init.normal_(net.exit.weight, std=0.05)
    path = tmp_path_factory.mktemp("weights") / "student.safetensors"
    export_weights(path, net.state_dict(), {"format": 1, "preset": "student", "sigma_data": 0.05})
    return path


@pytest.fixture
def scan(tmp_path):
    return stored(stack(phantom(), 2), tmp_path / "in" / "ax.nii.gz")


def stored(volume, path):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(volume.data, volume.affine), path)
    return path


def left(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_adapted_recorded_and_kept(scan, student, tmp_path, mrisr_command):
    out, kept = tmp_path / "out.nii.gz", tmp_path / "kept.safetensors"
    line = ("upscale", "-i", scan, "-o", out, "--model", student, *HOW, *ADAPT, "--report", tmp_path / "report")
    end = mrisr_command(*line, "--keep-adapted", kept)
    assert (end.code, end.errors) == (0, [])
    assert "learnt from the scan: 3 steps, held-back planes +" in end.out + end.err
    own = json.loads((tmp_path / "out.json").read_text())["Mrisr"]
    told = own["Adapted"]
    assert told["Used"] and told["InTime"] and told["Steps"] == told["StepsPlanned"] == 3 and told["SlicesMM"] == 4
    assert told["HeldBackGainDB"] > 0 and len(told["Loss"]) == 2 and told["SecondsAtMost"] == 600
    assert own["WeightsSHA256"] != told["WeightsSHA256"] and own["Options"]["adapt"] == 600
    assert str(tmp_path) not in json.dumps(own) and own["Model"] == "student.safetensors, adapted"
    assert any("Learnt from the scan" in page.read_text() for page in (tmp_path / "report").rglob("*.html"))
    # The same again is known by its record, and made anew without adapting.
    assert "skipped" in mrisr_command(*line, "--skip-existing").err
    # The weights that were kept give the same picture, and say which they are.
    again = tmp_path / "again.nii.gz"
    end = mrisr_command("upscale", "-i", scan, "-o", again, "--model", kept, *HOW)
    assert (end.code, end.errors) == (0, [])
    assert np.array_equal(nib.load(again).get_fdata(), nib.load(out).get_fdata())
    record = json.loads((tmp_path / "again.json").read_text())["Mrisr"]
    assert record["WeightsSHA256"] == told["WeightsSHA256"]
    assert "Adapted" not in record and "adapt" not in record["Options"]


def test_a_fall_back_keeps_no_weights_and_says_so(scan, student, tmp_path, mrisr_command, monkeypatch):
    out, kept = tmp_path / "out.nii.gz", tmp_path / "kept.safetensors"
    gains = iter((20.0, 19.5) * 2)
    monkeypatch.setattr(run, "judged", lambda *_: next(gains))
    line = ("upscale", "-i", scan, "--model", student, *HOW)
    end = mrisr_command(*line, "-o", out, *ADAPT, "--keep-adapted", kept)
    assert end.code == 0 and any("gained nothing" in text and "is not written" in text for text in end.warnings)
    assert left(tmp_path) == ["in/ax.nii.gz", "out.json", "out.nii.gz"]
    assert json.loads((tmp_path / "out.json").read_text())["Mrisr"]["Adapted"]["Used"] is False
    plain = tmp_path / "plain.nii.gz"
    mrisr_command(*line, "-o", plain)
    assert np.array_equal(nib.load(plain).get_fdata(), nib.load(out).get_fdata())
    kept.write_bytes(b"of an earlier run")
    end = mrisr_command(*line, "-o", out, *ADAPT, "--keep-adapted", kept, "--force")
    assert end.code == 0 and any("is of an earlier run, and stays" in text for text in end.warnings), end
    assert kept.read_bytes() == b"of an earlier run"


def test_each_scan_of_a_batch_learns_for_itself_and_what_cannot_fails_alone(scan, student, tmp_path, mrisr_command):
    stored(stack(phantom(3), 0), tmp_path / "in" / "sag.nii.gz")
    even = stack(phantom(), 2)
    stored(even.replace(phantom(), FINE.affine), tmp_path / "in" / "even.nii.gz")
    out = tmp_path / "out"
    end = mrisr_command("upscale", "-i", tmp_path / "in", "-o", out, "--model", student, *HOW, *ADAPT)
    assert end.code == 9 and len(end.errors) == 1 and "even.nii.gz: adapt: has no sharp plane" in end.errors[0]
    told = [json.loads((out / f"{name}.json").read_text())["Mrisr"] for name in ("ax", "sag")]
    assert told[0]["WeightsSHA256"] == told[1]["WeightsSHA256"]
    assert told[0]["Adapted"]["WeightsSHA256"] != told[1]["Adapted"]["WeightsSHA256"]
    assert left(out) == ["ax.json", "ax.nii.gz", "failures.json", "sag.json", "sag.nii.gz"]


def test_a_dicom_series_learns_too(student, tmp_path, mrisr_command):
    pydicom = pytest.importorskip("pydicom", reason="the dicom extra (pydicom) is not installed")
    source = series(stack(phantom(), 2), tmp_path / "series", 3)
    kept = tmp_path / "kept.safetensors"
    line = ("upscale", "-i", source, "-o", tmp_path / "derived", "--model", student, *HOW, *ADAPT)
    end = mrisr_command(*line, "--keep-adapted", kept)
    assert (end.code, end.errors) == (0, []) and kept.is_file()
    assert len([pydicom.dcmread(p) for p in (tmp_path / "derived").iterdir()]) == FINE.shape[2]
    whole = kept.read_bytes()
    header = whole[: 8 + int.from_bytes(whole[:8], "little")]  # any three letters stand somewhere among the numbers
    assert b"mrisr" in header and not any(words in header for words in (b"A^B", b"1.2.9", b"T1w"))


NOWHERE = "nowhere.nii.gz"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--samples", 2), 2, 'adapt: teaches mode "mean"'),
        (("--steps", 4), 2, 'adapt: teaches mode "mean"'),
        (("--mode", "sample"), 2, 'adapt: teaches mode "mean"'),
        (("--denoise", 0.5), 2, "leave denoise at 0"),
        (("--engine", "tensorrt"), 7, "adapt: engine tensorrt runs a plan"),
        (("--join", "--series", "3,4"), 2, "--adapt: is of one scan, and --join"),
        (("-i", NOWHERE, NOWHERE, "--join"), 2, "--adapt: is of one scan, and --join"),
        (("-i", NOWHERE, NOWHERE, "--keep-adapted", "kept.safetensors"), 2, "are the weights of one scan"),
        (("--keep-adapted", "kept.pt"), 2, "--keep-adapted: expected a file name ending in .safetensors"),
        (("-o", "folder", "--keep-adapted", "kept.SAFETENSORS"), 2, "--keep-adapted: expected a file name"),
    ],
    ids=str,
)
def test_what_the_arguments_say_is_refused_before_anything_is_read(words, code, text, mrisr_command):
    line = ("upscale", "-i", NOWHERE, "-o", "out.nii.gz", "--model", "no such model", "--adapt", 600)
    end = mrisr_command(*line, *words)
    assert end.code == code and len(end.errors) == 1 and text in end.errors[0], end


def test_the_arguments_of_bids_are_refused_before_anything_is_read(mrisr_command):
    for words, text in (
        (("--join",), "--adapt: is of one scan"),
        (("--samples", 2), 'adapt: teaches mode "mean"'),
        (("--denoise", 1), "leave denoise at 0"),
    ):
        end = mrisr_command("bids", "nowhere", "out", "participant", "--adapt", 600, *words)
        assert end.code == 2 and len(end.errors) == 1 and text in end.errors[0], end


def test_one_alone_may_be_joined_and_learnt_from(scan, student, tmp_path, mrisr_command):
    """As in Python; several of a folder are refused once they are found, before one is read."""
    line = ("upscale", "--join", *ADAPT, "--model", student, *HOW, "-o", tmp_path / "out.nii.gz")
    end = mrisr_command(*line, "-i", scan)
    assert (end.code, end.errors) == (0, []) and "learnt from the scan: 3 steps" in end.out + end.err
    (tmp_path / "in" / "empty.nii.gz").write_bytes(b"")
    end = mrisr_command(*line, "-i", tmp_path / "in", "--force")
    assert end.code == 2 and "--adapt: is of one scan, and --join" in end.errors[0]


def test_what_is_refused_leaves_nothing(scan, student, tmp_path, mrisr_command):
    other = stored(stack(phantom(), 0), tmp_path / "in" / "sag.nii.gz")
    even = stored(stack(phantom(), 2).replace(phantom(), FINE.affine), tmp_path / "in" / "even.nii.gz")
    there = tmp_path / "in" / "there.safetensors"
    there.write_bytes(student.read_bytes())
    new = tmp_path / "new.safetensors"
    out = tmp_path / "out.nii.gz"
    for words, code, text in (
        (("-i", scan, "--adapt", -1), 2, "--adapt"),
        (("-i", scan, "--adapt", "nan"), 2, "--adapt"),
        (("-i", scan, "--adapt", 0.5), 2, "from 1 to 3600 seconds"),
        (("-i", scan, "--adapt", 7200), 2, "from 1 to 3600 seconds"),
        (("-i", scan, "--keep-adapted", new), 2, "--keep-adapted: needs --adapt"),
        (("-i", scan, other, "--join", *ADAPT), 2, "--adapt: is of one scan"),
        (("-i", scan, *ADAPT, "--keep-adapted", tmp_path / "new.pt"), 2, "ending in .safetensors"),
        (("-i", scan, *ADAPT, "--keep-adapted", there), 4, "exists already"),
        (("-i", scan, *ADAPT, "--keep-adapted", tmp_path / "no" / "new.safetensors"), 4, "there is no directory"),
        (("-i", scan, *ADAPT, "--memory", "400MB"), 5, "learning from the scan takes"),
        (("-i", scan, *ADAPT, "--samples", 2), 2, 'teaches mode "mean"'),
        (("-i", even, *ADAPT, "--keep-adapted", new), 3, "even.nii.gz: adapt: has no sharp plane"),
    ):
        end = mrisr_command("upscale", "-o", out, "--model", student, *HOW, *words)
        assert end.code == code and len(end.errors) == 1 and text in end.errors[0], (words, end)
    folder = ("upscale", "-i", tmp_path / "in" / "*.nii.gz", "-o", tmp_path / "out", "--model", student, *HOW)
    end = mrisr_command(*folder, *ADAPT, "--keep-adapted", new)
    assert end.code == 2 and "are the weights of one scan" in end.errors[0]
    end = mrisr_command(
        "upscale", "-i", scan, "-o", out, "--model", there, *HOW, *ADAPT, "--keep-adapted", there, "--force"
    )
    assert end.code == 4 and "is a file of the input" in end.errors[0]
    assert there.read_bytes() == student.read_bytes()
    assert left(tmp_path) == ["in/ax.nii.gz", "in/even.nii.gz", "in/sag.nii.gz", "in/there.safetensors"]
