"""Every exception and warning that mrisr raises on purpose.

Each class carries the exit code of the command line, so that a script can tell a wrong option from an
unreadable file. Exit code 1 is left for bugs and 130 for Ctrl-C. Messages are one line: what was expected,
what was found, what to do.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = [
    "CATCHING",
    "BackendError",
    "GeometryError",
    "InputError",
    "MemoryBudgetError",
    "ModelError",
    "MrisrError",
    "MrisrWarning",
    "OutputError",
    "TrainingError",
    "UsageError",
    "because",
    "excerpt",
    "opening",
    "to_do",
]


# Hold it around `warnings.catch_warnings`, which changes the process and not the thread.
CATCHING = threading.RLock()


class MrisrError(Exception):
    """Base of all deliberate errors; `exit_code` is what the command line returns."""

    exit_code = 1


class UsageError(MrisrError):
    """An argument or option has a value that cannot be right."""

    exit_code = 2


class InputError(MrisrError):
    """A file or array cannot be used: missing, damaged, of the wrong kind, or with unusable values."""

    exit_code = 3


class GeometryError(InputError):
    """The position of the voxels in space cannot be used: zero voxel size, non-invertible affine."""


class OutputError(MrisrError):
    """The result cannot be written where it was asked for."""

    exit_code = 4


class MemoryBudgetError(MrisrError):
    """The job does not fit the memory that it was given."""

    exit_code = 5


class ModelError(MrisrError):
    """Weights, preset or bundle are missing, damaged or do not fit together."""

    exit_code = 6


class BackendError(MrisrError):
    """A device, engine or operator backend was asked for and cannot run."""

    exit_code = 7


class TrainingError(MrisrError):
    """Training cannot start or go on: configuration, data, or a loss that is not a number."""

    exit_code = 8


class MrisrWarning(UserWarning):
    """Something was assumed or repaired that the user should know of."""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def opening(name: object, kind: type[MrisrError] = InputError) -> Iterator[None]:
    """What the system refuses inside (a folder one may not enter, a name too long) becomes one line of `kind`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise kind(f"{error.filename or name}: cannot be opened ({reason}); check its name and permissions") from error


def to_do(error: OSError) -> str:
    """What to do about a file that cannot be written."""
    if error.errno in NO_ROOM:
        return "make room there, or choose another place"
    if error.errno == errno.ENAMETOOLONG:
        return "choose a shorter name"
    return "choose another name or folder"


def because(error: BaseException) -> str:
    """What another library's exception says, on one line and short: some print what they found, whole files of it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def excerpt(value: Any) -> str:
    """Short enough for one line of an error, whatever it is."""
    if isinstance(value, dict | list | tuple):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) >= 10**50:  # printing thousands of digits is an error of its own
        return "a number of more than 50 digits"
    text = " ".join(ascii(value).split())  # arrays are printed on several lines
    return text if len(text) <= 60 else f"{text[:57]}..."
