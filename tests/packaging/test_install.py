"""The package as users get it: a wheel, used from another directory, and an editable install; with and
without a compiler.

Heavy dependencies are taken from the running environment (--no-deps and a .pth file), so that only mrisr
itself is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow("builds wheels and fresh environments")


def run(*command: str, cwd: Path, **extra: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MRISR_", "PYTHONPATH"))}
    done = subprocess.run(command, cwd=cwd, env=environment | extra, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def source_copy(folder: Path) -> Path:
    """What git tracks (and what is new and not ignored), so that no build of the checkout leaks into the
    test."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith("tests/") or not (ROOT / name).is_file():
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return folder


def environment(folder: Path) -> str:
    """A fresh environment that sees this one's dependencies, but not this one's mrisr. Its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    ours = Path(sysconfig.get_paths()["purelib"])
    theirs = Path(
        run(str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=folder).strip()
    )
    # Names added to sys.path come after the fresh environment's own; .pth files of ours are not read: no
    # editable mrisr.
    (theirs / "dependencies.pth").write_text(f"{ours}\n")
    return str(python)


def pip_install(python: str, *what: str, cwd: Path, **extra: str) -> None:
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", *what, cwd=cwd, **extra)


REPORT = textwrap.dedent(
    """
    import json, importlib.metadata, importlib.resources, mrisr
    from mrisr import native, ops
    import mrisr.kernels
    found = {"file": mrisr.__file__, "version": mrisr.__version__, "facts": native.describe()}
    found["kernels"] = sorted(p.name for p in importlib.resources.files("mrisr.kernels").iterdir())
    found["weights"] = sorted(p.name for p in importlib.resources.files("mrisr.weights").iterdir())
    found["metadata"] = importlib.metadata.version("mrisr")
    from mrisr.ops.noise import normal_noise
    found["noise"] = normal_noise((2, 3, 4), seed=1).flatten().tolist()
    print(json.dumps(found))
    """
)


def report(python: str, cwd: Path) -> dict:
    return json.loads(run(python, "-c", REPORT, cwd=cwd).splitlines()[-1])


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return source_copy(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def build_wheel(source: Path, target: Path, **extra: str) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(target),
        str(source),
    ]
    run(*command, cwd=target, **extra)
    return next(target.glob("mrisr-*.whl"))


def test_wheel(source, elsewhere, tmp_path):
    wheel = build_wheel(source, tmp_path, MRISR_CUDA="0", MRISR_NATIVE="1")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("mrisr/_native") for name in names) and "py3-none-any" not in wheel.name
    assert not [name for name in names if name.startswith(("tests/", "csrc/", "kernels/", "build/"))]
    python = environment(tmp_path / "env")
    pip_install(python, str(wheel), cwd=elsewhere)
    found = report(python, elsewhere)
    assert str(tmp_path) in found["file"] and found["version"] == found["metadata"]
    assert found["facts"]["native"] is True and "MRISR_CUDA=0" in found["facts"]["cuda_reason"]
    assert {"group_norm.py", "noise.py"} <= set(found["kernels"])
    in_source = {
        p.name for p in (source / "mrisr" / "weights").iterdir() if p.suffix in {".safetensors", ".md", ".json"}
    }
    assert in_source <= set(found["weights"])
    assert "usage: mrisr" in run(str(tmp_path / "env" / "bin" / "mrisr"), "--help", cwd=elsewhere)


def test_without_a_compiler_it_is_pure_python_and_says_so(source, elsewhere, tmp_path):
    (tmp_path / "nothing").mkdir()
    wheel = build_wheel(source, tmp_path, PATH=str(tmp_path / "nothing"), CXX="no-such-compiler")
    assert wheel.name.endswith("py3-none-any.whl")
    python = environment(tmp_path / "env")
    pip_install(python, str(wheel), cwd=elsewhere)
    found = report(python, elsewhere)
    assert found["facts"]["native"] is False
    assert found["facts"]["native_reason"].startswith("no C++ compiler at build time")
    assert len(found["noise"]) == 24


def test_a_failing_build_is_told_from_an_absent_one(source, elsewhere, tmp_path):
    compiler = tmp_path / "broken-c++"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    broken = {"CXX": str(compiler), "MRISR_CUDA": "0"}
    wheel = build_wheel(source, tmp_path, **broken)
    text = zipfile.ZipFile(wheel).read("mrisr/_build_info.py").decode()
    assert "NATIVE = False" in text and "the native build failed" in text
    with pytest.raises(AssertionError, match="CalledProcessError"):
        build_wheel(source, tmp_path, MRISR_NATIVE="1", **broken)


def test_source_distribution_can_build_the_core(source, tmp_path):
    run(sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path), cwd=source)
    with tarfile.open(next(tmp_path.glob("mrisr-*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    native = {str(path.relative_to(source)) for path in (source / "csrc").rglob("*") if path.is_file()}
    assert {"CMakeLists.txt", "pyproject.toml", "kernels/noise.py", *native} <= names


def test_editable(source, elsewhere, tmp_path):
    python = environment(tmp_path / "env")
    pip_install(python, "-e", str(source), cwd=elsewhere, MRISR_CUDA="0")
    found = report(python, elsewhere)
    assert str(source) in found["file"] and found["facts"]["native"] is True
    assert "noise.py" in found["kernels"]
