"""What a user can get wrong: one clear line, the documented exit code, nothing left behind."""

from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

SHAPE = (8, 9, 7)


def image(data, affine=None):
    return nib.Nifti1Image(data, np.eye(4) if affine is None else affine)


def ramp(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def save(path, data, affine=None):
    nib.save(image(data, affine), path)
    return path


def damaged(path, edit):
    """A sound file at `path`, its bytes changed by `edit`."""
    save(path, ramp(*SHAPE))
    path.write_bytes(edit(path.read_bytes()))
    return path


def text(path):
    path.write_text("text")
    return path


def with_pixdim(path, values):
    def edit(raw):
        header = bytearray(raw)
        header[80:92] = np.asarray(values, "<f4").tobytes()
        return bytes(header)

    return damaged(path, edit)


def with_nan(value):
    data = ramp(*SHAPE)
    data[1, 2, 3] = value
    return data


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
# what -> (make the input in a folder, words that the line must hold)
INPUTS = {
    "missing": (lambda d: d / "none.nii", "no such file"),
    "directory": (lambda d: d, "directory"),
    "not an image": (lambda d: text(d / "a.txt"), "expected a file name in"),
    "empty": (lambda d: damaged(d / "a.nii", lambda raw: b""), "empty (0 bytes)"),
    "truncated gzip": (
        lambda d: damaged(d / "a.nii.gz", lambda raw: raw[: len(raw) // 2]),
        "truncated or damaged",
    ),
    "truncated": (lambda d: damaged(d / "a.nii", lambda raw: raw[:-40]), "truncated or damaged"),
    "wrong magic": (lambda d: damaged(d / "a.nii", lambda raw: raw[:344] + b"bad\0" + raw[348:]), "magic"),
    "2D": (lambda d: save(d / "a.nii", ramp(8, 9)), "expected a 3D or 4D volume, found 2D"),
    "5D": (lambda d: save(d / "a.nii", ramp(8, 9, 7, 2, 3)), "found 5D"),
    "one slice": (lambda d: save(d / "a.nii", ramp(8, 9, 1)), "fewer than 2 voxels"),
    "zero-size": (lambda d: damaged(d / "a.nii", lambda raw: raw[:44] + b"\0\0" + raw[46:]), "empty"),
    "NaN": (lambda d: save(d / "a.nii", with_nan(np.nan)), "1 NaN"),
    "Inf": (lambda d: save(d / "a.nii", with_nan(np.inf)), "1 infinite"),
    "constant": (lambda d: save(d / "a.nii", np.ones(SHAPE, np.float32)), "constant"),
    "zero voxel size": (lambda d: with_pixdim(d / "a.nii", (1, 0, 1)), "voxel size"),
    "no inverse": (
        lambda d: save(d / "a.nii", ramp(*SHAPE), np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
        "",
    ),
    "complex": (lambda d: save(d / "a.nii", ramp(*SHAPE).astype(np.complex64)), "complex"),
    "RGB": (lambda d: save(d / "a.nii", np.zeros(SHAPE, RGB)), "RGB"),
}


@pytest.fixture
def folders(tmp_path):
    made = tmp_path / "in", tmp_path / "out"
    for folder in made:
        folder.mkdir()
    return made


def one_line(end, code, words, out):
    assert end.code == code, end.err
    assert len(end.errors) == 1, end.err
    assert words in end.errors[0]
    assert "Traceback" not in end.err
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("what", INPUTS)
def test_unusable_input(what, folders, weights, mrisr_command):
    make, words = INPUTS[what]
    source, out = folders
    path = make(source)
    end = mrisr_command("upscale", "-i", path, "-o", out / "a.nii.gz", "--preview", out / "p.png", "--model", weights)
    one_line(end, 3, words, out)
    assert str(path) in end.errors[0]


# what -> (options, exit code, words)
OPTIONS = {
    "voxel size of zero": (["--voxel-size", "0"], 2, "above 0"),
    "voxel size of nan": (["--voxel-size", "nan"], 2, "above 0"),
    "two voxel sizes": (["--voxel-size", "1", "1"], 2, "one number or three"),
    "size and factor": (["--voxel-size", "1", "--factor", "2"], 2, "not allowed with"),
    "factor of -1": (["--factor", "-1"], 2, "--factor"),
    "unknown option": (["--colour"], 2, "--colour"),
    "no steps": (["--steps", "0"], 2, "at least 1"),
    "mean with steps": (["--mode", "mean", "--steps", "2"], 2, "mean"),
    "denoise above 1": (["--denoise", "1.5"], 2, "expected a number from 0 to 1"),
    "denoise below 0": (["--denoise", "-0.1"], 2, "expected a number from 0 to 1"),
    "denoise of nan": (["--denoise", "nan"], 2, "expected a number from 0 to 1"),
    "unknown mode": (["--mode", "median"], 2, "median"),
    "negative seed": (["--seed", "-1"], 2, "seed"),
    "psf without meaning": (["--psf", "round"], 2, "psf"),
    "psf width of text": (["--psf", "kspace:wide"], 2, "--psf"),
    "two psfs": (["--psf", "kspace", "kspace"], 2, "--psf"),
    "memory without meaning": (["--memory", "much"], 2, "memory"),
    "too little memory": (["--memory", "1MB"], 5, "the smallest that works is"),
    "too large for the budget": (
        ["--voxel-size", "0.15", "--memory", "700MB"],
        5,
        "the smallest that works is",
    ),
    "unknown model": (["--model", "no-such-model"], 6, "no-such-model"),
    "unknown engine": (["--engine", "warp"], 2, "warp"),
    "engine that is not here": (["--engine", "tensorrt"], 7, "tensorrt"),
    "unknown device": (["--device", "tpu"], 2, "tpu"),
    "no such GPU": (["--device", "cuda:99"], 7, "cuda:99"),
    "preview of another kind": (["--preview", "p.jpg"], 2, ".png"),
    "info of another kind": (["--info", "i.txt"], 2, ".json"),
    "no threads": (["--threads", "0"], 2, "at least 1"),
    "unknown precision": (["--precision", "int8"], 2, "--precision"),
}


@pytest.mark.parametrize("what", OPTIONS)
def test_wrong_option(what, folders, scan, weights, mrisr_command):
    options, code, words = OPTIONS[what]
    _, out = folders
    end = mrisr_command("upscale", "-i", scan, "-o", out / "a.nii.gz", "--model", weights, *options)
    one_line(end, code, words, out)


def test_bfloat16_on_a_processor_without_it(folders, scan, weights, mrisr_command, monkeypatch):
    from mrisr import environment

    monkeypatch.setattr(environment, "bfloat16_instructions", tuple)
    out = folders[1]
    words = "bfloat16 was asked for, but this processor"
    end = mrisr_command("upscale", "-i", scan, "-o", out / "a.nii", "--model", weights, "--precision", "bfloat16")
    one_line(end, 7, words, out)
    assert "has neither AMX-BF16 nor AVX512-BF16; use float32, or auto" in end.errors[0]


def test_a_variable_without_meaning(folders, scan, weights, mrisr_command, monkeypatch):
    monkeypatch.setenv("MRISR_PRECISION", "half")
    out = folders[1]
    end = mrisr_command("upscale", "-i", scan, "-o", out / "a.nii", "--model", weights)
    one_line(end, 2, "MRISR_PRECISION: expected one of auto, float32, bfloat16, found 'half'", out)


def test_damaged_weights(folders, scan, mrisr_command):
    source, out = folders
    (source / "w.safetensors").write_bytes(b"not weights")
    end = mrisr_command("upscale", "-i", scan, "-o", out / "a.nii", "--model", source / "w.safetensors")
    one_line(end, 6, "w.safetensors", out)
    text = ('"' + "a" * 5000 + '"').encode()  # what the reader of the format prints whole
    (source / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    end = mrisr_command("upscale", "-i", scan, "-o", out / "a.nii", "--model", source / "w.safetensors")
    one_line(end, 6, "not a readable safetensors file", out)
    assert len(end.errors[0]) < 500


# what -> (the three outputs, made in a folder, words)
TARGETS = {
    "no folder": (lambda d: {"-o": d / "no" / "a.nii"}, "no directory"),
    "folder is a file": (lambda d: {"-o": d.parent / "file" / "a.nii"}, "no directory"),
    "unknown format": (lambda d: {"-o": d / "a.jpg"}, ".nii.gz"),
    "unwritable": (lambda d: {"-o": "/proc/a.nii"}, "/proc"),
    "preview unwritable": (lambda d: {"-o": d / "a.nii", "--preview": d / "no" / "p.png"}, "no directory"),
    "info unwritable": (lambda d: {"-o": d / "a.nii", "--info": d / "no" / "i.json"}, "no directory"),
}


@pytest.mark.parametrize("what", TARGETS)
def test_unwritable_output_is_found_before_the_work(what, folders, mrisr_command):
    make, words = TARGETS[what]
    source, out = folders
    (source.parent / "file").touch()
    options = [word for pair in make(out).items() for word in pair]
    # The input does not exist either: outputs are looked at first, because they cost nothing.
    end = mrisr_command("upscale", "-i", source / "none.nii", *options)
    one_line(end, 4, words, out)


def test_output_over_the_input_is_refused(folders, mrisr_command):
    source, out = folders
    path = save(source / "a.nii", ramp(*SHAPE))
    before = path.read_bytes()
    end = mrisr_command("upscale", "-i", path, "-o", path, "--force")
    one_line(end, 4, "is a file of the input", out)
    assert path.read_bytes() == before


def test_no_command_and_unknown_command(mrisr_command):
    for words in ((), ("sharpen",)):
        end = mrisr_command(*words)
        assert end.code == 2 and len(end.errors) == 1 and "--help" in end.errors[0]


def test_a_bug_says_that_it_is_one(mrisr_command, monkeypatch):
    from mrisr.cli import doctor

    monkeypatch.setattr(doctor, "examine", lambda: 1 / 0)
    end = mrisr_command("doctor")
    assert end.code == 1 and "Traceback" in end.err and "this is a bug" in end.errors[0]


def test_the_shell_sees_the_same(folders):
    """Once through a real process: the entry point hands the code on."""
    source, out = folders
    command = [
        sys.executable,
        "-m",
        "mrisr.cli.main",
        "upscale",
        "-i",
        source / "none.nii",
        "-o",
        out / "a.nii",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr == f"mrisr: error: {source / 'none.nii'}: no such file; check the path\n"
