"""A DICOM node: series come by C-STORE, derived series go to a peer. It is stopped, killed and started again at will.

Everything that it knows is in its folder (`mrisr.serve.spool`). A series is taken to be whole once its sender has
released the association and it has been quiet for a while; one whose sender broke off waits for it to come back.
Logs hold hashes in place of UIDs, and never a patient's name.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrisr.errors import BackendError, InputError, ModelError, MrisrError, OutputError, UsageError, because
from mrisr.serve.budget import Budget
from mrisr.serve.dicom_send import Away, Backoff, NotSent, Peer, send
from mrisr.serve.queue import JobQueue, Progress, Ticket
from mrisr.serve.spool import Series, Spool

LOG = logging.getLogger("mrisr.serve.dicom")

SUCCESS, OUT_OF_RESOURCES, NOT_WHAT_IT_SAYS, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
NEEDED = ["SOPInstanceUID", "SeriesInstanceUID", "SyntheticData", "Rows"]
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MOST_BEGINS = 3
ALL = ""  # in place of the key of one series
HALF = "half a series: its sender broke off, or files of it were refused, and it did not come back; send it again"
BUG = "a bug in mrisr: please report it with the lines below"
TO_ASK = 10.0  # seconds that a connection may take to say what it wants; each has a seat meanwhile
PDU = 1 << 18  # bytes, the most that a peer is told to send at once

# derive(folder of DICOM files, empty folder to fill, progress)
Derive = Callable[[Path, Path, Progress], None]


@dataclass(frozen=True)
class Settings:
    """quiet: seconds without a new instance, before a released series is taken. patience: seconds that half a series
    waits for its sender. associations: at once. timeout: seconds without a byte. hold: bytes in reception, of all
    associations. reserve: bytes that stay free on the disk. callers: AE titles that may send, () for all. retry:
    seconds between tries to send, growing from the first to the second."""

    aet: str = "MRISR"
    quiet: float = 10.0
    patience: float = 600.0
    associations: int = 10
    timeout: float = 60.0
    hold: int = 4 << 30
    reserve: int = 1 << 30
    waiting: int = 8
    callers: tuple[str, ...] = ()
    retry: tuple[float, float] = (5.0, 300.0)
    tick: float = 0.2


class Node:
    """A running node. UsageError where its address or folder cannot be had.

    Args:
        address: (host, port); port 0 takes a free one, then `address` has it.
        folder: its spool, made if absent.
        peer: where derived series go.
        derive: makes the derived series of a folder of DICOM files.
    """

    def __init__(
        self,
        address: tuple[str, int],
        folder: str | Path,
        peer: Peer,
        derive: Derive,
        settings: Settings | None = None,
    ) -> None:
        self.settings, self.peer, self.derive = settings or Settings(), peer, derive
        self.spool = Spool(folder)
        self.budget = Budget(self.settings.hold)
        self._lock = threading.RLock()
        self._touched: dict[Any, dict[str, bool]] = {}  # association -> series -> changed by it
        self._refused: dict[Any, set[str]] = {}  # association -> series of which something was refused
        self._last: dict[str, float] = {}  # series -> when it last changed
        self._jobs: dict[str, Ticket] = {}
        self._not_before: dict[str, float] = {}  # series -> when to try again
        self._stopped = threading.Event()
        try:
            self._server = _listen(self, address)
        except BaseException:
            self.spool.close()
            raise
        self.address = self._server.server_address[:2]
        self.jobs = JobQueue(self.settings.waiting)
        for series in self.spool.all():
            self._last[series.key] = time.monotonic()
            LOG.info("series %s: found again", series.key)
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._schedule, self._deliver)]
        for thread in self._threads:
            thread.start()

    def stop(self, grace: float = 10.0) -> None:
        """Take no more; let senders finish for `grace` s; give up the job, which the next start begins again."""
        until = time.monotonic() + grace
        self._server.shutdown()  # of the listening; an association that is open may end in order
        while self._server.active_associations and time.monotonic() < until:
            time.sleep(0.02)
        for association in self._server.active_associations:
            association.abort()
        self._stopped.set()
        self.jobs.stop(grace)
        for thread in self._threads:
            thread.join(grace)
        try:
            self._settle()
        except OSError as error:
            LOG.error("the folder cannot be worked with (%s): its last series has to be sent again", error)
        self.spool.close()

    # Reception, in the threads of the associations

    def store(self, event: Any) -> int:
        """Answer a C-STORE: its status. Success only once the file is on the disk to stay. What is refused its series
        lacks, however the association ends."""
        status, series = OUT_OF_RESOURCES, ALL
        try:
            status, series = self._stored(event)
            return status
        finally:
            if status != SUCCESS:
                with self._lock:
                    self._refused.setdefault(event.assoc, set()).add(series)

    def _stored(self, event: Any) -> tuple[int, str]:
        """(status, the key of the series that it is about, ALL where that is not known)"""
        data = event.request.DataSet.getbuffer()
        if self.spool.free() < self.settings.reserve + len(data):
            LOG.error("the disk is full (less than %.0f MB free): not stored", self.settings.reserve / 1e6)
            return OUT_OF_RESOURCES, ALL
        try:
            part = self.spool.write(lambda stream: _dicom_file(stream, event.file_meta, data))
            try:
                return self._keep(event, part)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in FULL:
                LOG.error("an instance cannot be written (%s): not stored", error.strerror or error)
            else:
                LOG.error("the disk is full: not stored")
            return OUT_OF_RESOURCES, ALL

    def _keep(self, event: Any, part: Path) -> tuple[int, str]:
        try:
            header = _header(part)
        except InputError as error:
            LOG.error("%s: not stored", error)
            return NOT_UNDERSTOOD, ALL
        uid = str(header.get("SeriesInstanceUID") or "")
        missing = [name for name in ("SOPInstanceUID", "SeriesInstanceUID", "Rows") if not header.get(name)]
        if missing:
            LOG.error("an instance has no %s: not stored", ", ".join(missing))
            return NOT_UNDERSTOOD, self.spool.key(uid) if uid else ALL
        if header.SOPInstanceUID != event.request.AffectedSOPInstanceUID:
            LOG.error("an instance has another UID than its sender says: not stored")
            return NOT_WHAT_IT_SAYS, self.spool.key(uid)
        if header.get("SyntheticData") == "YES":
            LOG.info("a synthetic image: not taken, or it would be upscaled again")
            return SUCCESS, self.spool.key(uid)
        with self._lock:
            series, change = self.spool.add(part, uid, str(header.SOPInstanceUID))
            keys = self._touched.setdefault(event.assoc, {})
            keys[series.key] = keys.get(series.key, False) or change
            if change:
                self._last[series.key] = time.monotonic()
                self._not_before.pop(series.key, None)
        return SUCCESS, series.key

    def _settle(self) -> None:
        """Series of associations that have ended: whole where the end was in order and nothing of them was refused."""
        with self._lock:
            for association in [a for a in {**self._touched, **self._refused} if not a.is_alive()]:
                keys, refused = self._touched.get(association, {}), self._refused.get(association, set())
                for key, changed in list(keys.items()):
                    series = self.spool.series(key)
                    if series.path.exists() and (changed or not series.released):
                        self._last[key] = time.monotonic()
                        if not association.is_released:
                            LOG.warning("series %s: its sender broke off after %d files", key, len(series.stamp()))
                        elif {key, ALL} & refused:
                            LOG.warning("series %s: %d files, and others were refused", key, len(series.stamp()))
                        else:
                            series.set_released(True)
                    del keys[key]  # after an OSError the next round goes on here
                self._touched.pop(association, None)
                self._refused.pop(association, None)

    # Jobs

    def _schedule(self) -> None:
        trouble = Backoff(self.settings.retry)
        while not self._stopped.wait(self.settings.tick):
            if not trouble.due():
                continue
            try:
                self._settle()
                for series in self.spool.all():
                    try:
                        self._consider(series)
                    except OSError as error:
                        self._put_off(series, f"cannot be worked with ({error})")
                trouble.succeeded()
            except OSError as error:  # a full disk, for one: another round may do better
                LOG.error("the folder cannot be worked with (%s); tried again in %.0f s", error, trouble.failed())
            except Exception:  # noqa: BLE001 - the outermost frame of a thread that has to live
                trouble.failed()
                LOG.exception(BUG)

    def _put_off(self, series: Series, why: str) -> None:
        self._not_before[series.key] = time.monotonic() + self.settings.retry[1]
        LOG.error("series %s: %s; tried again in %.0f s", series.key, why, self.settings.retry[1])

    def _consider(self, series: Series) -> None:
        with self._lock:
            key, now = series.key, time.monotonic()
            if key in self._jobs or self._open(key) or series.out.exists() or self._not_before.get(key, 0) > now:
                return
            quiet = now - self._last.setdefault(key, now)
            if not series.released:
                if quiet >= self.settings.patience:
                    self._fail(series, HALF)
            elif quiet >= self.settings.quiet:
                if series.attempts >= MOST_BEGINS:
                    self._fail(series, f"was begun {series.attempts} times, and the node ended every time")
                    return
                ticket = self.jobs.offer(lambda progress: self._job(series, progress))
                if ticket is not None:
                    self._jobs[key] = ticket

    def _open(self, key: str) -> bool:
        """Whether an association that has sent files of the series is open."""
        with self._lock:
            return any(key in keys for keys in self._touched.values())

    def _fail(self, series: Series, why: str) -> None:
        LOG.error("series %s: %s (kept in %s)", series.key, why, self.spool.failed / series.key)
        try:
            self.spool.fail(series, why)
            self._last.pop(series.key, None)
        except OSError as error:
            self._put_off(series, f"cannot be put aside ({error})")

    def _job(self, series: Series, progress: Progress) -> None:
        key, start = series.key, time.monotonic()
        try:
            stamp = series.stamp()
            LOG.info("series %s: %d files, begun", key, len(stamp))
            series.begin()
            folder = self.spool.new_folder()
            try:
                self.derive(series.inputs, folder, progress)
                with self._lock:
                    if series.stamp() != stamp:
                        LOG.info("series %s: more of it came meanwhile, begun again later", key)
                    else:
                        self.spool.keep_result(folder, series)
                        LOG.info("series %s: derived in %.1f s", key, time.monotonic() - start)
            finally:
                self.spool.discard(folder)
            series.end()
        except CancelledError:
            series.end()
            LOG.info("series %s: handed back, the next start begins it again", key)
        except (OutputError, BackendError, ModelError, OSError) as error:  # not the fault of this series
            series.end()
            self._put_off(series, str(error))
        except (MrisrError, MemoryError) as error:
            with self._lock:
                self._fail(series, str(error) or type(error).__name__)
        except Exception as error:  # noqa: BLE001 - the outermost frame of a job: the node lives on
            LOG.exception("series %s: %s", key, BUG)
            with self._lock:
                self._fail(series, f"{type(error).__name__}: {because(error)}")
        finally:
            with self._lock:
                self._jobs.pop(key, None)

    # Delivery

    def _deliver(self) -> None:
        """A peer that is away holds up all; a series that it refuses, or that cannot be read, holds up only itself."""
        away, refused = Backoff(self.settings.retry), {}
        while not self._stopped.wait(self.settings.tick):
            if not away.due():
                continue
            try:
                waiting = [s for s in self.spool.all() if s.out.exists() and not self._open(s.key)]
                for series in waiting:
                    own = refused.setdefault(series.key, Backoff(self.settings.retry))
                    if own.due() and not self._stopped.is_set():
                        self._try(series, own)
                        away.succeeded()
                refused = {series.key: refused[series.key] for series in waiting}
            except Away as error:
                LOG.error("nothing is sent, tried again in %.0f s: %s", away.failed(), error)
            except OSError as error:
                LOG.error("the folder cannot be worked with (%s); tried again in %.0f s", error, away.failed())
            except Exception:  # noqa: BLE001 - the outermost frame of a thread that has to live
                away.failed()
                LOG.exception(BUG)

    def _try(self, series: Series, own: Backoff) -> None:
        """Send a series; what is wrong with it alone is logged. Raises Away."""
        try:
            self._send(series)
        except Away:
            raise
        except NotSent as error:
            LOG.error("series %s: not sent, tried again in %.0f s: %s", series.key, own.failed(), error)
        except OSError as error:
            LOG.warning("series %s: changed while it was sent (%s)", series.key, error)
            own.failed()
        except Exception as error:  # noqa: BLE001 - a damaged file raises anything
            wait, why = own.failed(), because(error)
            LOG.error("series %s: not sent, tried again in %.0f s: %s: %s", series.key, wait, type(error).__name__, why)

    def _send(self, series: Series) -> None:
        stamp = series.stamp()
        files = sorted(path for path in series.out.rglob("*") if path.is_file())
        send(files, self.peer, self.settings.aet, self.settings.timeout, self._stopped.is_set)
        with self._lock:
            if series.stamp() != stamp or self._open(series.key):
                return  # more of it came: derived and sent again, under UIDs of its own
            self.spool.discard(series.path)
            self._last.pop(series.key, None)
        LOG.info("series %s: %d derived images stored by %s; done", series.key, len(files), self.peer)


def _dicom_file(stream: Any, meta: Any, data: memoryview) -> None:
    from pydicom.filewriter import write_file_meta_info

    stream.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(stream, meta)
    stream.write(data)


def _header(path: Path) -> Any:
    """The few elements that say what to do with an instance. InputError where it is no DICOM."""
    from pydicom import dcmread

    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=NEEDED)
        for name in NEEDED:
            header.get(name)  # converted here, where what is damaged is caught
        return header
    except Exception as error:  # noqa: BLE001 - pydicom has no error of its own for bytes that are no DICOM
        raise InputError(f"an instance cannot be read as DICOM ({type(error).__name__})") from error


def _listen(node: Node, address: tuple[str, int]) -> Any:
    """The server, which serves from here on."""
    entity_of, server_of = _pynetdicom()
    settings = node.settings
    entity = entity_of(settings.aet)
    entity.require_called_aet = True
    entity.require_calling_aet = list(settings.callers)
    entity.maximum_associations = settings.associations
    entity.maximum_pdu_size = PDU
    entity.dimse_timeout = entity.network_timeout = settings.timeout
    entity.acse_timeout = min(settings.timeout, TO_ASK)
    try:
        server = server_of(entity, address, node)
    except OSError as error:
        raise UsageError(
            f"--host {address[0]} --port {address[1]}: cannot listen there ({error.strerror or error}); choose another "
            "port, or end the program that has it"
        ) from error
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    return server


def _pynetdicom() -> tuple[Callable, Callable]:
    """(make an entity, make its server); InputError where pynetdicom is missing."""
    try:
        from mrisr.serve import dicom_server
    except ImportError as error:
        raise InputError("the DICOM node needs pynetdicom; install it with: pip install '.[dicom]'") from error
    return dicom_server.entity, dicom_server.Server
