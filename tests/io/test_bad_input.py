"""Files that cannot be used: each gets one line that names it, says what was found and what to do."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mrisr.errors import GeometryError, InputError, MrisrError, MrisrWarning
from mrisr.io import nifti

RAMP = np.arange(6 * 5 * 4, dtype=np.float32).reshape(6, 5, 4)
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def saved(path: Path, data: np.ndarray = RAMP, image: type = nib.Nifti1Image, affine: object = None) -> Path:
    nib.save(image(data, np.eye(4) if affine is None else affine), path)
    return path


def patched(path: Path, **fields: object) -> Path:
    """A sound NIfTI-1 file with header fields overwritten in place, past nibabel's checks."""
    raw = bytearray(saved(path).read_bytes())
    header = np.ndarray((), nib.Nifti1Header.template_dtype, buffer=raw)
    for key, value in fields.items():
        header[key] = value
    path.write_bytes(raw)
    return path


def cut(path: Path, keep: float) -> Path:
    raw = saved(path).read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    return path


def with_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def with_value(value: float) -> np.ndarray:
    data = RAMP.copy()
    data[3, 2, 1] = value
    return data


def pair_without_image(folder: Path) -> Path:
    path = saved(folder / "a.hdr", image=nib.Nifti1Pair)
    (folder / "a.img").unlink()
    return path


def zipped_pair(folder: Path) -> Path:
    saved(folder / "a.hdr.gz", image=nib.Nifti1Pair)
    (folder / "a.img.gz").write_bytes(b"\x1f\x8b not gzip")
    return folder / "a.hdr.gz"


def flipped(path: Path) -> Path:
    """A gzip stream with one damaged byte in the middle."""
    noise = np.random.default_rng(0).normal(size=(16, 16, 16)).astype("f4")
    raw = bytearray(saved(path, noise).read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    return path


NOT_HERE = "no such file; check the path"
AGAIN = "copy or download it again"
ZERO = "set the true one in the header"
# name -> (how to make it in a folder, what the line must say, which error)
BAD_FILES = {
    "missing": (lambda d: d / "a.nii", [NOT_HERE]),
    "name too long": (lambda d: d / ("x" * 300 + ".nii"), ["cannot be opened (File name too long)"]),
    "missing folder": (lambda d: d / "no" / "a.nii", [NOT_HERE]),
    "directory": (lambda d: d, ["is a directory; give a file"]),
    "device": (lambda d: Path("/dev/null"), ["is not a regular file"]),
    "unknown ending": (
        lambda d: with_bytes(d / "a.png", b"x"),
        ["expected a file name in .nii, .nii.gz,"],
    ),
    "empty file": (lambda d: with_bytes(d / "a.nii", b""), ["the file is empty (0 bytes)", AGAIN]),
    "no magic": (lambda d: with_bytes(d / "a.nii", b"x" * 500), ["not a NIfTI file", "found b'xxxx'"]),
    "wrong magic": (
        lambda d: patched(d / "a.nii", magic=b"n+9"),
        ["expected the magic b'n+1'", "found b'n+9"],
    ),
    "short header": (lambda d: cut(d / "a.nii", 0.3), ["not a NIfTI file", "found b''"]),
    "truncated": (lambda d: cut(d / "a.nii", 0.9), ["truncated or damaged", AGAIN]),
    "truncated gzip": (lambda d: cut(d / "a.nii.gz", 0.9), ["truncated or damaged", AGAIN]),
    "gzip cut in the header": (lambda d: cut(d / "a.nii.gz", 0.1), ["truncated or damaged", AGAIN]),
    "gzip with a damaged byte": (lambda d: flipped(d / "a.nii.gz"), ["truncated or damaged", AGAIN]),
    "truncated mgz": (
        lambda d: with_bytes(d / "a.mgz", saved(d / "b.mgz", image=nib.MGHImage).read_bytes()[:-30]),
        ["truncated or damaged", AGAIN],
    ),
    "mgh of nonsense": (
        lambda d: with_bytes(d / "a.mgh", b"x" * 500),
        ["not an MGH file: expected the start", "found b'xxxx'"],
    ),
    "named gz, is not": (
        lambda d: saved(d / "b.nii").rename(d / "a.nii.gz"),
        ["named .nii.gz but is not gzip"],
    ),
    "gz, not named so": (
        lambda d: saved(d / "b.nii.gz").rename(d / "a.nii"),
        ["is gzip-compressed but named .nii"],
    ),
    "not gzip, not NIfTI": (
        lambda d: with_bytes(d / "a.nii.gz", b"hello"),
        ["named .nii.gz but is not gzip"],
    ),
    "gzip of text": (
        lambda d: with_bytes(d / "a.nii.gz", gzip.compress(b"hello " * 100)),
        ["not a NIfTI file", "b'n+1'"],
    ),
    "half a pair": (pair_without_image, ["its other half a.img is missing; put both files into one folder"]),
    "pair with a bad half": (zipped_pair, ["truncated or damaged", AGAIN]),
    "ANALYZE": (
        lambda d: saved(d / "a.img", RAMP.astype("i2"), nib.AnalyzeImage),
        ["found Spm", "expected NIfTI or MGH", "convert it to NIfTI first"],
    ),
    "2D": (
        lambda d: saved(d / "a.nii", RAMP[..., 0]),
        ["expected a 3D or 4D volume, found 2D, shape (6, 5)"],
    ),
    "5D": (
        lambda d: saved(d / "a.nii", np.stack([RAMP] * 3, -1)[..., None, :]),
        ["found 5D, shape (6, 5, 4, 1, 3)"],
    ),
    "5D of one": (lambda d: saved(d / "a.nii", RAMP[..., None, None]), ["3D or 4D volume, found 5D"]),
    "one slice": (
        lambda d: saved(d / "a.nii", RAMP[..., :1]),
        ["fewer than 2 voxels along an axis", "single slice"],
    ),
    "zero-size": (
        lambda d: patched(d / "a.nii", dim=[3, 6, 0, 4, 1, 1, 1, 1]),
        ["the volume is empty, shape (6, 0, 4); expected voxels"],
    ),
    "no axes": (lambda d: patched(d / "a.nii", dim=[0] * 8), ["expected a 3D or 4D volume"]),
    "negative count": (
        lambda d: patched(d / "a.nii", dim=[3, 6, -5, 4, 1, 1, 1, 1]),
        ["empty, shape (6, -5, 4)"],
    ),
    "more than the file holds": (
        lambda d: patched(d / "a.nii", dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
        ["truncated or damaged (its header promises 140724603847004 bytes, it holds 832)", AGAIN],
    ),
    "unknown data type": (
        lambda d: patched(d / "a.nii", datatype=77),
        ["unusable header", "data code 77"],
    ),
    "RGB": (
        lambda d: saved(d / "a.nii", np.zeros((6, 5, 4), RGB)),
        ["RGB or structured data", "one number per voxel"],
    ),
    "complex": (
        lambda d: saved(d / "a.nii", RAMP.astype("c8")),
        ["complex data (complex64); take the magnitude first"],
    ),
    "NaN": (
        lambda d: saved(d / "a.nii", with_value(np.nan)),
        ["1 NaN and 0 infinite voxels of 120; replace them"],
    ),
    "Inf": (lambda d: saved(d / "a.nii.gz", with_value(np.inf)), ["0 NaN and 1 infinite voxels of 120"]),
    "NaN slope": (
        lambda d: patched(d / "a.nii", scl_slope=2, scl_inter=np.nan),
        ["unusable header", "intercept nan"],
    ),
    "beyond float32": (
        lambda d: saved(d / "a.nii", RAMP.astype("f8") * 1e300),
        ["exceed float32; rescale first"],
    ),
    "constant": (lambda d: saved(d / "a.nii", RAMP * 0 + 3), ["the volume is constant (every voxel 3)"]),
    "all zero": (lambda d: saved(d / "a.nii.gz", RAMP * 0), ["the volume is constant (every voxel 0)"]),
    "zero voxel size": (
        lambda d: patched(d / "a.nii", pixdim=[1, 1, 0, 1, 0, 0, 0, 0]),
        ["voxel size (pixdim) is 1 x 0 x 1 mm", ZERO],
        GeometryError,
    ),
    "no voxel size at all": (
        lambda d: patched(d / "a.nii", pixdim=0, sform_code=0, qform_code=0),
        ["voxel size (pixdim) is 0 x 0 x 0 mm", ZERO],
        GeometryError,
    ),
    "NaN voxel size": (
        lambda d: patched(d / "a.nii", pixdim=[1, 1, np.nan, 1, 0, 0, 0, 0]),
        ["voxel size (pixdim) is 1 x nan x 1 mm", ZERO],
        GeometryError,
    ),
    "sform in a plane": (
        lambda d: patched(d / "a.nii", srow_z=[1, 0, 0, 0]),
        ["voxel size", "has a zero; set the true voxel size"],
        GeometryError,
    ),
    "sform not invertible": (
        lambda d: patched(d / "a.nii", srow_y=[0, 1, 1, 0], srow_z=[0, 0, 0, 0]),
        ["the affine is not invertible", "repair the sform or qform"],
        GeometryError,
    ),
    "sform of zeros": (
        lambda d: patched(d / "a.nii", srow_x=0, srow_y=0, srow_z=0),
        ["voxel size 0 x 0 x 0 mm has a zero"],
        GeometryError,
    ),
    "sform of NaN": (
        lambda d: patched(d / "a.nii", srow_x=np.nan),
        ["the affine has NaN or infinite entries; repair"],
        GeometryError,
    ),
    "qform no rotation": (
        lambda d: patched(d / "a.nii", sform_code=0, qform_code=1, quatern_b=3),
        ["unusable header", "convert it to NIfTI again"],
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_one_clear_line_and_nothing_left_behind(case, tmp_path, capfd):
    build, words, *error = BAD_FILES[case]
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    path = build(tmp_path / "in")
    with pytest.raises(*(error or [InputError])) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore", MrisrWarning)
        nifti.write(nifti.read(path), tmp_path / "out" / "a.nii.gz")
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and caught.value.exit_code == 3
    assert [w for w in words if w not in message] == []
    assert ";" in message or "expected" in message  # what to do
    assert list((tmp_path / "out").iterdir()) == []
    assert capfd.readouterr() == ("", "")  # nothing from nibabel's own logger


def test_a_repaired_header_is_said(tmp_path, capfd):
    with pytest.warns(MrisrWarning, match=r"a.nii: header repaired: .*sform_code 9 not valid"):
        nifti.read(patched(tmp_path / "a.nii", sform_code=9))
    with pytest.warns(MrisrWarning, match=r"a.nii: header repaired: .*pixdim.*positive"):
        nifti.read(patched(tmp_path / "a.nii", pixdim=[1, 1, -1, 1, 0, 0, 0, 0]))
    assert capfd.readouterr() == ("", "")


def test_an_image_without_an_affine(tmp_path):
    image = nib.Nifti1Image(RAMP, np.eye(4))
    image._affine = None
    with pytest.raises(GeometryError, match="nibabel image: the image has no affine"):
        nifti.from_image(image)


def test_exit_codes_are_all_different():
    codes = [c.exit_code for c in MrisrError.__subclasses__()]
    assert sorted(codes) == list(range(2, 9)) and GeometryError.exit_code == InputError.exit_code
