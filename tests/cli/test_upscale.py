"""``mrisr upscale`` as a user sees it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import mrisr
from mrisr.errors import MrisrWarning


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_image_preview_and_info(scan, weights, tmp_path, mrisr_command):
    end = mrisr_command(
        "upscale", "-i", scan, "-o", tmp_path / "out.nii.gz", "--factor", 2, "--model", weights,
        "--threads", 1, "--preview", tmp_path / "p.png", "--info", tmp_path / "i.json",
    )  # fmt: skip
    assert (end.code, end.out, end.errors) == (0, "", [])
    assert names(tmp_path) == ["i.json", "out.json", "out.nii.gz", "p.png"]
    image = nib.load(tmp_path / "out.nii.gz")
    assert image.shape == (48, 52, 44) and image.get_data_dtype() == np.float32
    record = json.loads((tmp_path / "i.json").read_text())
    assert record["target"]["shape"] == [48, 52, 44] and record["seed"] == 0
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.format == "PNG" and picture.width > 300
    assert "24 x 26 x 22 voxels of 2 x 2 x 2 mm" in end.err and "not a medical device" in end.err


def test_the_command_is_the_python_call(scan, weights, tmp_path, mrisr_command):
    options = ("--voxel-size", 1.5, 1, 2, "--psf", "kspace", "kspace", "gaussian:2.5", "--engine", "torch")
    end = mrisr_command("upscale", "-i", scan, "-o", tmp_path / "a.nii", "--model", weights, *options, "--quiet")
    assert (end.code, end.err) == (0, "")
    expected = mrisr.upscale(
        str(scan),
        voxel_size=(1.5, 1, 2),
        psf=("kspace", "kspace", ("gaussian", 2.5)),
        engine="torch",
        model=weights,
    )
    found = nib.load(tmp_path / "a.nii")
    assert np.array_equal(found.get_fdata(), expected.get_fdata())
    assert np.array_equal(found.affine, expected.affine)


@pytest.mark.parametrize("ending", [".nii", ".mgz"])
def test_the_extension_chooses_the_format(ending, scan, weights, tmp_path, mrisr_command):
    end = mrisr_command("upscale", "-i", scan, "-o", tmp_path / f"a{ending}", "--factor", 1.5, "--model", weights)
    assert end.code == 0
    assert nib.load(tmp_path / f"a{ending}").shape == (36, 39, 33)


def test_an_existing_output_needs_force(scan, weights, tmp_path, mrisr_command):
    target = tmp_path / "a.nii"
    target.write_text("mine")
    command = ("upscale", "-i", scan, "-o", target, "--factor", 2, "--model", weights, "--quiet")
    end = mrisr_command(*command)
    assert end.code == 4 and "--force" in end.errors[0] and target.read_text() == "mine"
    assert mrisr_command(*command, "--force").code == 0
    assert nib.load(target).shape == (48, 52, 44)


def test_new_files_have_the_permissions_of_any_new_file(scan, weights, tmp_path, mrisr_command):
    mrisr_command("upscale", "-i", scan, "-o", tmp_path / "a.nii", "--model", weights, "--info", tmp_path / "i.json")
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "plain").stat().st_mode}


def test_a_failure_while_writing_leaves_nothing(scan, weights, tmp_path, mrisr_command, monkeypatch):
    """The picture fails after the image was written: neither appears."""
    from mrisr import preview
    from mrisr.errors import OutputError

    def full_disk(image, path):
        raise OutputError(f"{path.name}: cannot be written (No space left on device)")

    monkeypatch.setattr(preview, "save", full_disk)
    end = mrisr_command(
        "upscale", "-i", scan, "-o", tmp_path / "a.nii", "--preview", tmp_path / "p.png", "--model", weights
    )
    assert end.code == 4 and names(tmp_path) == []


def test_each_warning_is_one_line(scan, weights, tmp_path, mrisr_command):
    end = mrisr_command("upscale", "-i", scan, "-o", tmp_path / "a.nii", "--voxel-size", 3, "--model", weights)
    assert end.code == 0 and len(end.warnings) == 1 and "already finer" in end.warnings[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_file(number, scan, tmp_path):
    """Interrupted in the middle, on a grid that takes far longer than the test waits."""
    out = tmp_path / "a.nii.gz"
    command = [
        sys.executable, "-m", "mrisr.cli.main", "upscale", "-i", scan, "-o", out, "--model", "base",
        "--voxel-size", "0.2", "--threads", "1", "--engine", "torch", "--tile", "88",
        "--info", tmp_path / "i.json",
    ]  # fmt: skip

    def as_in_a_terminal():  # a shell starts background jobs, hence whole test runs, with Ctrl-C ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=as_in_a_terminal) as process:
        deadline = time.monotonic() + 120
        while "libtorch" not in maps(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(3)
        assert process.poll() is None, process.stderr.read()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "mrisr: error: interrupted" in err
    assert names(tmp_path) == []


def maps(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/maps") as stream:
            return stream.read()
    except OSError:
        return "libtorch: no way to see it here"


def test_the_spread_of_samples_is_an_image_of_its_own(scan, tmp_path, mrisr_command):
    import nibabel as nib

    out, std = tmp_path / "a.nii.gz", tmp_path / "std.nii.gz"
    common = ("upscale", "-i", scan, "-o", out, "--std", std, "--factor", 1.5)
    end = mrisr_command(*common)
    assert end.code == 2 and "needs --samples of at least 2" in end.err and names(tmp_path) == []
    assert mrisr_command(*common, "--samples", 2, "--steps", 2).code == 0
    image, spread = nib.load(out), nib.load(std)
    assert image.shape == spread.shape and spread.get_fdata().min() >= 0 and spread.get_fdata().max() > 0
    assert (image.affine == spread.affine).all()


def test_distortions_are_taken_out_on_the_way(scan, weights, tmp_path, mrisr_command):
    from mrisr.physics import coils

    coefficients = tmp_path / "coil.grad"
    coefficients.write_text(" 0.100 m = R0, lnorm = 4?\n  1 A( 3, 0)  -0.2000  z\n")
    image = nib.load(scan)
    field = 1 + 0.3 * np.linspace(0, 1, image.shape[0])[:, None, None] * np.ones(image.shape)
    nib.save(nib.Nifti1Image(field.astype(np.float32), image.affine), tmp_path / "b.nii")
    end = mrisr_command(
        "upscale", "-i", scan, "-o", tmp_path / "o.nii", "--factor", 2, "--model", weights, "--threads", 1,
        "--gradnl", coefficients, "--corrected", "none", "--bias", tmp_path / "b.nii", "--bias-out", "kept",
        "--info", tmp_path / "i.json", "--engine", "torch",
    )  # fmt: skip
    assert (end.code, end.errors) == (0, [])
    assert "gradient nonlinearity: up to" in end.err and "kept in the output" in end.err
    record = json.loads((tmp_path / "i.json").read_text())
    assert record["gradnl"]["why"] == "stated by the caller" and record["gradnl"]["largest_mm"] > 0.1
    assert record["bias"]["state"] == "given" and record["bias"]["span"] == pytest.approx([1, 1.3])
    with pytest.warns(MrisrWarning, match="scanner coordinates"):
        expected = mrisr.upscale(
            str(scan), factor=2, model=weights, threads=1, gradnl=coils.read(coefficients), gradnl_done="none",
            bias=field.astype(np.float32), bias_out="kept", engine="torch",
        )  # fmt: skip
    assert np.array_equal(nib.load(tmp_path / "o.nii").get_fdata(), expected.get_fdata())
    for options, text in (
        (("--radius", 250), "--radius: needs --gradnl"),
        (("--bias-out", "kept"), "needs a bias field"),
        (("--gradnl", tmp_path / "b.nii"), "expected a displacement field"),
    ):
        end = mrisr_command("upscale", "-i", scan, "-o", tmp_path / "p.nii", "--model", weights, *options)
        assert end.code in (2, 3) and text in end.errors[0] and not (tmp_path / "p.nii").exists()


@pytest.fixture
def frames_of(head, tmp_path):
    """Path of a 4D scan of three frames."""
    data = np.stack([k * head((12, 14, 12)) for k in (1, 2, 3)], axis=-1).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "in.nii")
    return tmp_path / "in.nii"


def test_frames_are_written_while_the_next_are_computed(frames_of, weights, tmp_path, mrisr_command):
    """And read so; except within a stated budget, where all wait for the last: the files are the same."""
    how = ("upscale", "-i", frames_of, "--voxel-size", 1.5, "--model", weights, "--engine", "torch", "--quiet")
    for name, more in (("apart.nii", ()), ("whole.nii", ("--memory", "8GB"))):
        assert mrisr_command(*how, "-o", tmp_path / name, *more).code == 0
    assert (tmp_path / "apart.nii").read_bytes() == (tmp_path / "whole.nii").read_bytes()
    assert nib.load(tmp_path / "apart.nii").shape[3] == 3


@pytest.mark.parametrize("more", [(), ("--preview", "p.png"), ("--samples", 2, "--std", "s.nii"), ("--report", "r")])
def test_a_series_is_read_at_once_where_all_of_it_is_shown(frames_of, weights, tmp_path, mrisr_command, more):
    """The result does not depend on it."""
    how = ("upscale", "-i", frames_of, "--voxel-size", 1.5, "--model", weights, "--engine", "torch", "--quiet")
    more = [tmp_path / word if str(word)[:1] in "psr" else word for word in more]
    assert mrisr_command(*how, "-o", tmp_path / "out.nii", *more).code == 0
    result = nib.load(tmp_path / "out.nii")
    assert result.shape[3] == 3 and all(np.ptp(result.dataobj[..., t]) > 100 for t in range(3))


def test_a_run_that_breaks_off_among_frames_leaves_nothing(frames_of, weights, tmp_path, mrisr_command, monkeypatch):
    from mrisr.io.frames import FrameWriter

    plain, before = FrameWriter.add, names(tmp_path)

    def add(writer, index, image, affine):
        plain(writer, index, image, affine)
        if index == 1:
            raise OSError(28, "No space left on device", str(tmp_path / "out.nii"))

    monkeypatch.setattr(FrameWriter, "add", add)
    end = mrisr_command("upscale", "-i", frames_of, "-o", tmp_path / "out.nii", "--model", weights, "--quiet")
    assert end.code != 0 and names(tmp_path) == before
