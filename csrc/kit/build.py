"""One archive for who embeds libmrisr: build/mrisr-VERSION-SYSTEM.tar.gz (`make vendor-kit`).

    python csrc/kit/build.py [--model base]

Library with OpenVINO beside it (looked for nowhere else), header, CMake and pkg-config files, a bundle in float32 and
float16, examples, guide, licences, third-party notices and an SPDX bill of materials. It can be unpacked anywhere.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

import sbom

import mrisr

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "build" / "runtime"  # what `make runtime` has compiled is not compiled again
NAME = f"mrisr-{mrisr.__version__}-{platform.system().lower()}-{platform.machine()}"


def tool(name: str) -> str:
    """The environment's own tool first: its version is the one that pyproject.toml asks for."""
    beside = Path(sys.executable).with_name(name)
    path = str(beside) if beside.exists() else shutil.which(name)
    if path is None:
        raise SystemExit(f"vendor-kit: {name} is not installed (pip install cmake ninja; binutils)")
    return path


def tell(line: str) -> None:
    """Standard output has the archive's path alone."""
    print(line, file=sys.stderr)


def quiet(*command: str | Path) -> str:
    """Run; its output where it succeeds, an exit with all of it where it fails."""
    process = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if process.returncode:
        raise SystemExit(f"vendor-kit: {' '.join(map(str, command))}\n{process.stdout}")
    return process.stdout


def install(prefix: Path) -> None:
    """libmrisr, OpenVINO's libraries beside it, header, CMake and pkg-config files."""
    spec = importlib.util.find_spec("openvino")
    if spec is None:
        raise SystemExit("vendor-kit: openvino is not installed (pip install openvino)")
    options = {
        "CMAKE_MAKE_PROGRAM": tool("ninja"),
        "CMAKE_INSTALL_LIBDIR": "lib",
        "MRISR_BUNDLE_OPENVINO": "ON",
        "OpenVINO_DIR": Path(spec.origin).parent / "cmake",
        "Python_EXECUTABLE": sys.executable,
    }
    quiet(tool("cmake"), "-S", ROOT, "-B", TREE, "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items()))
    quiet(tool("cmake"), "--build", TREE, "--target", "mrisr")
    quiet(tool("cmake"), "--install", TREE, "--prefix", prefix, "--strip")


def add_bundle(prefix: Path, model: str) -> None:
    from mrisr.export.build import export_bundle
    from mrisr.weights import registry

    folder = prefix / "share" / "mrisr" / "bundles"
    folder.mkdir(parents=True)
    export_bundle(registry.load(model), folder / model, precisions=("float32", "float16"), say=tell)


def add_texts(prefix: Path) -> None:
    """Guide, latency, examples, licence, and the notices of what is linked."""
    texts = prefix / "share" / "doc" / "mrisr"
    texts.mkdir(parents=True)
    for name in ("docs/embedding.md", "benchmarks/results/latency.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, texts)
    shutil.copy(ROOT / "LICENSE", prefix / "LICENSE")
    shutil.copytree(ROOT / "examples" / "embed", prefix / "examples")
    (prefix / "THIRD_PARTY_NOTICES.txt").write_text(notices(), encoding="utf-8")
    readme = (Path(__file__).parent / "README.md.in").read_text(encoding="utf-8")
    needs = "\n".join(f"- {line}" for line in sbom.system_needs(prefix / "lib"))
    readme = readme.replace("@NAME@", NAME).replace("@VERSION@", mrisr.__version__).replace("@NEEDS@", needs)
    (prefix / "README.md").write_text(readme, encoding="utf-8")


def notices() -> str:
    """The licences of OpenVINO, of all that is in its libraries, and of nlohmann-json, as their packages carry them."""
    parts = []
    for package, title in (("openvino", "OpenVINO Runtime"), ("nlohmann-json", "nlohmann-json (headers, compiled in)")):
        files_of_licence = [f for f in metadata.files(package) or [] if ".dist-info/licenses/" in f.as_posix()]
        if not files_of_licence:
            raise SystemExit(f"vendor-kit: the package {package} carries no licence files; install it from its wheel")
        parts.append(f"{title} {metadata.version(package)}\n{'=' * 72}")
        for file in sorted(files_of_licence):
            text = file.locate().read_text(encoding="utf-8", errors="replace")
            parts.append(f"---- {file.as_posix().split('/licenses/')[-1]} ----\n\n{text.strip()}")
    return "\n\n".join(parts) + "\n"


def check(prefix: Path) -> None:
    """Numbers that agree, and no path of this machine in what leaves it."""
    library = prefix / "lib" / "libmrisr.so"
    dynamic = quiet(tool("readelf"), "-d", library)
    soname = re.search(r"SONAME.*\[(.*)\]", dynamic)[1]
    runpath = re.search(r"(?:RUNPATH|RPATH).*\[(.*)\]", dynamic)[1]
    file = library.resolve().name
    text = (prefix / "lib" / "cmake" / "mrisr" / "mrisrConfigVersion.cmake").read_text()
    packaged = re.search(r'PACKAGE_VERSION "(.*)"', text)[1]
    piped = re.search(r"Version: (.*)", (prefix / "lib" / "pkgconfig" / "mrisr.pc").read_text())[1]
    if file != f"{soname}.{mrisr.__version__}" or {packaged, piped} != {mrisr.__version__}:
        raise SystemExit(f"vendor-kit: versions disagree: {file}, {soname}, {packaged}, {piped}, {mrisr.__version__}")
    if runpath != "$ORIGIN":
        raise SystemExit(f"vendor-kit: the library looks for others in {runpath}; expected $ORIGIN alone")
    for path in prefix.rglob("*"):
        place = sbom.machine_path(path, ROOT) if path.is_file() else None
        if place is not None:
            raise SystemExit(f"vendor-kit: {path.relative_to(prefix)} holds a path of this machine ({place})")


def pack(prefix: Path, archive: Path) -> None:
    """Sorted, without owner or time: the same content gives the same bytes."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        return member

    beside = archive.with_name(archive.name + ".new")
    with (
        open(beside, "wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path in sorted(prefix.rglob("*")):
            tar.add(path, f"{NAME}/{path.relative_to(prefix)}", recursive=False, filter=plain)
    os.replace(beside, archive)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base", help="shipped weights of the bundle (default: base)")
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / NAME
        install(prefix)
        add_bundle(prefix, model)
        add_texts(prefix)
        check(prefix)
        sbom.write(prefix, NAME, model)
        archive = ROOT / "build" / f"{NAME}.tar.gz"
        pack(prefix, archive)
    tell(f"{archive.stat().st_size / 1e6:.0f} MB")
    print(archive)
    return 0


if __name__ == "__main__":
    sys.exit(main())
