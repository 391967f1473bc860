"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mrisr.errors import OutputError, opening, to_do

__all__ = ["check_target", "replacing", "replacing_folder"]


def check_target(path: str | os.PathLike, *, force: bool = False) -> Path:
    """The file that `path` stands for (links followed), or an OutputError that says why it cannot be written.

    Cheap, so that a long job can ask before it starts.
    """
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise OutputError(f"{path}: is a directory; give the name of a file in it")
        if target.exists() and not target.is_file():
            raise OutputError(f"{path}: is a device or pipe; give the name of a regular file")
        if target.exists() and not force:
            raise OutputError(f"{path}: exists already; choose another name, or overwrite it with force (--force)")
        if not target.parent.is_dir():
            raise OutputError(f"{path}: there is no directory {target.parent}; create it first")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{path}: no permission to write in {target.parent}; choose another directory")
        return target
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        what = to_do(error) if isinstance(error, OSError) else "choose another name"
        raise OutputError(f"{path}: cannot be written ({reason}); {what}") from error


@contextmanager
def replacing(path: str | os.PathLike, *, force: bool = False) -> Iterator[Path]:
    """A temporary name beside `path`, with the same ending, that becomes `path` when the block succeeds.

    On any failure, Ctrl-C included, the temporary file is removed and `path` is as it was. An OSError in the
    block counts as a failure to write and becomes an OutputError, so do nothing but writing in it.

    >>> with replacing("result.json", force=True) as beside:
    ...     _ = beside.write_text("{}")
    >>> Path("result.json").unlink()
    """
    target = check_target(path, force=force)
    beside = _beside(target)
    try:
        yield beside
        # Asked again: another process may have finished the same job meanwhile.
        check_target(path, force=force)
        os.replace(beside, target)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); {to_do(error)}") from error
    finally:
        beside.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    """A hidden name in the same folder with the same ending: short, so that whatever name fits, it fits."""
    ending = "".join(target.suffixes[-2:]) if target.suffix.lower() == ".gz" else target.suffix
    return target.with_name(f".mrisr-{uuid.uuid4().hex[:8]}{ending if len(ending) <= 16 else ''}")


@contextmanager
def replacing_folder(path: str | os.PathLike, *, force: bool = False, sign: str = "") -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block succeeds; on any failure it is removed, and
    `path` is as it was.

    Args:
        force: replace a folder that is there, if it is empty or holds a file called `sign`: no other is ever deleted.
    """
    target = Path(os.path.realpath(path))
    with opening(path, OutputError):
        _check_folder(target, path, force, sign)
    beside = target.with_name(f".mrisr-{uuid.uuid4().hex[:8]}")
    old = target.with_name(f"{beside.name}.old")
    try:
        beside.mkdir()
        yield beside
        _check_folder(target, path, force, sign)
        if target.is_dir():
            os.replace(target, old)
        os.replace(beside, target)
    except OSError as error:
        if old.is_dir() and not target.exists():
            os.replace(old, target)
        raise OutputError(f"{path}: cannot be written ({error.strerror or error}); {to_do(error)}") from error
    finally:
        for remainder in (beside, old):
            shutil.rmtree(remainder, ignore_errors=True)


def _check_folder(target: Path, path, force: bool, sign: str) -> None:
    if not target.parent.is_dir():
        raise OutputError(f"{path}: there is no directory {target.parent}; create it first")
    try:
        os.lstat(target)
    except FileNotFoundError:
        return  # any other error (a name that is too long) is one now, not after the work
    if not target.is_dir():
        raise OutputError(f"{path}: is a file; give the name of a folder")
    names = sorted(p.name for p in target.iterdir())
    if names and not force:
        raise OutputError(f"{path}: exists already; choose another name, or overwrite it with force (--force)")
    if names and sign not in names:
        raise OutputError(
            f"{path}: holds other things ({names[0]}) and no {sign}; it will not be deleted: choose another"
        )
