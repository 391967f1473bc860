"""What the DICOM node has on disk: its only memory, so that a killed node goes on where it was.

    FOLDER/series/KEY/in/*.dcm   what came, each file whole (written beside, flushed, renamed)
    FOLDER/series/KEY/released   the last sender ended in order: what came is a whole series
    FOLDER/series/KEY/begun      how often a job was begun and did not end
    FOLDER/series/KEY/out/*.dcm  the derived series, whole; stays until the peer has stored it
    FOLDER/failed/KEY/           in/ of a series that cannot be used, and reason.txt; the operator's to delete. It goes
                                 back to series/ when more of it comes
    FOLDER/work/                 unfinished things, emptied at every start

KEY is a hash of the series' UID: nothing that a sender chose becomes a path.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mrisr.errors import UsageError

__all__ = ["Series", "Spool"]


class Series:
    """One series on disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.key = path, path.name
        self.inputs, self.out = path / "in", path / "out"

    def stamp(self) -> tuple:
        """Changes whenever a file comes or becomes another."""
        stats = ((p.name, p.stat()) for p in sorted(self.inputs.glob("*.dcm")))
        return tuple((name, s.st_mtime_ns, s.st_size, s.st_ino) for name, s in stats)

    @property
    def released(self) -> bool:
        """Whether the last sender ended in order."""
        return (self.path / "released").exists()

    def set_released(self, value: bool) -> None:
        if value:
            (self.path / "released").touch()
        else:
            (self.path / "released").unlink(missing_ok=True)
        _flush(self.path)

    @property
    def attempts(self) -> int:
        """How often a job was begun that did not end, because the whole node did."""
        path = self.path / "begun"
        return path.stat().st_size if path.exists() else 0

    def begin(self) -> None:
        with open(self.path / "begun", "ab") as stream:
            stream.write(b"x")
            stream.flush()
            os.fsync(stream.fileno())

    def end(self) -> None:
        (self.path / "begun").unlink(missing_ok=True)


class Spool:
    """The folder of one node. UsageError where it cannot be made or another node has it."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.series_folder, self.failed, self.work = (self.folder / name for name in ("series", "failed", "work"))
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = open(self.folder / "lock", "w")  # noqa: SIM115 - held as long as the node lives
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self.work, ignore_errors=True)
            for path in (self.series_folder, self.failed, self.work):
                path.mkdir(mode=0o700, exist_ok=True)
        except BlockingIOError:
            self._lock.close()
            raise UsageError(f"--folder {folder}: another node works there; give each its own folder") from None
        except OSError as error:
            raise UsageError(
                f"--folder {folder}: cannot be used ({error.strerror or error}); choose another"
            ) from error

    def close(self) -> None:
        """Let another node have the folder."""
        self._lock.close()

    def free(self) -> int:
        """Bytes free on the disk."""
        return shutil.disk_usage(self.folder).free

    def all(self) -> list[Series]:
        """Every series that is not done, failed ones left out."""
        return [Series(path) for path in sorted(self.series_folder.iterdir()) if (path / "in").is_dir()]

    @staticmethod
    def key(series_uid: str) -> str:
        """What a series is called here."""
        return _digest(series_uid)

    def series(self, key: str) -> Series:
        return Series(self.series_folder / key)

    def write(self, fill: Callable[[BinaryIO], None]) -> Path:
        """A new file in work/, filled and flushed to the disk. OSError leaves nothing behind."""
        path = self.work / f"{uuid.uuid4().hex}.part"
        try:
            with open(path, "xb") as stream:
                fill(stream)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def add(self, part: Path, series_uid: str, instance_uid: str) -> tuple[Series, bool]:
        """Move a written file to its series; whether that changed anything. What was derived before goes then."""
        series = self.series(self.key(series_uid))
        if not series.inputs.is_dir():
            self._take_up(series)
        target = series.inputs / f"{_digest(instance_uid)}.dcm"
        if target.exists() and _equal(target, part):
            part.unlink()
            return series, False
        if series.released:
            series.set_released(False)
        self.discard(series.out)
        os.replace(part, target)
        _flush(series.inputs)
        return series, True

    def _take_up(self, series: Series) -> None:
        """The folder of a series: what was put aside of it comes back, for with what comes now it may be whole."""
        aside = self.failed / series.key
        if (aside / "in").is_dir():
            os.replace(aside, series.path)
            for name in ("reason.txt", "begun", "released"):
                (series.path / name).unlink(missing_ok=True)
            _flush(self.failed)
        else:
            series.inputs.mkdir(mode=0o700, parents=True)
        _flush(self.series_folder)
        _flush(series.path)

    def new_folder(self) -> Path:
        """A new empty folder in work/."""
        path = self.work / uuid.uuid4().hex
        path.mkdir(mode=0o700)
        return path

    def keep_result(self, folder: Path, series: Series) -> None:
        """Make a finished folder the series' `out`, all of it on the disk to stay."""
        for path in folder.rglob("*"):
            _flush(path)
        _flush(folder)
        os.replace(folder, series.out)
        _flush(series.path)

    def discard(self, path: Path) -> None:
        """Delete a folder as one step: it is away at once, whatever happens to the rest of the deleting."""
        if not path.exists():
            return
        away = self.work / uuid.uuid4().hex
        os.replace(path, away)
        _flush(path.parent)
        shutil.rmtree(away, ignore_errors=True)

    def fail(self, series: Series, why: str) -> None:
        """Move a series out of the way, with the reason beside it."""
        (series.path / "reason.txt").write_text(why + "\n", encoding="utf-8", errors="replace")
        self.discard(self.failed / series.key)
        self.discard(series.out)
        os.replace(series.path, self.failed / series.key)
        _flush(self.series_folder)
        _flush(self.failed)


def _digest(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:24]


def _equal(one: Path, other: Path) -> bool:
    return one.stat().st_size == other.stat().st_size and one.read_bytes() == other.read_bytes()


def _flush(path: Path) -> None:
    """Make what a file holds, or the names in a folder, last through a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
