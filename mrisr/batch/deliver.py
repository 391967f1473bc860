"""One result into its place, with its sidecar: by one process at a time, whole or not at all.

The sidecar comes into place before the image or the series, so that a result that is there is whole and described by
what lies beside it. A killed run leaves hidden files and a sidecar without its result at most; the next run that takes
the scan replaces them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mrisr.batch import provenance
from mrisr.errors import OutputError, to_do
from mrisr.io import dicom, nifti
from mrisr.io.atomic import check_target, replacing
from mrisr.volume import Volume

__all__ = ["check_folder", "claim", "make_folder", "write_image", "write_json", "write_series"]

PATIENCE = 3600.0  # seconds that another process of the same run is waited for


@contextmanager
def claim(target: Path, run: str | None = None) -> Iterator[None]:
    """Inside, no other process works on `target`. OutputError where one does.

    The claim is a lock on a hidden file beside it, which the system lets go when the process ends, however it does.

    Args:
        run: id that is written into the claim. Where a process of the same run has the target (one that the cluster
            has given up, but that lives), it is waited for.
    """
    make_folder(target.parent)
    path = _hidden_name(target, "claim")
    handle = _lock(path, target, run)
    try:
        shutil.rmtree(_hidden_name(target, "part"), ignore_errors=True)  # of a killed run
        yield
    finally:
        shutil.rmtree(_hidden_name(target, "part"), ignore_errors=True)
        if handle is not None:
            with suppress(PermissionError):  # of another user, in a folder where only owners remove: it does no harm
                path.unlink(missing_ok=True)  # before the lock goes: nobody can hold another file of this name
            os.close(handle)


def check_folder(folder: Path) -> None:
    """Before the work: OutputError where nobody could make or write the folder, said once and not of every scan."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise OutputError(f"{there}: is a file; give the name of a folder for the results")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there}: no permission to write; choose another output")


def make_folder(folder: Path) -> None:
    """The folder and its parents. OutputError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: the folder cannot be made ({error.strerror}); choose another output") from error


def write_image(volume: Volume, target: Path, sidecar: Any, *, dtype: str, descrip: str, replace: bool) -> None:
    """Write an image and, where `sidecar` is not None, the JSON that sidecar(bytes of the image) gives.

    Both are complete on the disk before either gets its name. To be called in `claim(target)`, which removes what is
    left in the hidden folder. Raises OutputError.
    """
    image = _hidden_name(target, "part") / target.name
    with _hidden_folder(target):
        nifti.write(volume, image, dtype=dtype, descrip=descrip, force=True)
        record = None if sidecar is None else sidecar(image.stat().st_size)
        _place(image, target, record, check_target, replace=replace)


def write_series(result: Volume, series: list[Any], info: Any, target: Path, sidecar: Any, *, replace: bool) -> None:
    """As `write_image`: a derived DICOM series into the folder `target`, and its sidecar, if any, beside the folder.

    series: of the source, and of those that it was joined with.
    """
    folder = _hidden_name(target, "part") / target.name
    with _hidden_folder(target):
        dicom.write_series(result, series[0], info, folder, force=True, others=series[1:])
        record = None if sidecar is None else sidecar(provenance.size_of(folder))
        _place(folder, target, record, dicom.check_folder, replace=replace)


@contextmanager
def _hidden_folder(target: Path) -> Iterator[None]:
    """Inside, the hidden folder of `target` is there; what goes wrong in it is told of `target`."""
    part = _hidden_name(target, "part")
    try:
        part.mkdir(exist_ok=True)
        yield
    except OutputError as error:
        raise OutputError(str(error).replace(f"{part}{os.sep}", f"{target.parent}{os.sep}")) from error
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error}); {to_do(error)}") from error


def _place(result: Path, target: Path, record: dict[str, Any] | None, check: Any, *, replace: bool) -> None:
    """Give `result` its name, after the sidecar, which holds `record`. An old result, or a sidecar that no longer
    holds, goes first: never is one beside the other."""
    beside, hidden = provenance.sidecar_path(target), result.parent
    draft, old = hidden / ".sidecar", hidden / ".old"
    if record is not None:
        draft.write_text(provenance.as_text(record), encoding="utf-8", errors="replace")
    check(target, force=replace)
    if replace and os.path.lexists(target):
        os.replace(target, old)
    if record is not None:
        os.replace(draft, beside)
    elif replace and provenance.record_of(target) is not None:
        beside.unlink()
    os.replace(result, target)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, replacing what is there. Raises OutputError."""
    make_folder(path.parent)
    with replacing(path, force=True) as beside:
        beside.write_text(provenance.as_text(value), encoding="utf-8", errors="replace")


def _hidden_name(target: Path, what: str) -> Path:
    """A hidden name beside `target`, the same for every run, however long the target's name is."""
    return target.with_name(f".mrisr-{hashlib.sha256(target.name.encode()).hexdigest()[:16]}.{what}")


def _lock(path: Path, target: Path, run: str | None) -> int | None:
    """A descriptor that holds the lock on `path`; None on file systems without locks."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            handle = _open(path)
        except OSError as error:
            raise OutputError(f"{path.parent}: cannot be written ({error.strerror}); choose another output") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 64, 0).decode(errors="replace")
            os.close(handle)
            if run is not None and holder == run and time.monotonic() < until:
                time.sleep(0.2)
                continue
            raise OutputError(f"{target.name}: another run is working on it; it is left to that run") from None
        except OSError:  # no locks here: renaming still keeps every file whole
            os.close(handle)
            path.unlink(missing_ok=True)
            return None
        # The other run may have removed the file between opening and locking: then this lock is on nothing.
        if _is_at(handle, path):
            _sign(handle, run)
            return handle
        os.close(handle)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # left by a killed run of another user: it can be locked


def _sign(handle: int, run: str | None) -> None:
    """Say in the claim whose it is: for waiting only, so that a full disk is told of where it matters, in writing."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, (run or "").encode(), 0)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
