"""A list of scans, one after the other: the next is read and the last is written while the network works.

A scan that fails does not stop the rest. One model is loaded, and what an engine has compiled for it stays.
"""

from __future__ import annotations

import errno
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mrisr
from mrisr import preview, report
from mrisr.batch import pages, per_scan, provenance, warned
from mrisr.batch.deliver import claim, make_folder, write_image, write_json, write_series
from mrisr.batch.scans import Scan
from mrisr.errors import CATCHING, NO_ROOM, BackendError, MrisrError, OutputError, UsageError
from mrisr.io import dicom, nifti
from mrisr.io.atomic import check_target

__all__ = ["FAILED_EXIT", "Listener", "Outcome", "Settings", "one", "run"]

FAILED_EXIT = 9  # of the command, where some scans of several failed
BUG, MEMORY = 1, 5  # exit codes of what is no MrisrError
DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True)
class Settings:
    """What every scan of a run shares; plain values, so that they travel to other processes.

    options        of `mrisr.upscale`: what to compute. A change makes `skip_existing` compute again
    running        of `mrisr.upscale`: how (device, engine, threads, memory, tile)
    model          name or path
    dtype          of `mrisr.io.nifti.DTYPES`
    sidecar        write one beside every result
    skip_existing  leave alone what the same source, weights and options have made; replace what others have
    force          replace whatever is there
    folder         that the targets lie in
    std, preview, info  folders that mirror it, for the spread of the samples, pictures and records
    report         folder of the pages (`mrisr.report`), which mirrors it too
    radius         R0 in mm of the coefficients in `options["gradnl"]`, where the file states none
    run            an id that goes into the sidecars: what they say was made by it is done, whoever asks again
    """

    options: dict[str, Any]
    running: dict[str, Any]
    model: str = "base"
    dtype: str = "float32"
    sidecar: bool = True
    skip_existing: bool = False
    force: bool = False
    folder: Path | None = None
    std: Path | None = None
    preview: Path | None = None
    info: Path | None = None
    report: Path | None = None
    radius: float | None = None
    run: str | None = None


@dataclass
class Outcome:
    """How one scan ended: state "done", "skipped" or "failed"; `seconds` by step; `grids` in words.

    `machine`: it failed for want of what another machine may have: room, memory, a device.
    """

    name: str
    state: str
    seconds: dict[str, float] = field(default_factory=dict)
    grids: str = ""
    warnings: list[str] = field(default_factory=list)
    error: str = ""
    kind: str = ""
    exit_code: int = 0
    trace: str = ""
    machine: bool = False

    def failure(self) -> dict[str, Any]:
        """As failures.json has it."""
        return {"Scan": self.name, "Error": self.error, "Kind": self.kind, "ExitCode": self.exit_code}


class Listener:
    """What a run tells; every method is called in the caller's thread."""

    def note(self, text: str) -> None:
        """What is waited for, or was met, on the way."""

    def started(self, index: int, scan: Scan, volume: Any) -> None:
        """The network's turn; `volume` as read."""

    def progress(self, stage: str, fraction: float) -> None:
        """As `mrisr.upscale` tells it."""

    def ended(self, index: int, outcome: Outcome) -> None:
        """Once per scan, in order."""


def run(scans: Sequence[Scan], settings: Settings, listener: Listener | None = None) -> list[Outcome]:
    """Upscale every scan; outcomes in order.

    Args:
        settings: with a memory budget in `running`, nothing is read or written beside the network, so that it is kept.

    Raises:
        ModelError: before anything is read.
        UsageError, BackendError: of the first scan that the network takes: an option that none can have.
    """
    listener = listener or Listener()
    model = mrisr.load_model(settings.model)
    outcomes: list[Outcome] = []

    def collect(ticket: _Ticket) -> None:
        outcomes.append(ticket.outcome())
        listener.ended(len(outcomes) - 1, outcomes[-1])

    with warned.by_thread(), ExitStack() as threads:
        tickets = [_Ticket(scan, settings, model) for scan in scans]
        threads.callback(lambda: [ticket.close() for ticket in tickets])  # after the threads have ended
        lend = _at_once
        if settings.running.get("memory") is None and len(scans) > 1:
            reader, writer = (threads.enter_context(ThreadPoolExecutor(1, f"mrisr-{w}")) for w in ("read", "write"))
            lend = lambda which, work, *args: (reader if which == "read" else writer).submit(work, *args)  # noqa: E731
        ahead, writing = lend("read", tickets[0].read) if tickets else None, None
        for index, ticket in enumerate(tickets):
            ahead.result()
            ahead = lend("read", tickets[index + 1].read) if index + 1 < len(tickets) else None
            ticket.compute(index, listener)
            if isinstance(ticket.error, (UsageError, BackendError)) and not any(o.state == DONE for o in outcomes):
                raise ticket.error
            if writing is not None:
                writing.result()
                collect(tickets[index - 1])
            writing = lend("write", ticket.write)
        if writing is not None:
            writing.result()
            collect(tickets[-1])
    return outcomes


def one(scan: Scan, settings: Settings, progress: Callable[[str, float], None] | None = None) -> Outcome:
    """Upscale one scan, step after step: for a worker, whose model stays loaded between calls."""
    listener = Listener()
    if progress is not None:
        listener.progress = progress
    with warned.by_thread():
        ticket = _Ticket(scan, settings, mrisr.load_model(settings.model))
        try:
            ticket.read()
            ticket.compute(0, listener)
            ticket.write()
        finally:
            ticket.close()
    return ticket.outcome()


def _at_once(which: str, work: Callable, *args: Any) -> Future:
    """In place of a thread: the work is done now."""
    future: Future = Future()
    future.set_result(work(*args))
    return future


class _Ticket:
    """A scan on its way: read, compute, write, each in a thread of its own, one after the other."""

    def __init__(self, scan: Scan, settings: Settings, model: Any) -> None:
        self.scan, self.settings, self.model = scan, settings, model
        self.claim = ExitStack()
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}
        self.error: Exception | None = None
        self.trace = ""
        self.options = settings.options
        self.skipped = self.made_before = False
        self.grids = ""
        self.others, self.other_series = [], []
        self.volume = self.series = self.identity = self.result = self.info = None

    def read(self) -> None:
        """Claim the target, look whether it is done already, read the source."""
        self._step("read", self._read)

    def compute(self, index: int, listener: Listener) -> None:
        """The network, in the caller's thread."""

        def work() -> None:
            listener.started(index, self.scan, self.volume)
            self.result, self.info = mrisr.upscale(
                [self.volume, *self.others] if self.others else self.volume,
                model=self.model,
                **{**self.options, "gradnl": per_scan.distortion(self.options, self.settings.radius, self.volume)},
                **self.settings.running,
                progress=listener.progress,
                return_info=True,
            )

        self._step("compute", work)

    def write(self) -> None:
        """The result, its sidecar and what else was asked for; then the target is free."""
        try:
            self._step("write", self._write)
        finally:
            self.close()

    def close(self) -> None:
        """Let the target go, and the memory."""
        self.claim.close()
        if self.info is not None:
            self.grids = _grids(self.info)
        self.others, self.other_series = [], []
        self.volume = self.series = self.result = self.info = None

    def outcome(self) -> Outcome:
        state = FAILED if self.error is not None else SKIPPED if self.skipped else DONE
        outcome = Outcome(self.scan.name, state, self.seconds, self.grids, self.warnings)
        if self.error is not None:
            outcome.error = provenance.scrubbed(
                " ".join(str(self.error).split()) or type(self.error).__name__, self.scan
            )
            outcome.kind = type(self.error).__name__
            memory = MEMORY if isinstance(self.error, MemoryError) else BUG
            outcome.exit_code = getattr(self.error, "exit_code", memory)
            outcome.trace = self.trace
            outcome.machine = _of_machine(self.error)
        return outcome

    def _step(self, name: str, work: Callable[[], None]) -> None:
        if self.error is not None or self.skipped or self.made_before:
            return
        start = time.perf_counter()
        try:
            with warned.into(self.warnings):
                work()
        except Exception as error:  # noqa: BLE001 - one scan's end, told by its outcome; the others go on
            self.error = error
            if not isinstance(error, (MrisrError, MemoryError)):
                self.trace = traceback.format_exc()
        finally:
            self.seconds[name] = time.perf_counter() - start

    def _read(self) -> None:
        scan, settings = self.scan, self.settings
        self.claim.enter_context(claim(scan.target, settings.run))
        facts = provenance.facts_of(scan)
        self.options = per_scan.options(settings.options, scan)
        options = per_scan.identifying(self.options, settings.dtype, settings.radius)
        self.identity = provenance.identity(scan, self.model.sha256, options, facts)
        if provenance.made_by(settings.run, scan.target, self.identity):
            self.made_before = True
            return
        if settings.skip_existing and provenance.same(scan.target, self.identity):
            if settings.report is not None:
                pages.complete(scan, self._place(), self.identity.plain())
            self.skipped = True
            return
        if settings.report is not None:
            report.check(self._place(), force=self._may_replace_page())
        if scan.to_dicom:
            dicom.check_folder(scan.target, force=self._may_replace())
        else:
            nifti.check_output(scan.target, force=self._may_replace(), dtype=settings.dtype)
        self._check_sidecar()
        self._check_beside()
        with CATCHING:  # nibabel has one logger, which reading swaps
            self.volume, self.series = scan.read()
            if scan.others:
                force = bool(settings.options.get("force"))
                self.others, self.other_series = scan.read_others(self.series, force=force)

    def _check_sidecar(self) -> None:
        """Before the work: a name that fits, and no file of somebody else's that would be lost."""
        target, settings = self.scan.target, self.settings
        if settings.sidecar:
            self._refuse_original(provenance.sidecar_path(target))
            force = self._may_replace() or provenance.record_of(target) is not None  # one that a killed run left
            provenance.check_sidecar(provenance.sidecar_path(target), force=force)

    def _check_beside(self) -> None:
        """Before the work: pictures, records and spreads of somebody else stay. They come before the result, so that a
        run which may complete what a killed one left replaces them."""
        again = self.settings.skip_existing or self.settings.run is not None
        for path, _ in self._beside():
            self._refuse_original(path)
            if os.path.lexists(path):
                check_target(path, force=again or self._may_replace())

    def _refuse_original(self, path: Path) -> None:
        """OutputError where `path` is a file that the scan is read from: no option makes it right to replace that."""
        if os.path.lexists(path) and os.path.realpath(path) in map(os.path.realpath, provenance.originals(self.scan)):
            raise OutputError(f"{path}: is a file of the original {self.scan.name}; give another folder")

    def _may_replace(self) -> bool:
        """Whether the target may be replaced: all by `force`, mrisr's own by `skip_existing`."""
        own = self.settings.skip_existing and provenance.record_of(self.scan.target) is not None
        return self.settings.force or own

    def _write(self) -> None:
        scan, settings, info = self.scan, self.settings, self.info
        info.warnings = [provenance.scrubbed(text, scan) for text in self.warnings]
        describe = None
        if settings.sidecar:
            describe = lambda size: provenance.sidecar(  # noqa: E731
                self.identity, info, dtype=settings.dtype, size=size, extra=scan.about, run=settings.run
            )
        self._write_beside()
        if settings.report is not None:
            record = provenance.sidecar(self.identity, info, dtype=settings.dtype, size=0, extra=scan.about)
            report.write(
                self._place(), self.volume, self.result, record, spread=info.std, force=self._may_replace_page()
            )
        if scan.to_dicom:
            series = [self.series, *self.other_series]
            write_series(self.result, series, info, scan.target, describe, replace=self._may_replace())
            return
        write_image(
            self.result,
            scan.target,
            describe,
            dtype=settings.dtype,
            descrip=provenance.description(info.model),
            replace=self._may_replace(),
        )

    def _write_beside(self) -> None:
        """The other outputs come first: a result that is there has all that belongs to it."""
        for path, write in self._beside():
            make_folder(path.parent)
            write(path)

    def _beside(self) -> Iterator[tuple[Path, Callable[[Path], None]]]:
        """(path, what writes it) of every other output that was asked for."""
        settings = self.settings
        for folder, ending, write in (
            (settings.std, None, lambda path: nifti.write(self.info.std, path, force=True)),
            (settings.preview, ".png", self._picture),
            (settings.info, ".json", lambda path: write_json(path, self.info.to_dict())),
        ):
            if folder is None:
                continue
            path = folder / self.scan.target.relative_to(settings.folder)
            if ending is not None:
                path = provenance.sidecar_path(path).with_suffix(ending)
            yield path, write

    def _place(self) -> report.Place:
        return pages.place_of(self.scan, self.settings.report, self.settings.folder)

    def _may_replace_page(self) -> bool:
        """A page comes before its result: one of this very job, or without a result, was left by a killed run."""
        again = self.settings.skip_existing or self.settings.run is not None
        orphan = again and not self.scan.target.exists()
        return self._may_replace() or orphan or report.is_current(self._place(), self.identity.plain())

    def _picture(self, path: Path) -> None:
        sheet = preview.upscale_sheet(self.volume.data, self.volume.affine, self.result.data, self.result.affine)
        preview.save(sheet, path)


def _of_machine(error: BaseException | None) -> bool:
    """Whether the same may go well elsewhere: no room, no memory, no such device, here."""
    if isinstance(error, (BackendError, MemoryError)):
        return True
    if isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EROFS, errno.EIO, errno.EMFILE):
        return True
    return error is not None and _of_machine(error.__cause__)


def _grids(info: Any) -> str:
    def text_of(grid) -> str:
        return f"{' x '.join(map(str, grid.shape))} of {' x '.join(f'{v:.3g}' for v in grid.voxel_size)} mm"

    frames = f", {info.frames} frames" if info.frames > 1 else ""
    return f"{text_of(info.input)} -> {text_of(info.target)}{frames}"
