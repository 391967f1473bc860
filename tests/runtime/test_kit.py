"""`make vendor-kit`: unpacked elsewhere, built against by plain CMake, run with an empty environment."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import mrisr

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "csrc" / "kit"))
KIT = os.environ.get("MRISR_KIT")  # the archive
pytestmark = pytest.mark.skipif(KIT is None, reason="`make vendor-kit` builds the kit and runs these (MRISR_KIT)")


def run(*command, **options):
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Path:
    """The one folder of the archive, in a place whose name has a space."""
    folder = tmp_path_factory.mktemp("some where")
    with tarfile.open(KIT) as archive:
        archive.extractall(folder, filter="data")
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def bill(kit) -> dict:
    return json.loads((kit / "sbom.spdx.json").read_text())


def test_an_example_is_built_and_runs_with_an_empty_environment(kit, head, tmp_path, monkeypatch):
    monkeypatch.delenv("MRISR_PRECISION", raising=False)  # as the example, which leaves it to the processor
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    plain = {"PATH": os.environ["PATH"]}
    for words in (("-S", kit / "examples", "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={kit}"),
                  ("--build", tmp_path / "build", "--target", "upscale_c")):  # fmt: skip
        done = run(cmake, *words, env=plain)
        assert done.returncode == 0, done.stdout + done.stderr
    scan = head((34, 40, 30)).round().astype(np.float32)
    scan.tofile(tmp_path / "in.raw")
    numbers = [*map(str, scan.shape), "1.4", "1.4", "1.4"]
    bundle, out = kit / "share/mrisr/bundles/base", tmp_path / "out.raw"
    done = run(tmp_path / "build/upscale_c", bundle, tmp_path / "in.raw", *numbers, out, "0.8", env={}, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "plan: 34 x 40 x 30 voxels" in done.stderr and "compiled for tiles of" in done.stderr  # the log
    how = dict(input_voxel_size=1.4, voxel_size=0.8, engine="openvino", return_info=True)
    expected, info = mrisr.upscale(scan, **how)
    found = np.fromfile(out, np.float32).reshape(expected.shape)
    limit = 1e-5 if info.engine.precision == "float32" else 2e-3
    assert np.abs(found - expected).max() <= limit * np.ptp(expected)


def test_the_numbers_agree_and_no_path_of_the_builder_is_left(kit):
    library = (kit / "lib/libmrisr.so").resolve()
    dynamic = run("readelf", "-d", library).stdout
    soname = re.search(r"SONAME.*\[(.*)\]", dynamic)[1]
    assert (kit / "lib" / soname).exists() and library.name == f"{soname}.{mrisr.__version__}"
    assert re.search(r"R(UN)?PATH.*\[(.*)\]", dynamic)[2] == "$ORIGIN"
    assert mrisr.__version__ in kit.name
    assert f'PACKAGE_VERSION "{mrisr.__version__}"' in (kit / "lib/cmake/mrisr/mrisrConfigVersion.cmake").read_text()
    assert f"Version: {mrisr.__version__}\n" in (kit / "lib/pkgconfig/mrisr.pc").read_text()
    assert f"#define MRISR_ABI_VERSION {soname.rpartition('.')[2]}\n" in (kit / "include/mrisr.h").read_text()
    import sbom

    assert [path for path in kit.rglob("*") if path.is_file() and sbom.machine_path(path, ROOT)] == []


def test_everything_that_its_readme_names_is_there(kit):
    cells = re.findall(r"^\| (`[^|]+`) \|", (kit / "README.md").read_text(), re.M)
    names = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert "share/doc/mrisr/latency.md" in names and len(names) >= 9
    assert [name for name in names if not (kit / name).exists()] == []


def test_the_bundle_has_both_precisions(kit):
    config = json.loads((kit / "share/mrisr/bundles/base/config.json").read_text())
    assert {g["precision"] for g in config["graphs"]} == {"float32", "float16"}


def test_the_bill_of_materials_is_valid_spdx(kit):
    parse = pytest.importorskip("spdx_tools.spdx.parser.parse_anything", reason="spdx-tools is not installed")
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

    document = parse.parse_file(str(kit / "sbom.spdx.json"))
    assert [m.validation_message for m in validate_full_spdx_document(document, "SPDX-2.3")] == []


def test_the_bill_has_every_file_and_everything_that_is_linked(kit, bill):
    sums = {f["fileName"]: {c["algorithm"]: c["checksumValue"] for c in f["checksums"]} for f in bill["files"]}
    files = {f"./{p.relative_to(kit)}": p for p in kit.rglob("*") if p.is_file() and not p.is_symlink()}
    del files["./sbom.spdx.json"]
    assert set(sums) == set(files)
    for name, path in files.items():
        assert sums[name]["SHA256"] == hashlib.sha256(path.read_bytes()).hexdigest(), name
    packages = {p["name"]: p for p in bill["packages"]}
    assert packages["mrisr"]["versionInfo"] == mrisr.__version__
    linked = " ".join(p.get("comment", "") for p in packages.values())
    here = {p.name for p in (kit / "lib").iterdir()}
    for library in (kit / "lib").glob("*.so*"):
        for name in re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library).stdout):
            assert name in here or name in linked, f"{library.name} needs {name}, which the bill does not know"


def test_notices_hold_the_licence_of_every_package_that_is_distributed(kit):
    notices, needs = (kit / "THIRD_PARTY_NOTICES.txt").read_text(), (kit / "README.md").read_text()
    for name in ("OpenVINO", "oneDNN", "nlohmann", "Threading Building Blocks", "Apache License", "MIT License"):
        assert name in notices, name
    assert "glibc with the symbols GLIBC_2." in needs and "Apache License" in (kit / "LICENSE").read_text()
