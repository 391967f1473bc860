"""``mrisr upscale``: a scan, or many, brought onto a finer grid, each with a record of where it came from."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import mrisr
from mrisr import environment
from mrisr.cli import many
from mrisr.cli.cluster import add_cluster_options
from mrisr.cli.compute import (
    adapting,
    add_adapt_options,
    add_beside_options,
    add_compute_options,
    add_join_options,
    add_writing_options,
    check_beside,
    check_joined,
    computing,
    joining,
    running,
)
from mrisr.cli.forecast import Forecast
from mrisr.cli.loading import load, torch_ahead
from mrisr.cli.options import add_series, use_threads, write_text
from mrisr.cli.outputs import Outputs, check_place
from mrisr.cli.voice import Voice, add_voice_options, speaking
from mrisr.errors import UsageError

SIDECAR = "the sidecar (--no-sidecar)"
KEEP = "--keep-adapted"


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "upscale",
        help="write a sharper scan, or a folder of them, on a finer grid",
        description="Read brain MRI scans, write each on a finer grid. A result appears whole or not at all. Into a "
        "folder: names and subfolders are kept, a scan that fails does not stop the rest (failures.json names it).",
    )
    parser.add_argument(
        "-i",
        "--input",
        required=True,
        nargs="+",
        metavar="IN",
        help="NIfTI, MGZ or DICOM; a folder of scans, a list (.txt) or a pattern; 3D or 4D",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help=".nii, .nii.gz, .mgh or .mgz; or a folder, for any number"
    )
    parser.add_argument("--format", choices=("nifti", "dicom"), help="written into a folder (default: as it came in)")
    add_series(parser)
    parser.add_argument("--all-series", action="store_true", help="all DICOM series of a folder, into a folder")
    record, spread = "; named as the sidecar, it takes its place", ", an image like -o"
    add_beside_options(parser, ("PNG", "JSON", "OUT"), record, spread)
    add_writing_options(parser)
    parser.add_argument("--force", action="store_true", help="overwrite outputs that exist")
    parser.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave alone what the same source, weights and options have made; make anew what others have",
    )
    add_join_options(
        parser,
        "the inputs are scans of one head in one contrast, such as stacks of slices in three orientations, that become "
        "one; of a DICOM folder --series may name several: 3,5,7 (needs SimpleITK)",
    )
    parser.add_argument(
        "--reference",
        type=int,
        metavar="N",
        help="with --join: the input, counted from 0, whose orientation and field of view OUT has (default: 0)",
    )
    add_adapt_options(parser, keep=True)
    add_voice_options(parser)
    add_compute_options(parser)
    add_cluster_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; raises MrisrError, returns 0, or 9 where some scans of several failed."""
    check_beside(args)
    if args.skip_existing and args.no_sidecar:
        raise UsageError("--skip-existing: compares sidecars; leave --no-sidecar out")
    if args.series is not None and args.all_series:
        raise UsageError("--all-series: takes every series; leave --series out")
    if args.reference is not None and not args.join:
        raise UsageError("--reference: needs --join")
    several = args.join and (len(args.input) > 1 or "," in (args.series or ""))
    options = {**computing(args), **joining(args), **adapting(args, several)}
    with speaking(args) as voice:
        # --threads has to be known to the library when it is loaded.
        at_once = not (args.skip_existing or args.cluster or args.threads) and all(map(os.path.exists, args.input))
        if at_once and _sure_of_torch(args):
            torch_ahead()
        load("mrisr.batch.scans")
        from mrisr.batch import scans

        if scans.nifti.ending_of(Path(args.output)) is not None:
            _check_targets(args)
        selection = dict(form=args.format, series=args.series, group=args.group, every_series=args.all_series)
        selection["join"] = (args.reference or 0) if args.join else None
        work = scans.find(args.input, args.output, **selection)
        check_joined(args, any(scan.others for scan in work.scans))
        if work.folder is None and args.cluster is not None:
            raise UsageError(f"--cluster: is for several scans; give a folder in place of {args.output}")
        if work.folder is None or (
            args.cluster is None
            and len(work.scans) == 1
            and work.scans[0].to_dicom
            and (args.join or not args.all_series)
        ):
            return _one(args, work.scans[0], options, voice)
        return many.run(args, work, many.settings(args, work.folder, options), work.folder / many.FAILURES, voice)


def _sure_of_torch(args: argparse.Namespace) -> bool:
    """Whether the command line alone says that PyTorch is needed; `mrisr.infer.plan.is_plain` knows it for certain."""
    several = args.mode == "sample" or args.steps > 1 or args.samples > 1
    others = (args.tile, args.gradnl, args.bias, args.adapt, args.join, args.consistency == "on", several)
    on_gpu = args.device.startswith("cuda") or (args.device == "auto" and environment.may_have_gpu())
    folder = environment.cache_folder()
    converted = folder is not None and any(folder.glob("model-*.json"))
    return any(others) or on_gpu or args.engine not in ("auto", "openvino") or not converted


def _one(args: argparse.Namespace, scan, options: dict, voice: Voice) -> int:
    """One scan to one file, with what was asked for beside it; all of it, or nothing."""
    from mrisr.batch import per_scan, provenance

    options = per_scan.options(options, scan)
    target = scan.target
    beside = _sidecar(args, target)
    targets = {"--output": target, SIDECAR: beside}
    targets |= {"--preview": args.preview, "--info": args.info, "--std": args.std, KEEP: args.keep_adapted}
    field = options["bias"] if options["bias"] != "auto" else None
    weights = args.model if args.keep_adapted and os.path.isfile(args.model) else None
    paths = (options["gradnl"], field, options["mask"], weights)
    inputs = (*provenance.originals(scan), *(path for path in paths if path is not None))
    identity, place = None, _place(args, scan)
    if args.skip_existing:
        identity = _identity(args, scan, options)
        if provenance.same(target, identity):
            _complete(scan, place, identity)
            voice.line(f"{target}: made from this source with these weights and options already; skipped")
            return 0
    replace = args.force or (args.skip_existing and provenance.record_of(target) is not None)
    from mrisr.io import dicom, nifti

    if scan.to_dicom:
        dicom.check_folder(target, force=replace)
    else:
        nifti.check_output(target, force=replace, dtype=args.dtype)
    remains = (SIDECAR,) if _left_by_a_killed_run(target) else ()
    folder = "--output" if scan.to_dicom else None
    with Outputs(targets, force=replace, inputs=inputs, folder=folder, remains=remains) as outputs:
        if place is not None:
            from mrisr import report

            if place.page.exists() and not replace:
                identity = identity or _identity(args, scan, options)
            again = replace or (identity is not None and report.is_current(place, identity.plain()))
            report.check(place, force=again)
        if args.std:
            nifti.check_output(args.std, force=replace)
        source, series = scan.read(framewise=_apart(args, scan, options))
        others, other_series = scan.read_others(series, force=args.join_force)
        use_threads(args.threads)
        with _frames(args, scan, source, outputs) as frames:
            adapted = {"keep_adapted": outputs.stage(KEEP)} if args.keep_adapted else {}
            result, info = _upscale(args, source, others, options | adapted, voice, frames)
            if frames is not None:
                frames.finish()
        info.warnings[:0] = [note for one in (series, *other_series) if one for note in one.notes]
        info.warnings = [provenance.scrubbed(text, scan) for text in info.warnings]
        if not scan.to_dicom and frames is None:
            words = provenance.description(info.model)
            nifti.write(result, outputs.stage("--output"), dtype=args.dtype, descrip=words)
        if args.std:
            nifti.write(info.std, outputs.stage("--std"))
        if args.preview:
            from mrisr import preview

            sheet = preview.upscale_sheet(source.data, source.affine, result.data, result.affine)
            preview.save(sheet, outputs.stage("--preview"))
        if args.info:
            write_text(outputs.stage("--info"), info.to_json() + "\n")
        if scan.to_dicom:
            dicom.write_series(result, series, info, outputs.stage("--output"), others=other_series)
        if beside is not None or place is not None:
            size = provenance.size_of(outputs.stage("--output"))
            identity = identity or _identity(args, scan, options, info.adapt.base if info.adapt else info.weights)
            record = provenance.sidecar(identity, info, dtype=args.dtype, size=size)
        if beside is not None:
            write_text(outputs.stage(SIDECAR), provenance.as_text(record))
        if place is not None:
            report.write(place, source, result, record, spread=info.std, force=again)
        if scan.to_dicom:
            dicom.check_folder(target, force=replace)  # again: before a folder is replaced
        if beside is None and provenance.record_of(target) is not None:
            provenance.sidecar_path(target).unlink()  # of the result that is replaced
        outputs.commit()
    if args.keep_adapted and not info.adapt.used and os.path.exists(args.keep_adapted):
        voice.warning(f"{args.keep_adapted}: is of an earlier run, and stays as it was")
    if place is not None:
        report.write_index(place.folder)
    voice.line(_summary(source, result, info, args.output))
    return 0


def _sidecar(args: argparse.Namespace, target: Path) -> Path | None:
    """Where the sidecar goes; None where there is to be none, or --info takes its place."""
    from mrisr.batch import provenance

    path = provenance.sidecar_path(target)
    if args.info is None or not many.same_file(args.info, path):
        return None if args.no_sidecar else path
    if args.skip_existing:
        raise UsageError(f"--skip-existing: compares sidecars, and --info {args.info} takes the sidecar's place")
    return None


def _place(args: argparse.Namespace, scan):
    """Where the page of the report goes; None where there is to be none."""
    if args.report is None:
        return None
    from mrisr.batch import pages

    return pages.place_of(scan, Path(args.report))


def _complete(scan, place, identity) -> None:
    """A page and the table for a result that is there already, where a report is asked for."""
    if place is None:
        return
    from mrisr import report
    from mrisr.batch import pages

    pages.complete(scan, place, identity.plain())
    report.write_index(place.folder)


def _identity(args: argparse.Namespace, scan, options: dict, weights: str | None = None):
    from mrisr.batch import per_scan, provenance

    if weights is None:
        weights = mrisr.load_model(args.model).sha256
    deciding = per_scan.identifying(options, args.dtype, args.radius)
    return provenance.identity(scan, weights, deciding, provenance.facts_of(scan))


@dataclass
class _Told:
    """What a run tells: how far it is, and each frame of a 4D result."""

    progress: Callable[[str, float], None]
    frame: Callable | None
    keeps_frames: bool

    def __call__(self, stage: str, fraction: float) -> None:
        self.progress(stage, fraction)


def _apart(args: argparse.Namespace, scan, options: dict) -> bool:
    """Whether a 4D scan may be read, computed and written a frame at a time: no stage needs all of it, nor is any of it
    shown or kept."""
    whole = (args.preview, args.report, args.memory, args.adapt, options["bias"] == "auto", args.samples > 1)
    return not (any(whole) or scan.others or scan.to_dicom) and args.dtype == "float32" and not _is_mgh(scan.target)


def _is_mgh(target: Path) -> bool:
    from mrisr.io import nifti

    return nifti.ending_of(target) in nifti.MGH_ENDINGS


def _frames(args: argparse.Namespace, scan, source, outputs: Outputs):
    """What writes the frames of a 4D result while the next are computed, or a context of None: where they need each
    other (int16 has one slope for all) or another format, or where a budget is stated: it holds one frame more."""
    from mrisr.batch import provenance
    from mrisr.io.frames import FrameWriter

    apart = source.data.ndim == 4 and not scan.others and not scan.to_dicom
    apart = apart and args.dtype == "float32" and args.memory is None
    if not apart or _is_mgh(scan.target):
        return nullcontext()
    return FrameWriter(outputs.stage("--output"), source, provenance.description(args.model))


def _upscale(args: argparse.Namespace, source, others: list, options: dict, voice: Voice, frames=None):
    """(result, info), with the bar that belongs to it; `frames` gets each frame of a 4D result when it is done."""
    load("mrisr.api", *(("torch",) if _sure_of_torch(args) else ()))
    from mrisr.batch import per_scan
    from mrisr.volume import Frames

    gradnl = per_scan.distortion(options, args.radius, source)
    forecast = Forecast(many.kind(args), args.device)
    forecast.scan(many.evaluations(args, options, source))
    with voice.bar(forecast) as show:

        def progress(stage: str, fraction: float) -> None:
            forecast.tick(stage, fraction)
            voice.step(stage, fraction)
            show(stage, fraction)

        start = time.perf_counter()
        pair = mrisr.upscale(
            [source, *others] if others else source,
            **{**options, "gradnl": gradnl},
            **running(args),
            model=args.model,
            progress=_Told(progress, None if frames is None else frames.add, isinstance(source.data, Frames)),
            return_info=True,
        )
        voice.detail(f"  all: {time.perf_counter() - start:.2f} s")
    return pair


def _check_targets(args: argparse.Namespace) -> None:
    """Outputs cost nothing to look at: what is wrong with them is found before the work, and before the input."""
    from mrisr.batch import provenance

    for option, path, extension in (("--preview", args.preview, ".png"), ("--info", args.info, ".json")):
        if path is not None and Path(path).suffix.lower() != extension:
            raise UsageError(f"{option}: expected a file name ending in {extension}, found {path}")
    for path in filter(None, (args.output, args.preview, args.info, args.std, args.keep_adapted)):
        check_place(path, force=args.force or args.skip_existing)
    beside = _sidecar(args, Path(args.output))
    if beside is not None:
        force = args.force or args.skip_existing or _left_by_a_killed_run(Path(args.output))
        provenance.check_sidecar(beside, force=force)


def _left_by_a_killed_run(target: Path) -> bool:
    """Whether there is a sidecar of ours without its result: the sidecar comes first."""
    from mrisr.batch import provenance

    return not os.path.lexists(target) and provenance.record_of(target) is not None


def _summary(source, result, info, path: str) -> str:
    def grid(volume) -> str:
        shape, size = volume.data.shape, volume.voxel_size
        return f"{' x '.join(map(str, shape))} voxels of {' x '.join(f'{s:.3g}' for s in size)} mm"

    averaged = f" of {info.ensemble} mirrorings" if info.ensemble > 1 else ""
    seconds = sum(info.seconds.values())
    partners = f"joined with {len(info.stacks) - 1} more\n" if info.stacks else ""
    return (
        f"{grid(source)}\n{partners}  -> {grid(result)}: {path}\n"
        f"model {info.model}, mode {info.mode}{averaged}, {info.engine.name} on {info.engine.device}, {seconds:.1f} s\n"
        f"point spread {info.resolution_from}\n{_adapted(info)}{_distortions(info)}{info.notice}"
    )


def _adapted(info) -> str:
    if info.adapt is None:
        return ""
    end = "" if info.adapt.used else "; not used"
    return f"learnt from the scan: {info.adapt.steps} steps, held-back planes {info.adapt.gain_db:+.2f} dB{end}\n"


def _distortions(info) -> str:
    lines = ""
    if info.gradnl.state != "absent":
        lines += f"gradient nonlinearity: up to {info.gradnl.largest_mm:.3g} mm ({info.gradnl.why})\n"
    if info.bias.state != "absent":
        low, high = info.bias.span
        lines += f"bias field: {info.bias.source}, {low:.3g} to {high:.3g}, {info.bias.output} in the output\n"
    return lines
