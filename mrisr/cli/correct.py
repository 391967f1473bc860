"""``mrisr correct``: take gradient nonlinearity and bias field out of a scan, on its own grid."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mrisr.cli.options import add_gradnl, add_series, add_threads, use_threads, write_text
from mrisr.cli.outputs import Outputs
from mrisr.errors import InputError, UsageError

IMAGES = ("--output", "--displacement", "--jacobian", "--bias-field")


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "correct",
        help="undo gradient nonlinearity and bias field",
        description="Write a scan on its own grid without geometric distortion of the gradients, without shading, or "
        "without both. The shading is taken out first, then one interpolation moves everything into place.",
    )
    parser.add_argument("-i", "--input", required=True, metavar="IN", help="NIfTI, MGZ or DICOM folder; 3D or 4D")
    add_series(parser)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help=".nii, .nii.gz, .mgh or .mgz")
    parser.add_argument("--force", action="store_true", help="overwrite outputs that exist")
    parser.add_argument("--quiet", action="store_true", help="no summary; warnings and errors stay")
    parser.add_argument("--info", metavar="JSON", help="record of what was done")

    geometry = parser.add_argument_group("gradient nonlinearity")
    add_gradnl(geometry)
    geometry.add_argument("--displacement", metavar="OUT", help="where each voxel was read, mm to R, A, S")
    geometry.add_argument("--jacobian", metavar="OUT", help="the factor on the intensity")

    shading = parser.add_argument_group("bias field")
    shading.add_argument(
        "--bias",
        metavar="FIELD",
        help="auto: estimate it by N4 (needs SimpleITK); or the field on IN's grid",
    )
    shading.add_argument("--t2w", metavar="T2W", help="with --bias auto: estimate it from this T2w on IN's grid, too")
    shading.add_argument("--bias-field", metavar="OUT", help="the field that was divided by, in the place of OUT")
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; raises MrisrError, returns 0."""
    _check(args)
    targets = {name: getattr(args, name[2:].replace("-", "_")) for name in (*IMAGES, "--info")}
    inputs = tuple(p for p in (args.input, args.gradnl, args.t2w, _field_file(args)) if p is not None)
    with Outputs(targets, force=args.force, inputs=inputs) as outputs:
        from mrisr.io import nifti
        from mrisr.io.adapters import to_volume

        for path in filter(None, (targets[name] for name in IMAGES)):
            nifti.check_output(path, force=args.force)
        source, _ = to_volume(args.input, series=args.series, group=args.group)
        use_threads(args.threads)
        results, record = correct(source, args)
        for name, volume in results.items():
            if targets[name]:
                nifti.write(volume, outputs.stage(name))
        if args.info:
            write_text(outputs.stage("--info"), json.dumps(record, indent=2) + "\n")
        outputs.commit()
    if not args.quiet:
        print("\n".join(f"{key}: {text}" for key, text in record["summary"].items()), file=sys.stderr)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.gradnl is None and args.bias is None:
        raise UsageError("correct: expected --gradnl, --bias or both; found neither")
    for option, needed in (
        ("displacement", "gradnl"),
        ("jacobian", "gradnl"),
        ("radius", "gradnl"),
        ("bias_field", "bias"),
        ("t2w", "bias"),
    ):
        if getattr(args, option) is not None and getattr(args, needed) is None:
            raise UsageError(f"--{option.replace('_', '-')}: needs --{needed}")
    if args.t2w is not None and args.bias != "auto":
        raise UsageError("--t2w: needs --bias auto; a field that is given is not estimated")
    if args.info is not None and Path(args.info).suffix.lower() != ".json":
        raise UsageError(f"--info: expected a file name ending in .json, found {args.info}")


def _field_file(args: argparse.Namespace) -> str | None:
    return None if args.bias in (None, "auto") else args.bias


def correct(source, args: argparse.Namespace) -> tuple[dict, dict]:
    """({option: Volume}, record) of the whole correction of the Volume `source`."""
    import numpy as np
    import torch

    from mrisr.physics import bias as biases

    x = torch.from_numpy(np.moveaxis(source.data, 3, 0) if source.data.ndim == 4 else source.data).contiguous()
    record: dict = {"input": source.name, "summary": {}}
    field = None
    if args.bias is not None:
        field, origin = _bias(source, x, args)
        x = biases.remove(x, field)
        low, high = float(field.min()), float(field.max())
        record["bias"] = {"from": origin, "lowest": low, "highest": high}
        record["summary"]["bias field"] = f"{origin}, {low:.3g} to {high:.3g}"
    results = {}
    if args.gradnl is not None:
        warp, origin = _warp(source, args)
        largest = float(warp.offset.square().sum(0).sqrt().max())
        gain = (float(warp.gain.min()), float(warp.gain.max()))
        record["gradnl"] = {"from": args.gradnl, "why": origin, "largest_mm": largest, "gain": gain}
        record["summary"]["gradient nonlinearity"] = (
            f"{origin}; up to {largest:.3g} mm, intensity times {gain[0]:.3g} to {gain[1]:.3g}"
        )
        if largest > 0:
            x = warp.forward(x)
            field = None if field is None else _field_on(field, warp)
        results["--displacement"] = source.replace(warp.offset.permute(1, 2, 3, 0).numpy())
        results["--jacobian"] = source.replace(warp.gain.numpy())
    if field is not None:
        results["--bias-field"] = source.replace(field.numpy())
    data = x.numpy()
    results["--output"] = source.replace(np.moveaxis(data, 0, 3) if data.ndim == 4 else data)
    return results, record


def _bias(source, x, args: argparse.Namespace):
    """(field [X, Y, Z], where it is from)."""
    from mrisr import corrections
    from mrisr.io.adapters import to_volume
    from mrisr.physics import bias as biases

    if args.bias != "auto":
        return corrections.read_field(args.bias, source)
    scan = x if x.ndim == 3 else x.mean(0)
    if args.t2w is None:
        return biases.estimate(scan.numpy(), source.voxel_size), "estimated by N4"
    other, _ = to_volume(args.t2w)
    if other.data.ndim != 3:
        raise InputError(f"{args.t2w}: expected a T2w scan [X, Y, Z], found shape {other.data.shape}")
    biases.check_same_grid(other.grid, source.grid, args.t2w)
    field = biases.estimate_t1w_t2w(scan.numpy(), other.data, source.voxel_size)
    return field, f"estimated from this scan and {args.t2w}"


def _warp(source, args: argparse.Namespace):
    """(the Warp, what was done and why)."""
    from mrisr import corrections

    coil = corrections.nonlinearity(source, args.gradnl, args.radius, args.corrected, args.slice_axis, "--corrected")
    what = {"none": "corrected in full", "2D": "corrected across slices", "3D": "nothing left to correct"}[coil.done]
    return coil.warp(source.grid), f"{what} ({coil.why})"


def _field_on(field, warp):
    """`field` where the voxels of the corrected scan lie; no intensity to preserve."""
    import dataclasses

    import torch

    plain = dataclasses.replace(warp, gain=torch.ones_like(warp.gain), order=3)
    return plain.forward(field.log()).exp()
