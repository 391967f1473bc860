"""What `cmake --install` leaves behind: symbols, CMake and pkg-config files, examples, memory of a fresh process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from libmrisr import LIBRARY

import mrisr

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PREFIX = Path(LIBRARY or "lib/libmrisr.so").parents[1]


def run(*command, **options):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)


def test_exported_symbols_are_those_listed():
    nm = shutil.which("nm")
    assert nm, "nm is needed (binutils)"
    lines = run(nm, "-D", "--defined-only", "--format=posix", LIBRARY, check=True).stdout.split("\n")
    found = sorted(line.split("@")[0].split()[0] for line in lines if line.split()[1:2] == ["T"])
    versions = {line.split()[0] for line in lines if line.split()[1:2] not in ([], ["T"])}
    assert found == (HERE / "symbols.txt").read_text().split()
    assert versions == {"MRISR_1"}, "something other than functions leaves the library"


@pytest.mark.parametrize("program", ["upscale_c", "upscale_cpp"])
def test_examples_give_what_python_gives(folder, loaded, scan, tmp_path, program, monkeypatch):
    monkeypatch.delenv("MRISR_PRECISION")  # the examples leave the precision to the processor
    scan.astype(np.float32).tofile(tmp_path / "in.raw")
    numbers = [str(v) for v in (*scan.shape, 1.4, 1.4, 1.4)]
    done = run(PREFIX.parent / "examples" / program, folder, tmp_path / "in.raw", *numbers, tmp_path / "out.raw", "0.8")
    how = dict(model=loaded, engine="openvino", tile=None, threads=None, return_info=True)
    expected, info = mrisr.upscale(scan, input_voxel_size=1.4, voxel_size=0.8, **how)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout == " ".join(map(str, expected.shape)) + "\n"
    )  # what the example prints, and nothing of the library
    found = np.fromfile(tmp_path / "out.raw", np.float32).reshape(expected.shape)
    limit = 1e-5 if info.engine.precision == "float32" else 2e-3
    assert np.abs(found - expected).max() <= limit * (expected.max() - expected.min())


def test_examples_say_what_is_wrong(folder, tmp_path):
    (tmp_path / "short.raw").write_bytes(b"1234")
    example = PREFIX.parent / "examples" / "upscale_c"
    done = run(example, folder, tmp_path / "short.raw", 8, 8, 8, 1, 1, 1, tmp_path / "out.raw")
    assert done.returncode == 1 and "expected a file of exactly" in done.stderr
    done = run(example, tmp_path, tmp_path / "short.raw", 8, 8, 8, 1, 1, 1, tmp_path / "out.raw")
    assert done.returncode == 1 and "config.json: is missing" in done.stderr


def test_images_of_a_scanners_stream_become_whole_numbers_with_dicom_geometry(folder, loaded, tmp_path, monkeypatch):
    """Real messages of the MRD protocol, in any order, through the example: voxels and places are those of Python."""
    monkeypatch.delenv("MRISR_PRECISION", raising=False)
    sys.path.insert(0, str(HERE.parent / "serve"))
    pytest.importorskip("ismrmrd", reason="ismrmrd (extra mrd) is not installed")
    import mrd_client

    shape, voxel = (40, 34, 16), (1.4, 1.4, 2.0)
    images, centre = mrd_client.stack(shape, voxel, dtype=np.uint16)
    messages = b"".join(mrd_client.image_message(image) for image in reversed(images)) + b"\x04\x00"
    (tmp_path / "in").write_bytes(messages)
    done = run(PREFIX.parent / "examples" / "mrd_volume", folder, tmp_path / "in", tmp_path / "out", "1.0")
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    said = dict(lines)
    places = np.array([[float(v) for v in text.split("\\")] for key, text in lines if key == "ImagePositionPatient"])
    affine = np.eye(4)
    affine[:3, :3] = np.stack([images[0].read_dir, images[0].phase_dir, images[0].slice_dir], 1) * voxel
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    scan = np.stack([np.squeeze(image.data).T for image in images], -1).astype(np.float32)
    expected, info = mrisr.upscale(
        scan, affine=affine, voxel_size=1.0, model=loaded, engine="openvino", return_info=True
    )
    grid = np.array(info.target.affine)
    assert np.allclose(places, grid[:3, 3] + np.arange(expected.shape[2])[:, None] * grid[:3, 2], atol=1e-3)
    middle = places.mean(0) + grid[:3, :2] @ ((np.array(expected.shape[:2]) - 1) / 2)
    assert np.allclose(middle, centre, atol=1e-3)
    assert (int(said["Columns"]), int(said["Rows"]), len(places)) == expected.shape
    found = np.fromfile(tmp_path / "out", np.int16).reshape(expected.shape[::-1]).T * float(said["RescaleSlope"])
    limit = 1e-5 if info.engine.precision == "float32" else 2e-3
    assert np.abs(found - expected).max() <= limit * np.ptp(expected) + 0.51 * float(said["RescaleSlope"])
    (tmp_path / "cut").write_bytes(messages[:5000])
    done = run(PREFIX.parent / "examples" / "mrd_volume", folder, tmp_path / "cut", tmp_path / "none")
    assert done.returncode == 1 and "ends within an image" in done.stderr and not (tmp_path / "none").exists()


def test_pkg_config_builds_the_c_example(tmp_path):
    tool, compiler = shutil.which("pkg-config"), shutil.which("cc")
    if tool is None or compiler is None:
        pytest.skip("pkg-config or cc is not installed")
    found = {**os.environ, "PKG_CONFIG_PATH": str(PREFIX / "lib" / "pkgconfig")}
    flags = run(tool, "--cflags", "--libs", "mrisr", env=found, check=True).stdout.split()
    source = ROOT / "examples" / "embed" / "upscale.c"
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    run(compiler, *strict, source, "-o", tmp_path / "upscale", *flags, check=True)
    done = run(tmp_path / "upscale", env={**os.environ, "LD_LIBRARY_PATH": str(PREFIX / "lib")})
    assert done.returncode == 2 and "usage" in done.stderr


def test_the_headers_version_is_the_packages(library):
    assert library.c.mrisr_version().decode() == mrisr.__version__
    assert library.c.mrisr_builtin_engine().decode().startswith("openvino ")


FRESH = """
import json, re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from libmrisr import Library
import numpy as np
library = Library(Path(sys.argv[2]))
model = library.open(sys.argv[3])
budget = int(sys.argv[4])
axis = np.linspace(-1, 1, 80)
radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
data = np.where(radius < 0.9, 500 + 200 * np.sin(25 * axis), 0).astype(np.float32)
found = library.upscale(model, data, factor=1.75, memory=budget)
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"peak": peak, "tiles": found.info.tiles_run, "expected": found.geometry.expected_bytes}))
"""


def test_the_budget_is_kept(folder):
    budget = 480 * 10**6
    done = run(sys.executable, "-c", FRESH, HERE, LIBRARY, folder, budget)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tiles"] > 1 and found["peak"] <= budget and found["expected"] <= budget
