"""failures.json: which scans of a run have failed, and why; gone where none has."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mrisr import schema
from mrisr.batch.deliver import write_json
from mrisr.errors import InputError, OutputError

__all__ = ["check", "write"]

KEYS = {"Scan", "ExitCode"}  # that every entry has
LARGEST = 64 << 20  # bytes


def check(path: Path, *, force: bool = False) -> None:
    """Before the work: OutputError where `write` would replace or remove a file that mrisr has not written."""
    if not os.path.lexists(path) or (force and path.is_file()):
        return
    try:
        entries = schema.read(path, largest=LARGEST, lenient=True) if path.is_file() else None
    except InputError:
        entries = None
    if not isinstance(entries, list) or not all(isinstance(one, dict) and set(one) >= KEYS for one in entries):
        raise OutputError(f"{path}: is no list of failures that mrisr has written, and stays; move it away")


def write(path: Path, outcomes: Iterable[Any]) -> bool:
    """Write what failed to `path`, or remove what an earlier run has written there; whether any failed.

    outcomes: of `mrisr.batch.run`.
    """
    failed = [outcome.failure() for outcome in outcomes if outcome.state == "failed"]
    if failed:
        write_json(path, failed)
    else:
        path.unlink(missing_ok=True)
    return bool(failed)
