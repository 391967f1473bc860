"""What to compute, as options of a command and as arguments of `mrisr.upscale`: for every command that upscales."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mrisr.adapt.options import ENDING, check_options
from mrisr.adapt.seconds import check_seconds
from mrisr.cli.options import add_gradnl, add_run_options, positive_float, positive_int, share
from mrisr.errors import UsageError

DTYPES = ("float32", "int16")  # mrisr.io.nifti.DTYPES, which imports nibabel

_PSF_HELP = (
    "how the scan was acquired: auto, or one kind for all axes, or three (one per stored axis); a kind is "
    "kspace, gaussian, supergaussian or unknown, with the acquired width in mm if it differs from the voxel: "
    "--psf kspace kspace gaussian:4"
)


def add_compute_options(parser: argparse.ArgumentParser) -> None:
    """Add grid, model, distortions, and how to run."""
    grid = parser.add_mutually_exclusive_group()
    grid.add_argument(
        "--voxel-size",
        type=positive_float,
        nargs="+",
        metavar="MM",
        help="output voxel size in mm, one number or three (default: per axis the smaller of 0.7 and the scan's own)",
    )
    grid.add_argument("--factor", type=positive_float, nargs="+", metavar="F", help="or: times finer")

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
    model.add_argument(
        "--denoise",
        type=share,
        default=0.0,
        metavar="D",
        help="how much noise to take out of what was measured: 0 (none) to 1 (default: 0)",
    )
    model.add_argument("--psf", nargs="+", default=["auto"], metavar="PSF", help=_PSF_HELP)
    model.add_argument(
        "--consistency",
        choices=("auto", "on", "off"),
        default="auto",
        help="make the output reproduce the input to within noise (default: auto, where --psf is stated, and of "
        "slices in part)",
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
    group = parser.add_argument_group("distortions to take out on the way")
    add_gradnl(group)
    group.add_argument(
        "--bias",
        metavar="FIELD",
        help="auto: estimate it by N4 (needs SimpleITK); or the bias field on IN's grid",
    )
    group.add_argument(
        "--bias-out",
        choices=("corrected", "kept"),
        default="corrected",
        help="whether OUT is without the bias field or multiplied by it again (default: corrected)",
    )
    add_run_options(parser)


def add_join_options(parser: argparse.ArgumentParser, what: str) -> None:
    """Add joining several scans of one head."""
    group = parser.add_argument_group("several scans of one head, one answer")
    group.add_argument("--join", action="store_true", help=what)
    group.add_argument(
        "--no-register", action="store_true", help="with --join: do not look for the head; the headers say where it is"
    )
    group.add_argument(
        "--join-force",
        action="store_true",
        help="with --join: join what does not fit, too (overlap, correlation, patient, frame of reference)",
    )


def joining(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `mrisr.upscale` that say how scans are joined; none without --join. Raises UsageError."""
    if not args.join:
        for option in ("no_register", "join_force"):
            if getattr(args, option):
                raise UsageError(f"--{option.replace('_', '-')}: needs --join")
        return {}
    return {"register": not args.no_register, "force": args.join_force}


def add_adapt_options(parser: argparse.ArgumentParser, keep: bool) -> None:
    """Add learning from the scan itself; keep: and keeping the weights, of one scan."""
    group = parser.add_argument_group("the scan teaches too")
    group.add_argument(
        "--adapt",
        type=positive_float,
        metavar="SECONDS",
        help="let the network learn from each scan's own sharp planes first, of thick slices: from 180 on always the "
        "same 450 steps, for which more seconds (at most 3600) give a slower machine time",
    )
    if keep:
        group.add_argument(
            "--keep-adapted",
            metavar="FILE",
            help="with --adapt: the weights, as .safetensors, to be the --model of other scans of this session and "
            "contrast; not written where learning has gained nothing",
        )


def adapting(args: argparse.Namespace, several: bool) -> dict[str, Any]:
    """The argument of `mrisr.upscale` that lets the network learn; none without --adapt. Raises UsageError
    and BackendError, also for what does not go with it.

    several: are joined, as far as the arguments say.
    """
    keep = getattr(args, "keep_adapted", None)
    if args.adapt is None:
        if keep is not None:
            raise UsageError("--keep-adapted: needs --adapt")
        return {}
    limit = check_seconds(args.adapt)
    check_joined(args, several)
    check_kept(args, keep is not None and len(args.input) > 1)
    if keep is not None and Path(keep).suffix != ENDING:
        raise UsageError(f"--keep-adapted: expected a file name ending in {ENDING}, found {keep}")
    check_options(args.mode, args.steps, args.samples, args.denoise, args.engine)
    return {"adapt": limit}


def check_joined(args: argparse.Namespace, several: bool) -> None:
    """UsageError where several scans are joined that a network is to learn from."""
    if several and args.adapt is not None:
        raise UsageError(
            "--adapt: is of one scan, and --join makes one of several; adapt to one of them, keep its weights "
            "(--keep-adapted) and give them as --model"
        )


def check_kept(args: argparse.Namespace, several: bool) -> None:
    """UsageError where there are several scans, each with weights of its own, and one file to keep them."""
    if several and getattr(args, "keep_adapted", None) is not None:
        raise UsageError("--keep-adapted: are the weights of one scan, and there are several; give one, and one -o")


def add_beside_options(
    parser: argparse.ArgumentParser, names: tuple[str, str, str], record: str = "", spread: str = ""
) -> None:
    """Add what is written beside results; `names` of files or folders, `record` and `spread` end their explanations."""
    preview, info, std = names
    parser.add_argument(
        "--preview", metavar=preview, help="zoomed picture of before (cubic), after and difference in three planes"
    )
    parser.add_argument(
        "--info", metavar=info, help=f"record of the run: grids, model, engine, seconds, versions{record}"
    )
    parser.add_argument(
        "--std", metavar=std, help=f"voxel-wise standard deviation of the samples{spread} (needs --samples)"
    )


def check_beside(args: argparse.Namespace) -> None:
    """UsageError where a spread is asked for that is none."""
    if args.std and args.samples < 2:
        raise UsageError(f"--std: needs --samples of at least 2, found {args.samples}; one sample has no spread")


def add_writing_options(parser: argparse.ArgumentParser) -> None:
    """Add what a result is stored as and what is written beside it."""
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="stored type; int16 halves it, by a slope")
    parser.add_argument("--no-sidecar", action="store_true", help="no .json beside the output")
    parser.add_argument(
        "--report",
        metavar="FOLDER",
        help="a page per scan to look at: before and after, what was measured, where it is from; and a table of all",
    )


def computing(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `mrisr.upscale` that say what to compute. Raises UsageError."""
    voxel_size, factor = (
        one_or_three("--voxel-size", args.voxel_size),
        one_or_three("--factor", args.factor),
    )
    if args.radius is not None and args.gradnl is None:
        raise UsageError("--radius: needs --gradnl")
    return {
        "voxel_size": voxel_size,
        "factor": factor,
        "mode": args.mode,
        "steps": args.steps,
        "samples": args.samples,
        "seed": args.seed,
        "ensemble": args.ensemble,
        "denoise": args.denoise,
        "psf": _psf(args.psf),
        "gradnl": args.gradnl,
        "gradnl_done": args.corrected,
        "slice_axis": args.slice_axis,
        "bias": args.bias,
        "bias_out": args.bias_out,
        "consistency": args.consistency,
        "mask": args.mask,
        "nonnegative": args.nonnegative,
        "ends": args.ends,
    }


def running(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `mrisr.upscale` that say how to run."""
    return {name: getattr(args, name) for name in ("device", "memory", "tile", "engine", "threads", "precision")}


def one_or_three(option: str, values: list[float] | None) -> float | tuple[float, ...] | None:
    """The value of an option that takes one number, or one per axis."""
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
