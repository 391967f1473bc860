"""A list of scans, each a task of a dask cluster: no scan is lost, none is written twice.

A task is `mrisr.batch.run.one`: it claims its target, writes beside it and renames, and leaves alone what a task of
the same run has finished. So a scheduler may give a scan away again whenever a worker is lost. Results are lines of
words; each future is released when its line is here, for otherwise the scheduler would compute a finished scan anew
when the worker that holds its line dies.
"""

from __future__ import annotations

import os
import queue
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mrisr.batch import run as batch
from mrisr.batch.deliver import claim
from mrisr.batch.launch import Cluster, Connection, connected
from mrisr.batch.run import BUG, DONE, FAILED, MEMORY, Listener, Outcome, Settings
from mrisr.batch.scans import Scan
from mrisr.errors import BackendError, ModelError, MrisrError, OutputError, UsageError

__all__ = ["Cluster", "run"]

PATIENCE = 5.0  # seconds between looks at whether anything can still come
RESTART = 30.0  # seconds that a worker which has died takes to be started again, at most
TRIES = 5  # of a scan that another worker is to have; each but the first two takes a worker that dies meanwhile
KILLED = "KilledWorker"
SHARE = 0.8  # of a worker's memory that the network may have
GENERAL = {error.__name__: error for error in (UsageError, BackendError, ModelError)}  # true of every scan


def run(scans: Sequence[Scan], settings: Settings, cluster: Cluster, listener: Listener | None = None) -> list[Outcome]:
    """Upscale every scan on the cluster; outcomes in the order of `scans`.

    A scan that ends two workers (killed, out of memory) is failed by its name. One that fails for want of what another
    machine may have (room, memory, a device) is tried once more on another worker, and again where that dies before;
    where another does well, the first is taken out.

    Args:
        listener: `ended` is called as scans end, with the count of those before.

    Raises:
        InputError: the extra `cluster` is not installed.
        UsageError, BackendError, ModelError: of what none of the scans can have; no scheduler, or none of the workers
            comes.
    """
    if not settings.sidecar:
        raise UsageError("--cluster: a task knows by the sidecar what is done; leave --no-sidecar out")
    if not scans:
        return []
    settings = _everywhere(replace(settings, run=uuid.uuid4().hex))
    tasks = [_absolute(scan) for scan in scans]
    listener = listener or Listener()
    round_ = None
    try:
        with connected(cluster, len(scans), settings.running.get("device", "auto")) as connection:
            round_ = _Round(connection, tasks, _within(settings, cluster), listener)
            round_.start()
            round_.finish()
    finally:
        for index, scan in enumerate(tasks):  # what killed workers have left half written
            if round_ is None or round_.outcomes[index] is None or round_.outcomes[index].state == FAILED:
                with suppress(OutputError), claim(scan.target):
                    pass
    return round_.outcomes


class Worker(NamedTuple):
    """Who did it: one that has died and been started again keeps its name, not its address."""

    name: str
    address: str


def task(scan: Scan, settings: Settings) -> tuple[Outcome, Worker]:
    """One scan, in a worker."""
    from distributed import get_worker

    try:
        outcome = batch.one(scan, settings)
    except (MrisrError, MemoryError) as error:  # before the scan's turn: weights that this machine does not see
        code = getattr(error, "exit_code", MEMORY)
        outcome = Outcome(scan.name, FAILED, error=str(error), kind=type(error).__name__, exit_code=code, machine=True)
    worker = get_worker()
    return outcome, Worker(str(worker.name), worker.address)


class _Round:
    """The scans that are out, and what has come back."""

    def __init__(self, connection: Connection, scans: list[Scan], settings: Settings, listener: Listener) -> None:
        self.client, self.check = connection.client, connection.check
        self.scans, self.settings, self.listener = scans, settings, listener
        self.outcomes: list[Outcome | None] = [None] * len(scans)
        self.out: dict[str, int] = {}
        self.back: queue.SimpleQueue = queue.SimpleQueue()
        self.before: dict[int, list[tuple[Outcome, Worker]]] = {}  # of scans that another worker is to have
        self.several = len(self._workers()) > 1

    def start(self) -> None:
        """Hand every scan to the scheduler, which keeps them until a worker is free."""
        from dask._task_spec import Task

        graph = {}
        for index, scan in enumerate(self.scans):
            key = f"scan-{index}-{self.settings.run}"
            # As a producer of data it waits with the scheduler and not on a worker, however few the scans are: a
            # worker that dies then takes one scan with it, and blames no other.
            graph[key] = Task(key, task, scan, self.settings, _data_producer=True)
            self.out[key] = index
        for future in self.client.get(graph, list(graph), sync=False):
            self._watch(future)

    def finish(self) -> None:
        """Collect until nothing is out."""
        while self.out:
            try:
                future = self.back.get(timeout=PATIENCE)
            except queue.Empty:
                self._check()
                continue
            index = self.out.pop(future.key)
            outcome, where = self._result(index, future)
            future.release()  # now, not when all are in: see the module
            del future
            self._take(index, outcome, where)

    def _watch(self, future: Any) -> None:
        future.add_done_callback(self.back.put)

    def _check(self) -> None:
        self.check()
        if self.client.status not in ("running", "connecting"):
            raise BackendError("--cluster: the scheduler is gone; run again with --skip-existing to complete the rest")

    def _result(self, index: int, future: Any) -> tuple[Outcome, Worker | None]:
        from distributed import KilledWorker

        if future.status == "cancelled":
            raise BackendError("--cluster: the scheduler is gone; run again with --skip-existing to complete the rest")
        error = future.exception()
        if error is None:
            return future.result()
        name = self.scans[index].name
        if isinstance(error, KilledWorker):
            deaths = error.allowed_failures + 1
            text = f"{deaths} workers ended while they had it (killed, or out of memory); it is not tried again"
            return Outcome(name, FAILED, error=text, kind=KILLED, exit_code=MEMORY), None
        text = " ".join(str(error).split()) or type(error).__name__
        return Outcome(name, FAILED, error=text, kind=type(error).__name__, exit_code=BUG), None

    def _take(self, index: int, outcome: Outcome, where: Worker | None) -> None:
        """Keep an outcome, or have another worker try once more."""
        before = self.before.setdefault(index, [])
        if outcome.kind == KILLED and before and before[0][0].exit_code != MEMORY:
            outcome, where = before[0]  # it came to its end on the first worker: another scan has killed this one
        elsewhere = [first for first in before if where is not None and first[1].name != where.name]
        if outcome.state != FAILED and elsewhere:
            self._judge(*elsewhere[0], outcome)
        # The worker that was to have it may have died of another scan first, so that it came back to this one.
        again = outcome.machine and where is not None and not elsewhere and len(before) + 1 < TRIES
        if again and self._elsewhere(index, where, len(before)):
            before.append((outcome, where))
            return
        if outcome.kind in GENERAL and not any(o is not None and o.state == DONE for o in self.outcomes):
            raise GENERAL[outcome.kind](outcome.error)
        count = sum(o is not None for o in self.outcomes)
        self.outcomes[index] = outcome
        self.listener.ended(count, outcome)
        self.listener.progress("scans", 0.0)

    def _elsewhere(self, index: int, where: Worker, count: int) -> bool:
        """Give the scan to another worker; False where there is none."""
        others, deadline = self._others(where), time.monotonic() + RESTART
        while self.several and not others and time.monotonic() < deadline:  # it has died, and is started again
            time.sleep(0.2)
            others = self._others(where)
        if not others:
            return False
        key = f"scan-{index}-again-{count}-{self.settings.run}"
        self.out[key] = index
        self._watch(
            self.client.submit(
                task, self.scans[index], self.settings, key=key, pure=False, workers=others, allow_other_workers=True
            )
        )
        return True

    def _others(self, where: Worker) -> list[str]:
        return [address for address, name in self._workers().items() if name != where.name]

    def _workers(self) -> dict[str, str]:
        """Address -> name."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        return {address: str(worker.get("name", address)) for address, worker in workers.items()}

    def _judge(self, failure: Outcome, where: Worker, outcome: Outcome) -> None:
        """Where another worker does well, the first lacks something, and the next scan would fail there too."""
        self.listener.note(f"{outcome.name}: done by another worker; {where.address} is taken out ({failure.error})")
        with suppress(OSError, KeyError, ValueError):  # it may be gone already
            self.client.retire_workers(names=[where.name])


def _absolute(scan: Scan) -> Scan:
    """A worker has a folder of its own; names stay as they are."""
    source = scan.source
    at = Path(os.path.abspath(source)) if isinstance(source, Path) else tuple(Path(os.path.abspath(p)) for p in source)
    sidecars = None if scan.sidecars is None else tuple(Path(os.path.abspath(p)) for p in scan.sidecars)
    files = tuple(Path(os.path.abspath(p)) for p in scan.files)
    target, others = Path(os.path.abspath(scan.target)), tuple(map(_absolute, scan.others))
    return replace(scan, source=at, target=target, files=files, sidecars=sidecars, others=others)


def _everywhere(settings: Settings) -> Settings:
    """Paths as they are from any folder; a GPU is whichever the worker has."""
    folders = {name: getattr(settings, name) for name in ("folder", "std", "preview", "info", "report")}
    folders = {name: None if path is None else Path(os.path.abspath(path)) for name, path in folders.items()}
    model = os.path.abspath(settings.model) if os.path.exists(settings.model) else settings.model
    options = {name: _path(name, value) for name, value in settings.options.items()}
    running = dict(settings.running)
    if str(running.get("device", "")).startswith("cuda:"):
        running["device"] = "cuda"
    return replace(settings, model=model, options=options, running=running, **folders)


def _within(settings: Settings, cluster: Cluster) -> Settings:
    """The network's budget follows from the worker's memory: it is refused before the worker would be ended."""
    if cluster.memory is None or settings.running.get("memory") is not None:
        return settings
    from dask.utils import parse_bytes

    return replace(settings, running={**settings.running, "memory": int(SHARE * parse_bytes(cluster.memory))})


def _path(name: str, value: Any) -> Any:
    if name not in ("mask", "bias", "gradnl") or not isinstance(value, str) or value == "auto":
        return value
    return os.path.abspath(value)
