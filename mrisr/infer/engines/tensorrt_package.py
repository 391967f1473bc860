"""TensorRT, in the flavour that is installed: TensorRT for data centres, or TensorRT for RTX.

Both have one Python API and plans that the other cannot read. TensorRT builds on the GPU that will run the plan;
TensorRT for RTX builds without a GPU or driver. Nothing here imports either before it is asked to (`load`).
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from mrisr import schema
from mrisr.errors import BackendError, because, excerpt

# flavour, which is also the name of mrisr's extra -> (in words, import names: of the whole, and of the bindings alone)
FLAVOURS = {
    "tensorrt": ("TensorRT", ("tensorrt", "tensorrt_bindings")),
    "tensorrt-rtx": ("TensorRT for RTX", ("tensorrt_rtx", "tensorrt_rtx_bindings")),
}


@dataclass(frozen=True)
class Package:
    """What was found: `flavour` of FLAVOURS, `version`, and `api`, the module."""

    flavour: str
    version: str
    api: Any

    def __str__(self) -> str:
        return f"{FLAVOURS[self.flavour][0]} {self.version}"


class Notes(Struct):
    """What stands in a plan's notes of interest to those who load it (model.plan.json; the rest is for people)."""

    flavour: str
    tensorrt: str
    portable: bool | UnsetType = UNSET


def import_name(flavour: str) -> str | None:
    """What to import for a flavour, or None where it is not installed. Imports nothing."""
    return next((name for name in FLAVOURS[flavour][1] if importlib.util.find_spec(name) is not None), None)


def missing(plan: Path | None = None) -> str | None:
    """None where a flavour is installed (that of `plan`, where its notes say so), else why not. Imports nothing."""
    if not any(map(import_name, FLAVOURS)):
        return "the package tensorrt is not installed (pip install '.[tensorrt]' or '.[tensorrt-rtx]')"
    notes = notes_of(plan) if plan is not None else None
    if notes is None or import_name(notes.flavour):
        return None
    maker = f"{FLAVOURS[notes.flavour][0]} {notes.tensorrt}"
    here = ", ".join(FLAVOURS[f][0] for f in FLAVOURS if import_name(f))
    return (
        f"{plan} was built by {maker} and only {here} is installed: pip install '.[{notes.flavour}]', or build the "
        "plan again with mrisr export --format tensorrt"
    )


def load(plan: Path | None = None) -> Package:
    """The package: the flavour and version that built `plan`, or else the first of FLAVOURS that is installed.

    Raises:
        BackendError: none is installed, its import fails, or it cannot read that plan.
    """
    reason = missing(plan)
    if reason:
        raise BackendError(f"tensorrt: {reason}")
    notes = notes_of(plan) if plan is not None else None
    flavour = notes.flavour if notes else next(filter(import_name, FLAVOURS))
    name = import_name(flavour)
    try:
        api = importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: its libraries are incomplete
        raise BackendError(
            f"tensorrt: {name} cannot be imported ({because(error)}); pip install '.[{flavour}]'"
        ) from error
    package = Package(flavour, str(api.__version__), api)
    if notes is not None and not _reads(package, notes):
        raise BackendError(
            f"tensorrt: {plan} was built by {FLAVOURS[flavour][0]} {notes.tensorrt}, and {package} is installed, which "
            "does not read it; build the plan again with mrisr export --format tensorrt"
        )
    return package


def _reads(package: Package, notes: Notes) -> bool:
    """A plan is for the version that built it; a portable one of TensorRT is for the later minor ones too."""
    if package.version == notes.tensorrt:
        return True
    here, there = (version.split(".") for version in (package.version, notes.tensorrt))
    later = here[0] == there[0] and _numbers(here) >= _numbers(there)
    return package.flavour == "tensorrt" and notes.portable is True and later


def _numbers(parts: list[str]) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in parts]


def notes_of(plan: Path) -> Notes | None:
    """The notes beside a plan, or None where there are none. BackendError where they are damaged."""
    path = plan.with_name(plan.name + ".json")
    if not path.is_file():
        return None
    notes = schema.check(schema.read(path, error=BackendError), Notes, str(path), error=BackendError)
    if notes.flavour not in FLAVOURS:
        raise BackendError(f"{path}: flavour: expected {' or '.join(FLAVOURS)}, found {excerpt(notes.flavour)}")
    return notes


def no_driver() -> str | None:
    """None where a CUDA driver starts, else why not."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "this machine has no NVIDIA driver"
    code = driver.cuInit(0)
    return None if code == 0 else f"the NVIDIA driver does not start (cuInit returned {code})"
