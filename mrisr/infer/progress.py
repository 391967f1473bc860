"""Progress: one callback, or a bar on the terminal. Stages are timed here, so `info` and the bar agree."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from mrisr.errors import UsageError

Callback = Callable[[str, float], None]


class Report:
    """Tells `callback(stage, fraction)` how far a run is, and adds up `seconds` per stage.

    The callback runs in the caller's thread; an exception that it raises ends the run. Where it has an attribute
    `frame`, that is called as frame(index, voxels [X, Y, Z], affine) for every frame of a 4D scan that is done, in
    order: the result's own voxels, not to be written to. Where its attribute `keeps_frames` is true, the result has no
    voxels: the frames are the callback's.
    """

    def __init__(self, callback: Callback | None = None) -> None:
        self.callback = callback
        self.seconds: dict[str, float] = {}
        self._stage = ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._stage = name
        self.tick(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.tick(1.0)

    def tick(self, fraction: float) -> None:
        if self.callback is not None:
            self.callback(self._stage, min(1.0, max(0.0, float(fraction))))

    @property
    def keeps_frames(self) -> bool:
        """Whether the frames of a 4D result are the callback's alone."""
        return bool(getattr(self.callback, "keeps_frames", False))

    def frame(self, index: int, image: np.ndarray, affine: np.ndarray) -> None:
        deliver = getattr(self.callback, "frame", None)
        if deliver is not None:
            deliver(index, image, affine)


@contextmanager
def reporting(progress: bool | Callback | None) -> Iterator[Report]:
    """progress: None or False (silent), True (a rich bar when stderr is a terminal), or a callback(stage,
    fraction).
    """
    if callable(progress):
        yield Report(progress)
        return
    if progress not in (None, False, True):
        raise UsageError(f"progress: expected None, True, False or a callable (stage, fraction), got {progress!r}.")
    if not progress or not sys.stderr.isatty():
        yield Report()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, int] = {}

        def show(stage: str, fraction: float) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=1.0)
            bar.update(tasks[stage], completed=fraction)

        yield Report(show)
