"""``mrisr upscale``: one scan in, a sharper one out, with a preview and a record of the run if asked for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mrisr.cli import derived
from mrisr.cli.options import (
    add_gradnl,
    add_run_options,
    add_series,
    positive_float,
    positive_int,
    use_threads,
    write_text,
)
from mrisr.cli.outputs import Outputs
from mrisr.errors import UsageError

_PSF_HELP = (
    "how the scan was acquired: auto, or one kind for all axes, or three (one per stored axis); a kind is "
    "kspace, gaussian, supergaussian or unknown, with the acquired width in mm if it differs from the voxel: "
    "--psf kspace kspace gaussian:4"
)


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "upscale",
        help="write a sharper scan on a finer grid",
        description="Read a brain MRI scan, write it on a finer grid. Outputs appear together or not at all.",
    )
    parser.add_argument("-i", "--input", required=True, metavar="IN", help="NIfTI, MGZ or DICOM; 3D or 4D")
    add_series(parser)
    parser.add_argument(
        "-o", "--output", required=True, metavar="OUT", help=".nii, .nii.gz, .mgh, .mgz; a folder: derived DICOM"
    )
    grid = parser.add_mutually_exclusive_group()
    grid.add_argument(
        "--voxel-size",
        type=positive_float,
        nargs="+",
        metavar="MM",
        help="output voxel size in mm, one number or three (default: per axis the smaller of 0.7 and the scan's own)",
    )
    grid.add_argument("--factor", type=positive_float, nargs="+", metavar="F", help="or: times finer")
    parser.add_argument("--preview", metavar="PNG", help="picture of input, output and difference in three planes")
    parser.add_argument("--info", metavar="JSON", help="record of the run: grids, model, engine, seconds, versions")
    parser.add_argument(
        "--std", metavar="OUT", help="voxel-wise standard deviation of the samples, an image like -o (needs --samples)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite outputs that exist")
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary; warnings and errors stay")

    model = parser.add_argument_group("what to compute")
    model.add_argument("--model", default="base", metavar="M", help="name, .safetensors or bundle (default: base)")
    model.add_argument(
        "--mode",
        choices=("mean", "sample"),
        help="mean: the faithful picture, same for every seed; sample: realistic texture (default: mean, or "
        "sample where --steps or --samples is above 1)",
    )
    model.add_argument("--steps", type=positive_int, default=1, metavar="N", help="solver steps (default: 1)")
    model.add_argument("--samples", type=positive_int, default=1, metavar="K", help="mean of K samples (default: 1)")
    model.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the samples (default: 0)")
    model.add_argument(
        "--ensemble",
        type=positive_int,
        default=1,
        metavar="N",
        help="average the mean over 2, 4 or 8 mirrorings of the scan: N times the work (default: 1)",
    )
    model.add_argument("--psf", nargs="+", default=["auto"], metavar="PSF", help=_PSF_HELP)
    model.add_argument(
        "--consistency",
        choices=("auto", "on", "off"),
        default="auto",
        help="make the output reproduce the input to within noise (default: auto, where --psf is stated)",
    )
    model.add_argument(
        "--mask",
        metavar="MASK",
        help="the head, on IN's grid: outside of it OUT is 0 (default: a background that is masked already is kept)",
    )
    model.add_argument("--nonnegative", action="store_true", help="set values below 0 to 0")
    model.add_argument(
        "--ends",
        choices=("fade", "crop", "full"),
        default="fade",
        help="beyond the centres of the end slices: plain interpolation, nothing, or the network's answer "
        "(default: fade)",
    )
    known = parser.add_argument_group("distortions to take out on the way")
    add_gradnl(known)
    known.add_argument(
        "--bias",
        metavar="FIELD",
        help="auto: estimate it by N4 (needs SimpleITK); or the bias field on IN's grid",
    )
    known.add_argument(
        "--bias-out",
        choices=("corrected", "kept"),
        default="corrected",
        help="whether OUT is without the bias field or multiplied by it again (default: corrected)",
    )
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; raises MrisrError, returns 0."""
    if args.std and args.samples < 2:
        raise UsageError(f"--std: needs --samples of at least 2, found {args.samples}; one sample has no spread")
    into_folder = derived.is_folder(args.input, args.output)
    targets = {
        "--output": None if into_folder else args.output,
        "--preview": args.preview,
        "--info": args.info,
        "--std": args.std,
    }
    voxel_size = _one_or_three("--voxel-size", args.voxel_size)
    factor = _one_or_three("--factor", args.factor)
    psf = _psf(args.psf)
    _check_extensions(args)
    if args.radius is not None and args.gradnl is None:
        raise UsageError("--radius: needs --gradnl")
    field = args.bias if args.bias != "auto" else None
    inputs = tuple(path for path in (args.input, args.gradnl, field, args.mask) if path is not None)
    with Outputs(targets, force=args.force, inputs=inputs) as outputs:
        from mrisr.io import nifti

        for image in filter(None, (None if into_folder else args.output, args.std)):
            nifti.check_output(image, force=args.force)
        source, series = derived.read(args, into_folder=into_folder)
        use_threads(args.threads)
        import mrisr

        result, info = mrisr.upscale(
            source,
            voxel_size=voxel_size,
            factor=factor,
            device=args.device,
            model=args.model,
            mode=args.mode,
            steps=args.steps,
            samples=args.samples,
            seed=args.seed,
            ensemble=args.ensemble,
            psf=psf,
            gradnl=_coil(args, source),
            gradnl_done=args.corrected,
            slice_axis=args.slice_axis,
            bias=args.bias,
            bias_out=args.bias_out,
            consistency=args.consistency,
            mask=args.mask,
            nonnegative=args.nonnegative,
            ends=args.ends,
            memory=args.memory,
            tile=args.tile,
            engine=args.engine,
            threads=args.threads,
            precision=args.precision,
            progress=not args.quiet,
            return_info=True,
        )
        info.warnings[:0] = series.notes if series else ()
        if not into_folder:
            nifti.write(result, outputs.stage("--output"))
        if args.std:
            nifti.write(info.std, outputs.stage("--std"))
        if args.preview:
            from mrisr import preview

            sheet = preview.upscale_sheet(source.data, source.affine, result.data, result.affine)
            preview.save(sheet, outputs.stage("--preview"))
        if args.info:
            write_text(outputs.stage("--info"), info.to_json() + "\n")
        if into_folder:
            from mrisr.io import dicom

            dicom.write_series(result, series, info, args.output, force=args.force)
        outputs.commit()
    if not args.quiet:
        print(_summary(source, result, info, args.output), file=sys.stderr)
    return 0


def _coil(args: argparse.Namespace, source):
    """--gradnl, read here where --radius belongs to it; else its path."""
    if args.radius is None:
        return args.gradnl
    from mrisr.corrections import read_distortion

    return read_distortion(args.gradnl, args.radius, source.meta)[0]


def _one_or_three(option: str, values: list[float] | None) -> float | tuple[float, ...] | None:
    if values is None:
        return None
    if len(values) not in (1, 3):
        raise UsageError(f"{option}: expected one number or three (one per axis), found {len(values)}")
    return values[0] if len(values) == 1 else tuple(values)


def _psf(words: list[str]):
    """--psf words to the `psf` argument of mrisr.upscale."""
    if len(words) not in (1, 3):
        raise UsageError(f"--psf: expected one entry or three (one per axis), found {len(words)}")
    entries = [_psf_entry(word) for word in words]
    return entries[0] if words == ["auto"] else entries * (3 // len(entries))


def _psf_entry(word: str):
    kind, colon, width = word.partition(":")
    if not colon:
        return kind
    try:
        return kind, positive_float(width)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--psf: in {word!r}, width in mm: {error}") from None


def _check_extensions(args: argparse.Namespace) -> None:
    """Wrong extensions are found before the work, not after it."""
    for option, path, extension in (("--preview", args.preview, ".png"), ("--info", args.info, ".json")):
        if path is not None and Path(path).suffix.lower() != extension:
            raise UsageError(f"{option}: expected a file name ending in {extension}, found {path}")


def _summary(source, result, info, path: str) -> str:
    def grid(volume) -> str:
        shape, size = volume.data.shape, volume.voxel_size
        return f"{' x '.join(map(str, shape))} voxels of {' x '.join(f'{s:.3g}' for s in size)} mm"

    averaged = f" of {info.ensemble} mirrorings" if info.ensemble > 1 else ""
    seconds = sum(info.seconds.values())
    return (
        f"{grid(source)}\n  -> {grid(result)}: {path}\n"
        f"model {info.model}, mode {info.mode}{averaged}, {info.engine.name} on {info.engine.device}, {seconds:.1f} s\n"
        f"point spread {info.resolution_from}\n{_distortions(info)}{info.notice}"
    )


def _distortions(info) -> str:
    lines = ""
    if info.gradnl.state != "absent":
        lines += f"gradient nonlinearity: up to {info.gradnl.largest_mm:.3g} mm ({info.gradnl.why})\n"
    if info.bias.state != "absent":
        low, high = info.bias.span
        lines += f"bias field: {info.bias.source}, {low:.3g} to {high:.3g}, {info.bias.output} in the output\n"
    return lines
