"""gzip in and out: ISA-L and the standard library read each other, and say which of them works."""

from __future__ import annotations

import gzip
import io
import zlib

import numpy as np
import pytest

from mrisr.cli import doctor
from mrisr.io import gzipped, nifti
from mrisr.volume import Volume


@pytest.fixture(params=["isal", "zlib"])
def library(request, monkeypatch):
    """Each of the two ways; the second as where the package isal is missing."""
    real = gzipped.import_module

    def importing(name: str):
        if request.param == "zlib" and name.startswith("isal"):
            raise ImportError("No module named 'isal'")
        return real(name)

    def forget() -> None:
        gzipped._streams.cache_clear()
        gzipped.damaged.cache_clear()

    monkeypatch.setattr(gzipped, "import_module", importing)
    forget()
    yield request.param
    forget()


def packed(content: bytes) -> bytes:
    file = io.BytesIO()
    with gzipped.writing(file) as stream:
        for start in range(0, len(content), 10_000):
            stream.write(content[start : start + 10_000])
    return file.getvalue()


CONTENT = np.random.default_rng(0).normal(size=(40, 41, 42)).astype(np.float32).tobytes() * 2


def test_it_is_gzip_and_always_the_same_bytes(library, tmp_path):
    found = packed(CONTENT)
    assert gzip.decompress(found) == CONTENT
    assert found == packed(CONTENT)
    assert len(found) < 1.02 * len(zlib.compress(CONTENT, 1))
    (tmp_path / "other.gz").write_bytes(gzip.compress(CONTENT, 9))
    with gzipped.reading(tmp_path / "other.gz") as stream:
        assert stream.read() == CONTENT


@pytest.mark.parametrize("damage", ["cut", "checksum", "block"])
def test_damage_is_one_of_the_named_errors(library, tmp_path, damage):
    found = bytearray(packed(CONTENT))
    if damage == "cut":
        found = found[: len(found) // 2]
    elif damage == "checksum":
        found[-6] ^= 1
    else:
        found[10] ^= 0xFF
    (tmp_path / "damaged.gz").write_bytes(found)
    with gzipped.reading(tmp_path / "damaged.gz") as stream, pytest.raises(gzipped.damaged()):
        stream.read()


@pytest.mark.parametrize("ending", [".nii.gz", ".mgz"])
def test_a_scan_comes_back_bit_for_bit(library, tmp_path, ending):
    data = np.random.default_rng(1).normal(100, 20, (17, 18, 19)).astype(np.float32)
    path = tmp_path / f"scan{ending}"
    nifti.write(Volume(data, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    assert np.array_equal(nifti.read(path).data, data)


def test_doctor_says_which(library):
    said = doctor.examine()["files"]["gzip"]
    expected = "ISA-L" if library == "isal" else "zlib, many times slower, because the package isal cannot be imported"
    assert expected in said
