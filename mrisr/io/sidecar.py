"""What BIDS sidecars state of how an image was acquired."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from mrisr import schema
from mrisr.errors import InputError, MrisrWarning

# Converters that keep every header of a series write megabytes.
LARGEST, DEPTH = 1 << 24, 64
_LENGTH = Annotated[float, Meta(gt=0, le=100)]  # mm; sidecars may hold NaN and Infinity, and lengths in metres
_WITHIN = {
    "SliceThickness": _LENGTH,
    "SpacingBetweenSlices": _LENGTH,
    "AcquiredVoxelSize": Annotated[list[_LENGTH], Meta(min_length=3, max_length=3)],
    "MagneticFieldStrength": Annotated[float, Meta(gt=0, le=100)],
}


def read(path: Path) -> Any:
    """The content of a sidecar, whatever it is. Raises InputError."""
    return schema.read(path, largest=LARGEST, depth=DEPTH, lenient=True)


def facts(sidecars: Sequence[Path], kinds: dict[str, Any]) -> dict[str, Any]:
    """Those facts of `kinds` that sidecars state, a later one before an earlier one. Warns (MrisrWarning) where one
    cannot be read, or states a value of another kind, which is not used."""
    total: dict = {}
    for sidecar in sidecars:
        total |= _facts_of_one(sidecar, kinds)
    return total


def _facts_of_one(path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    try:
        content = schema.check(read(path), dict, str(path))
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        _warn(f"{path}: the sidecar cannot be read ({reason}); its facts are not used")
        return {}
    of_sidecar = {}
    for name, kind in kinds.items():
        if name not in content:
            continue
        try:
            of_sidecar[name] = schema.check(content[name], _WITHIN.get(name, kind), f"{path}: {name}")
        except InputError as error:
            _warn(f"{error}; it is not used")
    return of_sidecar


def _warn(message: str) -> None:
    warnings.warn(message, MrisrWarning, stacklevel=7)
