"""The scans of a web service: taken, computed one at a time, kept for a while under random names, wiped with it."""

from __future__ import annotations

import logging
import math
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrisr import report
from mrisr.batch import provenance
from mrisr.errors import CATCHING, InputError, MrisrError
from mrisr.io import nifti
from mrisr.report import story
from mrisr.serve.queue import JobQueue, Progress, Ticket
from mrisr.volume import Volume

__all__ = ["RESULT", "Job", "Refusal", "Settings", "Site", "Upscale"]

LOG = logging.getLogger("mrisr.serve.web")
LONGEST_NAME = 120
RESULT = "result.nii.gz"

# upscale(volume, progress, **options) -> (Volume, Info)
Upscale = Callable[..., tuple[Any, Any]]


@dataclass(frozen=True)
class Settings:
    """largest: bytes of an upload. voxels: of a scan, all frames. waiting: scans that wait beside the one that is
    computed. keep: seconds that a result stays. results: how many are kept at most. idle: seconds without a byte, after
    which an upload is over."""

    largest: int = 512 << 20
    voxels: int = 256 << 20
    waiting: int = 2
    keep: float = 3600.0
    results: int = 8
    idle: float = 30.0


@dataclass
class Job:
    """One scan: `state` is "waiting", "running", "done" or "failed"; `files` may be fetched, by their names alone."""

    key: str
    name: str
    folder: Path
    state: str = "waiting"
    error: str = ""
    ticket: Ticket | None = None
    end_time: float | None = None
    files: dict[str, Path] = field(default_factory=dict)

    def account(self) -> dict[str, Any]:
        """What its browser is told."""
        table = {"id": self.key, "name": self.name, "state": self.state, "error": self.error}
        if self.ticket is not None and self.state in ("waiting", "running"):
            table |= {"stage": self.ticket.stage, "fraction": round(self.ticket.fraction, 3)}
        if self.state == "done":
            table |= {"page": f"scans/{self.key}/report/scan.html", "result": f"scans/{self.key}/{RESULT}"}
        return table


class Refusal(Exception):
    """An answer that is no success: status and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Site:
    """The scans of one service, and its private folder. `close` ends the work and wipes the folder."""

    def __init__(self, upscale: Upscale, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._upscale = upscale
        self._folder = tempfile.TemporaryDirectory(prefix="mrisr-web-")  # readable by its owner only
        self.folder = Path(self._folder.name)
        self.jobs = JobQueue(self.settings.waiting + 1)
        self._jobs: dict[str, Job] = {}
        self._coming = 0
        self._lock = threading.Lock()

    def close(self, timeout: float = 10.0) -> None:
        """Cancel what runs, wait for it, and remove every file."""
        self.jobs.stop(timeout)
        self._folder.cleanup()

    def begin(self, name: str) -> Job:
        """A place for a scan that is coming. Raises Refusal: 422 for no image's name, 503 where it is busy."""
        ending = nifti.ending_of(Path(name))
        if ending is None:
            raise Refusal(422, f"{_error_line(name)}: expected a file name in {', '.join(nifti.WRITE_ENDINGS)}")
        self._forget()
        with self._lock:
            if self._coming + self._busy() > self.settings.waiting:
                raise Refusal(503, "busy: other scans are being computed, and enough wait; try again in a minute")
            self._coming += 1
        key = secrets.token_urlsafe(16)
        job = Job(key, _error_line(name), self.folder / key)
        job.folder.mkdir(mode=0o700)
        return job

    def drop(self, job: Job) -> None:
        """The scan did not come, or was of no use."""
        with self._lock:
            self._coming -= 1
        shutil.rmtree(job.folder, ignore_errors=True)

    def accept(self, job: Job, upload: Path) -> None:
        """Queue a scan that has come whole. Raises Refusal with 422 for what cannot be used."""
        source = _read(upload, job.name, self.settings.voxels)
        digest = provenance.digest([upload])
        upload.unlink()
        ticket = self.jobs.offer(lambda progress: self._work(job, source, digest, progress))
        if ticket is None:
            raise Refusal(503, "busy: the service is ending or full; try again in a minute")
        job.ticket = ticket
        with self._lock:
            self._coming -= 1
            self._jobs[job.key] = job
        ticket.future.add_done_callback(lambda future: self._finish(job, future))

    def job(self, key: str) -> Job:
        """Raises Refusal with 404."""
        self._forget()
        job = self._jobs.get(key)
        if job is None:
            raise Refusal(404, "no such scan: it was never here, or is forgotten")
        return job

    def remove(self, key: str) -> None:
        """Forget a scan, and end its work. Raises Refusal with 404."""
        job = self.job(key)
        if job.ticket is not None:
            job.ticket.cancel()
        with self._lock:
            self._jobs.pop(key, None)
        if job.end_time is not None:
            shutil.rmtree(job.folder, ignore_errors=True)

    def _busy(self) -> int:
        return sum(job.end_time is None for job in self._jobs.values())

    def _forget(self) -> None:
        """Remove what has been here long enough, and the oldest of too many."""
        with self._lock:
            finished = sorted((j for j in self._jobs.values() if j.end_time is not None), key=lambda j: j.end_time)
            late = time.monotonic() - self.settings.keep
            surplus = len(finished) - self.settings.results
            surplus_jobs = [job for place, job in enumerate(finished) if job.end_time < late or place < surplus]
            for job in surplus_jobs:
                del self._jobs[job.key]
        for job in surplus_jobs:
            shutil.rmtree(job.folder, ignore_errors=True)

    def _work(self, job: Job, source: Volume, digest: str, progress: Progress) -> None:
        job.state = "running"
        result, info = self._upscale(source, progress)
        progress("report", 0.0)
        info.warnings = [story.scrubbed(text) for text in info.warnings]
        target = job.folder / RESULT
        nifti.write(result, target, descrip=provenance.description(info.model))
        identity = provenance.Identity({"Name": job.name, "SHA256": digest}, info.weights, {})
        record = provenance.sidecar(identity, info, dtype="float32", size=target.stat().st_size)
        pages = job.folder / "report"
        report.write(report.place_for(pages, "scan"), source, result, record, spread=info.std, title=job.name)
        job.files = {f"report/{p.relative_to(pages).as_posix()}": p for p in pages.rglob("*") if p.is_file()}
        job.files[RESULT] = target

    def _finish(self, job: Job, future: Any) -> None:
        error = future.exception()
        if error is not None:
            job.error = _line(error)
            if not isinstance(error, (MrisrError, MemoryError, CancelledError)):
                LOG.error("a bug: please report it", exc_info=error)
        job.state = "done" if error is None else "failed"
        job.end_time = time.monotonic()
        LOG.info("a scan: %s", job.state if error is None else f"failed ({type(error).__name__})")
        if error is not None or job.key not in self._jobs:
            shutil.rmtree(job.folder, ignore_errors=True)


def _read(path: Path, name: str, most: int) -> Volume:
    """The scan that was uploaded. Raises Refusal with 422."""
    import nibabel as nib

    try:
        with CATCHING:
            try:
                voxels = math.prod(
                    map(int, nib.load(path).shape)
                )  # of the header: a small file may hold a large volume
            except Exception:  # noqa: BLE001 - nibabel raises anything for a broken file; `read` says what it is
                voxels = 0
            if voxels > most:
                raise Refusal(422, f"{name}: {voxels} voxels; at most {most} are taken here")
            return nifti.read(path)
    except InputError as error:
        raise Refusal(422, str(error).replace(str(path), name).replace(path.name, name)) from error


def _error_line(name: str) -> str:
    """A file's name as it may be shown: without folders and control characters, not too long, its ending kept."""
    bare = "".join(c for c in name.replace("\\", "/").rsplit("/", 1)[-1] if c.isprintable())
    return bare if len(bare) <= LONGEST_NAME else f"{bare[:20]}...{bare[-LONGEST_NAME + 23 :]}"


def _line(error: BaseException) -> str:
    if isinstance(error, CancelledError):
        return "cancelled"
    if isinstance(error, MemoryError):
        return "the scan does not fit the memory of this machine"
    if isinstance(error, MrisrError):
        return story.scrubbed(" ".join(str(error).split()))
    return "a bug in mrisr; the log of the service has it"
