"""A report's folder: which files are whose, and how they come there.

    REPORT/index.html                       the table
    REPORT/<place>/<name>.html              a page per scan, in the folders of the results
    REPORT/<place>/figures/<name>/          its pictures, volumes and numbers (record.json)
    REPORT/<place>/figures/<name>.failed.json   why there is none
    REPORT/figures/                         the viewer, once

The names are those that BIDS derivatives use, so that a derivative dataset may hold its own report. Files of others are
never replaced, whatever is asked for.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mrisr import schema
from mrisr.errors import InputError, OutputError, opening
from mrisr.io.atomic import replacing, replacing_folder

__all__ = ["FORMAT", "INDEX", "Place", "check", "locked", "place_for", "put", "read_record", "records"]

FORMAT = "mrisr-report/1"
INDEX, RECORD, FAILED, FIGURES = "index.html", "record.json", ".failed.json", "figures"
SIGN = b'<meta name="generator" content="mrisr'  # in the first bytes of a page of ours
LARGEST = 4 << 20  # bytes of a record


@dataclass(frozen=True)
class Place:
    """Where the page of one result is.

    folder  of the report
    name    of the result without its ending, with its folders below the output: "sub-01/anat/sub-01_T1w"
    """

    folder: Path
    name: str

    @property
    def stem(self) -> str:
        return self.name.rsplit("/", 1)[-1]

    @property
    def page(self) -> Path:
        # The table has the name index.html, whatever a scan is called.
        name = f"{self.name}.scan" if self.name.casefold() == "index" else self.name
        return self.folder / f"{name}.html"

    @property
    def figures(self) -> Path:
        return self.page.parent / FIGURES / self.stem

    @property
    def failure(self) -> Path:
        return self.figures.with_name(self.stem + FAILED)

    @property
    def root(self) -> str:
        """The report's folder as seen from the page: "" or "../../"."""
        return "../" * self.name.count("/")

    @property
    def link(self) -> str:
        """The page as the table links it."""
        return quote(self.page.relative_to(self.folder).as_posix())


def place_for(folder: str | os.PathLike, name: str) -> Place:
    """The place of a result. OutputError for a name that leaves the folder."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or "\0" in name:
        raise OutputError(f"report: {name!r} is not the name of a result below its folder")
    return Place(Path(folder), name)


def check(place: Place, *, force: bool = False) -> None:
    """Before the work: OutputError where the page cannot be written. `force` replaces pages of ours, never others'."""
    there = next(path for path in (place.figures, *place.figures.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise OutputError(f"{there}: is a file; give the name of a folder for the report")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{there}: no permission to write; choose another folder for the report")
    for path, owned in ((place.folder / INDEX, True), (place.page, force)):
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; give another folder for the report")
        if path.exists() and not is_ours(path):
            raise OutputError(f"{path}: was not written by mrisr and stays; give another folder for the report")
        if path.exists() and not owned:
            raise OutputError(f"{path}: exists already; choose another folder, or overwrite it with force (--force)")
    files = place.figures
    if files.exists() and not (files / RECORD).is_file():
        raise OutputError(f"{files}: was not written by mrisr and stays; give another folder for the report")


def is_ours(page: Path) -> bool:
    """Whether a page says that mrisr has written it."""
    with opening(page, OutputError), open(page, "rb") as stream:
        return SIGN in stream.read(2048)


def make_folder(folder: Path) -> None:
    """The folder and its parents. OutputError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: the folder cannot be made ({error.strerror}); choose another report") from error


@contextmanager
def put(place: Place, *, force: bool = False) -> Iterator[tuple[Path, Path]]:
    """(folder for the figures, file for the page) to write to; both get their names when the block succeeds, the page
    last: a page that is there has all its pictures. What is written inside is removed on any failure."""
    make_folder(place.figures.parent)
    with (
        replacing(place.page, force=force) as page,
        replacing_folder(place.figures, force=True, sign=RECORD) as figures,
    ):
        yield figures, page
    place.failure.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process writes the table of `folder`: it waits for its turn, which is a moment."""
    path = folder / ".mrisr-index.lock"
    while True:
        with opening(path, OutputError):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            has_lock = True
        except OSError:  # no locks on this file system: each table is whole all the same
            has_lock = False
        # The one before may have removed the file between opening and locking: then this lock is on nothing.
        if not has_lock or (path.exists() and os.path.samestat(os.fstat(handle), os.stat(path))):
            break
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def records(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, record) of every page and every failure below `folder`, in order of their names.

    Raises InputError for a record that cannot be read: nothing is left out of a table in silence.
    """
    paths: dict[str, Path] = {}
    for here, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if Path(here).name != FIGURES:
            continue
        above = Path(here).parent.relative_to(folder)
        for stem in below:
            if (Path(here) / stem / RECORD).is_file():
                paths[(above / stem).as_posix()] = Path(here) / stem / RECORD
        for name in names:
            if name.endswith(FAILED) and not name.startswith("."):
                paths[(above / name.removesuffix(FAILED)).as_posix()] = Path(here) / name
        below[:] = []
    for name in sorted(paths):
        yield name, read_record(paths[name])


def read_record(path: Path) -> dict[str, Any]:
    """A record of ours. InputError for anything else."""
    record = schema.read(path, largest=LARGEST)
    if not isinstance(record, dict) or record.get("Format") != FORMAT:
        raise InputError(f"{path}: is not a record of a report ({FORMAT}); remove it, or give another folder")
    return record
