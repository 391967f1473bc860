"""Targets that may not be: an original, the target of another scan, or what the next run would take for a scan.

Scans are those of `mrisr.batch.scans`.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mrisr.errors import OutputError
from mrisr.io import nifti

__all__ = ["refuse_clashes", "refuse_found_again", "refuse_inside", "refuse_originals"]


def refuse_inside(output: Path, item: Path) -> None:
    """OutputError where `output` lies in the folder `item` that is searched."""
    if not item.is_dir():
        return
    outer, inner = item.resolve(), output.resolve()
    if inner == outer:
        raise OutputError(f"{output}: is the folder of the originals; give another")
    if outer in inner.parents:
        raise OutputError(f"{output}: lies inside the input {item}; the next run would find it there, give another")


def refuse_found_again(output: Path, scans: Iterable[Any], patterns: Sequence[str]) -> None:
    """OutputError where a pattern of the input matches the folder `output`, one that it lies in, or a result in it."""
    for pattern in patterns:
        whole = Path(os.path.abspath(pattern)).parts
        for path in (output, *output.absolute().parents, *(scan.target for scan in scans)):
            if _matches(Path(os.path.abspath(path)).parts, whole):
                raise OutputError(
                    f"{output}: the pattern {pattern} matches {path}; the next run would take it for a scan, give "
                    "another output"
                )


def refuse_originals(scans: Iterable[Any]) -> None:
    """OutputError where a result would take the place of a scan that is read: no option makes that right."""
    scans = tuple(scans)
    read = {os.path.realpath(file): one.name for scan in scans for one in (scan, *scan.others) for file in one.files}
    for scan in scans:
        if (original := read.get(os.path.realpath(scan.target))) is not None:
            raise OutputError(f"{scan.target}: is the original {original} itself; give another output")


def refuse_clashes(scans: Iterable[Any]) -> None:
    """OutputError where two scans have one target."""
    first_by_key: dict[str, Any] = {}
    for scan in scans:
        ending = nifti.ending_of(scan.target) or ""  # images that differ in it alone would share a sidecar
        key = str(scan.target)[: -len(ending) or None].casefold()  # some file systems do not tell capitals apart
        if key in first_by_key:
            raise OutputError(
                f"{scan.target}: would be written from {first_by_key[key].name} and from {scan.name}; rename one of "
                "them, or give them separate outputs"
            )
        first_by_key[key] = scan


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether `glob` would find `path`, if it were there; both by their parts."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return _matches(path, pattern[1:]) or (bool(path) and _matches(path[1:], pattern))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])
