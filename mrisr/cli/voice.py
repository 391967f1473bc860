"""What a command says while it works: lines, warnings, a bar on a terminal, and a log.

Results never go to stderr and words never to stdout. `--quiet` leaves warnings and errors; `--verbose` adds the steps;
`--log FILE` has everything, with times.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from mrisr.cli.forecast import Forecast
from mrisr.errors import MrisrError, OutputError, to_do


def add_voice_options(parser: argparse.ArgumentParser) -> None:
    """Add --quiet, --verbose and --log."""
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument("--quiet", action="store_true", help="no progress, no summary; warnings and errors stay")
    loud.add_argument("--verbose", action="store_true", help="also every step with its seconds")
    parser.add_argument("--log", metavar="FILE", help="append everything that is said, with times, to FILE")


class Voice:
    """Says things at their level; see the module."""

    def __init__(self, quiet: bool, verbose: bool, log: TextIO | None) -> None:
        self.quiet, self.verbose, self._log = quiet, verbose, log
        self._bar = None
        self._stage, self._began, self._is_over = "", 0.0, False

    def line(self, text: str) -> None:
        """What everybody wants to know."""
        self._say(text, not self.quiet)

    def detail(self, text: str) -> None:
        """What --verbose and the log have."""
        self._say(text, self.verbose)

    def warning(self, text: str) -> None:
        self._say(f"mrisr: warning: {' '.join(text.split())}", True)

    def error(self, text: str) -> None:
        self._say(f"mrisr: error: {' '.join(text.split())}", True)

    def trace(self, text: str) -> None:
        """Where a bug was met: lines that everybody has to see, to report them."""
        self._say(text.rstrip(), True)

    def step(self, stage: str, fraction: float) -> None:
        """A stage of `mrisr.upscale`, told when it is over."""
        if stage != self._stage:
            self._stage, self._began, self._is_over = stage, time.perf_counter(), False
        if fraction >= 1.0 and not self._is_over:
            self._is_over = True
            self.detail(f"  {stage}: {time.perf_counter() - self._began:.2f} s")

    @contextmanager
    def bar(self, forecast: Forecast, scans: int = 1) -> Iterator[Callable[[str, float, int], None]]:
        """show(stage, fraction, scans done): a bar where stderr is a terminal; it moves by itself in between."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda stage, fraction, done=0: None
            return
        from rich.console import Console
        from rich.progress import Progress, ProgressColumn, TextColumn, TimeElapsedColumn
        from rich.progress_bar import ProgressBar

        class Bar(ProgressColumn):
            def render(self, task):
                inside = forecast.fraction() if task.fields["stage"] == "network" else task.fields["part"]
                return ProgressBar(total=scans, completed=task.fields["finished"] + inside, width=32)

        class Remainder(ProgressColumn):
            def render(self, task):
                from rich.text import Text

                seconds = _seconds_left(forecast, task.fields["finished"], scans, task.elapsed or 0.0)
                return Text(f"about {_clock(seconds)} left")

        words = TextColumn("{task.fields[place]}{task.fields[stage]:>12}")
        with Progress(
            words, Bar(), TimeElapsedColumn(), Remainder(), console=Console(stderr=True), transient=True
        ) as live:
            task = live.add_task("", total=None, stage="", part=0.0, finished=0, place="")
            self._bar = live

            def show(stage: str, fraction: float, done: int = 0) -> None:
                place = f"{min(done + 1, scans)}/{scans} " if scans > 1 else ""
                live.update(task, stage=stage, part=_part(stage, fraction), finished=done, place=place)

            try:
                yield show
            finally:
                self._bar = None

    def _say(self, text: str, aloud: bool) -> None:
        if self._log is not None:
            _write(self._log, text)
        if aloud:
            if self._bar is not None:
                self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, file=sys.stderr, flush=True)


@contextmanager
def speaking(args: argparse.Namespace) -> Iterator[Voice]:
    """The voice of one command; an error that ends it goes into the log too. OutputError for a log that cannot be."""
    try:
        log = open(args.log, "a", encoding="utf-8", errors="replace") if args.log else None  # noqa: SIM115 - closed below
    except OSError as error:
        raise OutputError(f"--log: {args.log} cannot be written ({error.strerror}); choose another file") from error
    try:
        voice = Voice(args.quiet, args.verbose, log)
        yield voice
    except (MrisrError, KeyboardInterrupt) as error:
        if log is not None:
            with suppress(OutputError):  # the error that ends the command is the one to be told
                _write(log, f"mrisr: error: {error or 'interrupted'}")
        raise
    finally:
        if log is not None:
            with suppress(OSError):  # what could not be written has been said
                log.close()


def _write(log: TextIO, text: str) -> None:
    try:
        log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}\n")
        log.flush()
    except OSError as error:
        raise OutputError(f"--log: {log.name} cannot be written ({error.strerror}); {to_do(error)}") from error


def _part(stage: str, fraction: float) -> float:
    """What is before the network is nothing, what comes after it is all but done."""
    if stage in ("consistency", "finish"):
        return 0.99
    return fraction if stage in ("network", "adapt") else 0.0


def _seconds_left(forecast: Forecast, finished: int, scans: int, elapsed: float) -> float:
    """Of this scan by the forecast, of the others by the mean of those that are done."""
    others = scans - finished - 1
    if others <= 0:
        return forecast.remainder()
    each = elapsed / finished if finished else forecast.expected
    return forecast.remainder() + others * each


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
