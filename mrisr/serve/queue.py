"""One job at a time, and a bounded number that wait for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

__all__ = ["CancelledError", "JobQueue", "Progress", "Ticket"]

Progress = Callable[[str, float], None]
Work = Callable[[Progress], Any]


class Ticket:
    """A job that was taken: `future` has its result, `cancel` ends it at its next sign of progress."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.future: Future = Future()
        self.stage, self.fraction = "waiting", 0.0
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Have the job end early; `future` then raises CancelledError."""
        self._cancelled.set()

    def progress(self, stage: str, fraction: float) -> None:
        """What the job reports to; raises CancelledError once nobody wants its result."""
        self.stage, self.fraction = stage, fraction
        if self._cancelled.is_set():
            raise CancelledError

    def run(self) -> None:
        """Do the work, in the calling thread; every ending goes into `future`."""
        try:
            self.progress("start", 0.0)
            self.future.set_result(self.work(self.progress))
        except BaseException as error:  # noqa: BLE001 - the waiting thread decides; this one has to live on
            self.future.set_exception(error)


class JobQueue:
    """A worker thread that does one job after another.

    Args:
        waiting: how many jobs may wait beside the one that runs; at least 1.
    """

    def __init__(self, waiting: int = 8) -> None:
        self._waiting: queue.Queue[Ticket | None] = queue.Queue(waiting)
        self._running: Ticket | None = None
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="mrisr-jobs", daemon=True)
        self._thread.start()

    def offer(self, work: Work) -> Ticket | None:
        """A ticket for `work(progress)`; None where too many wait or the queue has stopped. Never blocks."""
        ticket = Ticket(work)
        with self._lock:
            if self._stopped.is_set():
                return None
            try:
                self._waiting.put_nowait(ticket)
            except queue.Full:
                return None
        return ticket

    def stop(self, timeout: float | None = None) -> bool:
        """Take no more jobs, cancel those there are, wait up to `timeout` s; whether the worker has ended."""
        with self._lock:
            self._stopped.set()
            if self._running is not None:
                self._running.cancel()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while not self._stopped.is_set() or not self._waiting.empty():
            try:
                ticket = self._waiting.get(timeout=0.1)
            except queue.Empty:
                continue
            with self._lock:
                self._running = ticket
                if self._stopped.is_set():
                    ticket.cancel()
            ticket.run()
            with self._lock:
                self._running = None
