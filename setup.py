"""Build mrisr: pure Python, plus the native core where a C++ compiler is, plus CUDA where nvcc is.

    MRISR_NATIVE = auto | 0 | 1    auto: build the C++ core if it can be built; 0: pure Python; 1: or fail
    MRISR_CUDA   = auto | 0 | 1    auto: add the CUDA kernels if nvcc is found; 0: CPU only; 1: or fail
    MRISR_CUDA_ARCHS = "80 90a 100"    the architectures to compile for
    MRISR_BUILD_TYPE = Release         or another CMake build type

What was built, or the reason why not, is written to mrisr/_build_info.py, which `mrisr doctor` prints.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CUDA_ARCHS = ("80", "90a", "100")


def switch(name: str) -> str:
    value = os.environ.get(name, "auto").strip().lower() or "auto"
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{name} must be auto, 0 or 1; it is {value!r}")
    return value


def find_compiler() -> str | None:
    choice = os.environ.get("CXX")
    candidates = [choice.split()[0]] if choice else ["c++", "g++", "clang++"]
    return next((path for name in candidates if (path := shutil.which(name))), None)


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [str(Path(home) / "bin" / "nvcc")] if home else []
    candidates += ["nvcc", "/usr/local/cuda/bin/nvcc"]
    return next((path for name in candidates if (path := shutil.which(name))), None)


def native_refusal() -> str | None:
    """Why the native core is not built here; None where it is."""
    if switch("MRISR_NATIVE") == "0":
        return "switched off at build time (MRISR_NATIVE=0)"
    if sys.platform == "win32":
        return "the native core builds with GCC or Clang; this is Windows"
    if find_compiler() is None:
        return "no C++ compiler at build time (looked for CXX, c++, g++, clang++)"
    return None


def cuda_refusal() -> str | None:
    """Why the CUDA kernels are not built here; None where they are."""
    if switch("MRISR_CUDA") == "0":
        return "switched off at build time (MRISR_CUDA=0)"
    if find_nvcc() is None:
        return "no nvcc at build time (looked at CUDA_HOME, PATH, /usr/local/cuda)"
    return None


def cuda_archs(nvcc: str) -> list[str]:
    """The wanted architectures that this nvcc knows; an older one lacks the newest."""
    archs = os.environ.get("MRISR_CUDA_ARCHS", " ".join(CUDA_ARCHS)).replace(",", " ").split()
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return [arch for arch in archs if f"sm_{arch.rstrip('abcdef')}" in listed]


def write_build_info(directory: Path, info: dict[str, object]) -> None:
    lines = ['"""Written by setup.py: what was built, and the reason for what was not."""', ""]
    lines += [f"{key} = {value!r}" for key, value in info.items()]
    directory.mkdir(parents=True, exist_ok=True)
    beside = directory / f"_build_info.py.{os.getpid()}"
    beside.write_text("\n".join(lines) + "\n")
    os.replace(beside, directory / "_build_info.py")


def refusal(reason: str) -> dict[str, object]:
    return {"NATIVE": False, "NATIVE_REASON": reason, "CUDA": False, "CUDA_REASON": reason, "COMPILER": None}


class BuildPython(build_py):
    """Record the reason where no extension is built; build_ext records the rest."""

    def run(self) -> None:
        super().run()
        reason = native_refusal()
        if reason is not None:
            target = ROOT / "mrisr" if self.editable_mode else Path(self.build_lib) / "mrisr"
            write_build_info(target, refusal(reason))
            if self.editable_mode:
                # An extension of an earlier build must not stay in use behind a record that denies it.
                for stale in target.glob("_native*.so"):
                    stale.unlink()


class BuildNative(build_ext):
    """One CMake + ninja build; its module lands where setuptools expects the extension."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        info: dict[str, object]
        reason = cuda_refusal()
        try:
            if reason is None:
                try:
                    archs = self.cmake(output, cuda=True)
                except (subprocess.CalledProcessError, RuntimeError) as error:
                    if switch("MRISR_CUDA") == "1":
                        raise
                    reason = f"the CUDA build failed: {error}"
                    print(f"mrisr: {reason}; building for CPU only", file=sys.stderr)
            elif switch("MRISR_CUDA") == "1":
                raise RuntimeError(reason)
            if reason is not None:
                archs = self.cmake(output, cuda=False)
            info = {
                "NATIVE": True,
                "NATIVE_REASON": None,
                "CUDA": reason is None,
                "CUDA_REASON": reason,
                "CUDA_ARCHS": archs,
                "COMPILER": find_compiler(),
            }
        except (subprocess.CalledProcessError, RuntimeError, OSError) as error:
            if switch("MRISR_NATIVE") == "1" or switch("MRISR_CUDA") == "1":
                raise
            print(f"mrisr: the native build failed ({error}); installing pure Python", file=sys.stderr)
            info = refusal(f"the native build failed: {error}")
        for directory in {output.parent, ROOT / "mrisr"} if self.inplace_wanted else {output.parent}:
            write_build_info(directory, info)

    def run(self) -> None:
        # setuptools clears `inplace` while it builds and copies afterwards; the record needs to know.
        self.inplace_wanted = bool(self.inplace)
        super().run()

    def cmake(self, output: Path, *, cuda: bool) -> list[str]:
        kind = "cuda" if cuda else "cpu"
        tree = ROOT / "build" / f"native-{sys.implementation.cache_tag}-{kind}"
        cmake, ninja = build_tool("cmake"), build_tool("ninja")
        import pybind11

        options = {
            "CMAKE_BUILD_TYPE": os.environ.get("MRISR_BUILD_TYPE", "Release"),
            "CMAKE_MAKE_PROGRAM": ninja,
            "CMAKE_CXX_COMPILER": find_compiler(),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "MRISR_PYTHON": "ON",
            "MRISR_CUDA": "ON" if cuda else "OFF",
        }
        archs: list[str] = []
        if cuda:
            nvcc = find_nvcc()
            archs = cuda_archs(nvcc)
            if not archs:
                raise RuntimeError(f"{nvcc} knows none of the architectures {', '.join(CUDA_ARCHS)}")
            options["CMAKE_CUDA_COMPILER"] = nvcc
            options["CMAKE_CUDA_ARCHITECTURES"] = ";".join(f"{arch}-real" for arch in archs)
        defines = [f"-D{key}={value}" for key, value in options.items()]
        subprocess.run([cmake, "-S", str(ROOT), "-B", str(tree), "-G", "Ninja", *defines], check=True)
        subprocess.run([cmake, "--build", str(tree), "--target", "_native"], check=True)
        library = next(iter(tree.glob("_native*.so")), None)
        if library is None:
            raise RuntimeError(f"CMake finished but left no _native*.so in {tree}")
        output.parent.mkdir(parents=True, exist_ok=True)
        beside = output.with_name(f"{output.name}.{os.getpid()}")
        shutil.copy2(library, beside)
        os.replace(beside, output)  # a process that has the old module mapped keeps it
        return archs


def build_tool(name: str) -> str:
    """The tool of the build environment first: its version is the one that pyproject.toml asks for."""
    beside = Path(sys.executable).with_name(name)
    path = str(beside) if beside.exists() else shutil.which(name)
    if not path:
        raise RuntimeError(f"{name} not found; install it with pip, or build with isolation")
    return path


def extensions() -> list[Extension]:
    # A source distribution carries the C++ and CUDA files wherever it is made.
    if native_refusal() and "sdist" not in sys.argv:
        return []
    sources = sorted(p for p in (ROOT / "csrc").rglob("*") if p.is_file())
    depends = ["CMakeLists.txt", *(str(path.relative_to(ROOT)) for path in sources)]
    # A module that fails to build leaves a pure-Python install (unless MRISR_NATIVE=1), hence optional.
    return [Extension("mrisr._native", sources=[], depends=depends, optional=True)]


packages = find_packages(include=["mrisr", "mrisr.*"]) + ["mrisr.kernels"]

setup(
    packages=packages,
    package_dir={"mrisr.kernels": "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative},
    zip_safe=False,
)
