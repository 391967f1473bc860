"""Many scans from the command line: what `mrisr upscale` into a folder and `mrisr bids` share."""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrisr import environment
from mrisr.cli import cluster
from mrisr.cli.compute import check_kept, running
from mrisr.cli.forecast import Forecast
from mrisr.cli.options import use_threads
from mrisr.cli.voice import Voice
from mrisr.errors import UsageError

if TYPE_CHECKING:
    from mrisr.batch.run import Outcome, Settings
    from mrisr.batch.scans import Work

FAILURES = "failures.json"


def settings(args: argparse.Namespace, folder: Path, options: dict[str, Any]) -> Settings:
    """What all scans of the run share. Raises UsageError for what holds for one scan only, or does not fit."""
    from mrisr.batch import per_scan
    from mrisr.batch.run import Settings

    per_scan.check(options, several=True)
    check_kept(args, several=True)
    beside = {name: getattr(args, name, None) for name in ("std", "preview", "info")}
    for name, path in beside.items():
        if path is not None and Path(path).suffix and not Path(path).is_dir():
            raise UsageError(f"--{name}: several scans need a folder, found {path}; it gets the names of the results")
    if args.skip_existing and beside["info"] is not None and same_file(beside["info"], folder):
        raise UsageError("--skip-existing: compares sidecars; give --info a folder of its own")
    if beside["std"] is not None and same_file(beside["std"], folder):
        raise UsageError("--std: its images would have the names of the results; give it a folder of its own")
    return Settings(
        options,
        running(args),
        model=args.model,
        dtype=args.dtype,
        # Records in the folder of the results have the sidecars' names, and take their place.
        sidecar=not args.no_sidecar and not (beside["info"] is not None and same_file(beside["info"], folder)),
        skip_existing=args.skip_existing,
        force=args.force,
        folder=folder,
        report=None if args.report is None else Path(args.report),
        radius=args.radius,
        **{name: None if path is None else Path(path) for name, path in beside.items()},
    )


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two paths are of one file or folder, which need not be there yet."""
    return os.path.realpath(one) == os.path.realpath(other)


def run(args: argparse.Namespace, work: Work, settings: Settings, failures: Path, voice: Voice) -> int:
    """Upscale `work`, here or on a cluster, say what became of it, write or remove `failures`; the exit code."""
    from mrisr.batch import collisions, deliver
    from mrisr.batch import failures as list_of_failures
    from mrisr.batch import run as batch

    deliver.check_folder(work.folder)
    list_of_failures.check(failures, force=args.force)
    for path in (settings.std, settings.info):  # images, and what has the names of sidecars
        for folder in work.searched if path is not None else ():
            collisions.refuse_inside(path, folder)
    where = cluster.of_arguments(args, work.folder)
    if where is None:
        use_threads(args.threads)

    start = time.perf_counter()
    forecast = Forecast(kind(args), args.device)
    with voice.bar(forecast, len(work.scans)) as show:
        listener = _Display(args, settings, len(work.scans), forecast, voice, show)
        if where is None:
            outcomes = batch.run(work.scans, settings, listener)
        else:
            from mrisr.batch import cluster as many_machines

            outcomes = many_machines.run(work.scans, settings, where, listener)
    failed = list_of_failures.write(failures, outcomes)
    voice.line(_total(outcomes, time.perf_counter() - start, failures if failed else None))
    if settings.report is not None:
        from mrisr.batch import pages

        pages.table(work.scans, outcomes, settings.report, settings.folder)
    if not failed:
        return 0
    return outcomes[0].exit_code if len(outcomes) == 1 else batch.FAILED_EXIT


def kind(args: argparse.Namespace) -> str:
    """What the speed of the network depends on."""
    threads = args.threads or environment.default_threads()
    return "|".join(map(str, (args.model, args.device, args.engine, threads, args.tile)))


def evaluations(args: argparse.Namespace, options: dict[str, Any], volume: Any) -> int:
    """Output voxels times evaluations of the network."""
    from mrisr import grid

    where = {name: options[name] for name in ("voxel_size", "factor") if name in options}
    frames = volume.data.shape[3] if volume.data.ndim == 4 else 1
    each = math.prod(grid.plan(volume.grid, **where).shape)
    return each * frames * args.steps * args.samples * args.ensemble


def _total(outcomes: list[Outcome], seconds: float, failures: Path | None) -> str:
    count = {state: sum(o.state == state for o in outcomes) for state in ("done", "skipped", "failed")}
    parts = [f"{n} {state}" for state, n in count.items() if n]
    warnings = sum(bool(o.warnings) for o in outcomes)
    warned = f"; {warnings} with warnings" if warnings else ""
    where = f"; {failures} says why" if failures is not None else ""
    return f"{len(outcomes)} scans in {seconds:.1f} s: {', '.join(parts) or 'none'}{warned}{where}"


class _Display:
    """Tells a `Voice` what a run tells (a `mrisr.batch.run.Listener`)."""

    def __init__(self, args, settings: Settings, count: int, forecast: Forecast, voice: Voice, show) -> None:
        self.args, self.settings, self.count = args, settings, count
        self.forecast, self.voice, self.show = forecast, voice, show
        self.count_done = 0

    def note(self, text: str) -> None:
        self.voice.line(text)

    def started(self, index: int, scan, volume) -> None:
        self.forecast.scan(evaluations(self.args, self.settings.options, volume))
        self.voice.detail(f"{scan.name}: about {self.forecast.expected:.0f} s in the network")

    def progress(self, stage: str, fraction: float) -> None:
        self.forecast.tick(stage, fraction)
        self.voice.step(stage, fraction)
        self.show(stage, fraction, self.count_done)

    def ended(self, index: int, outcome: Outcome) -> None:
        self.count_done = index + 1
        for text in outcome.warnings:
            self.voice.warning(text if outcome.name in text else f"{outcome.name}: {text}")
        place = f"[{index + 1}/{self.count}] {outcome.name}:"
        if outcome.state == "failed":
            message = outcome.error.removeprefix(f"{outcome.name.rsplit('/', 1)[-1]}: ")
            self.voice.error(message if outcome.name in message else f"{outcome.name}: {message}")
            if outcome.trace:
                self.voice.error("this is a bug: please report it with the lines below")
                self.voice.trace(outcome.trace)
            return
        if outcome.state == "skipped":
            self.voice.line(f"{place} made already, skipped")
            return
        if not outcome.grids:
            self.voice.line(f"{place} made by a worker that was lost before it could say so")
            return
        self.voice.line(f"{place} {outcome.grids}, {sum(outcome.seconds.values()):.1f} s")
        steps = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in outcome.seconds.items())
        self.voice.detail(f"  {steps}")
