"""What differs from scan to scan in the options that a batch shares: files on a scan's own grid, named by a pattern.

A mask or a bias field lies on the grid of one scan, so several scans need several files. `{name}` in such an option
stands for the scan's name without its ending ("sub-01/anat/sub-01_T1w"), `{stem}` for the last part of it.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from mrisr.batch.scans import Scan
from mrisr.corrections import read_distortion
from mrisr.errors import InputError, UsageError
from mrisr.io import nifti

__all__ = ["FIELDS", "check", "distortion", "identifying", "options"]

OWN = ("mask", "bias")  # options that name a file on the scan's grid
PATTERNS = (*OWN, "gradnl")  # a displacement field is in scanner coordinates: one may serve all, or each have its own
JOINING = ("register", "force")  # of several scans of one head
FIELDS = ("{name}", "{stem}")


def check(shared: dict[str, Any], several: bool) -> None:
    """UsageError where an option names one file and there are several scans, or a pattern that cannot be filled."""
    for option in OWN:
        value = shared.get(option)
        if not isinstance(value, str) or (option == "bias" and value == "auto"):
            continue
        if several and not any(field in value for field in FIELDS):
            auto = ", or auto" if option == "bias" else ""
            raise UsageError(
                f"--{option}: {value} lies on the grid of one scan; for several give a pattern that holds "
                f"{' or '.join(FIELDS)}{auto}"
            )


def options(shared: dict[str, Any], scan: Scan) -> dict[str, Any]:
    """`shared` with the patterns filled in for `scan`. Raises InputError where it has no such file."""
    own: dict[str, Any] = {}
    if not scan.others:
        shared = {name: value for name, value in shared.items() if name not in JOINING}
    for option in PATTERNS:
        pattern = shared.get(option)
        if not isinstance(pattern, str) or not any(field in pattern for field in FIELDS):
            continue
        ending = nifti.ending_of(Path(scan.name), nifti.READ_ENDINGS) or ""
        bare = scan.name[: len(scan.name) - len(ending)]
        path = pattern.replace("{name}", bare).replace("{stem}", PurePosixPath(bare).name)
        if not Path(path).is_file():
            raise InputError(f"{scan.name}: has no {option}; expected {path}, by the pattern {pattern}")
        own[option] = path
    return {**shared, **own}


def distortion(own: dict[str, Any], radius: float | None, volume: Any) -> Any:
    """`gradnl` as `mrisr.upscale` takes it: with `radius` the coefficients are read here, for they do not state it."""
    if radius is None:
        return own.get("gradnl")
    return read_distortion(own["gradnl"], radius, volume.meta)[0]


def identifying(own: dict[str, Any], dtype: str, radius: float | None) -> dict[str, Any]:
    """The options that decide a result, for its identity."""
    return {**own, "dtype": dtype, **({} if radius is None else {"radius": radius})}
