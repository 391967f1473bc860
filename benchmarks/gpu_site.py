"""The few packages that mrisr needs and a bare machine with PyTorch lacks, in one folder that is carried along.

    python benchmarks/gpu_site.py DIR [--python 3.12]     with network, before: wheels for that Python, unpacked
    python benchmarks/gpu_day.py --site DIR ...           without network, there

What PyTorch itself brings is not in it (REQUIRED), nor what only other parts of mrisr need.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

# By import name: PyTorch with CUDA, what it depends on, and NumPy.
REQUIRED = (
    "torch", "torchgen", "functorch", "triton", "numpy", "sympy", "isympy", "mpmath", "networkx", "jinja2",
    "markupsafe", "filelock", "fsspec", "typing_extensions", "setuptools", "pkg_resources", "_distutils_hack",
    "nvidia", "cuda",
)  # fmt: skip
# Package -> import name. cmake and ninja are for the extension, accelerate and what it imports for training.
CARRIED = {
    "msgspec": "msgspec",
    "safetensors": "safetensors",
    "pybind11": "pybind11",
    "ninja": "ninja",
    "cmake": "cmake",
    "accelerate": "accelerate",
    "huggingface_hub": "huggingface_hub",
    "packaging": "packaging",
    "psutil": "psutil",
    "pyyaml": "yaml",
}

# Most of cmake's bytes.
UNUSED = ("cmake/data/bin/c[!m]*", "cmake/data/doc", "cmake/data/share/cmake*/Help", "cmake/data/share/[!c]*")


def make(folder: Path, python: str) -> None:
    """Fill `folder`; raises CalledProcessError where pip does not find a wheel."""
    constraints = Path(__file__).resolve().parents[1] / "constraints.txt"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--upgrade"]
    command += [
        "--python-version",
        python,
        "--platform",
        "manylinux_2_28_x86_64",
        "--platform",
        "manylinux_2_17_x86_64",
    ]
    subprocess.run([*command, "-c", str(constraints), "--target", str(folder), *CARRIED], check=True)
    for pattern in UNUSED:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="of the machine it is for (default: 3.12)")
    args = parser.parse_args()
    make(args.folder, args.python)
    size = sum(path.stat().st_size for path in args.folder.rglob("*") if path.is_file())
    print(f"{args.folder}: {size / 2**20:.0f} MiB for Python {args.python}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
