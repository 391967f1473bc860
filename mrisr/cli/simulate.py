"""``mrisr simulate``: what another scanner would have made of a scan, coarser, noisier or of another field strength."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

from mrisr.cli.options import add_series, add_threads, positive_float, use_threads, write_text
from mrisr.cli.outputs import Outputs
from mrisr.errors import InputError, MrisrWarning, UsageError

NOTICE = (
    "A simulation: contrast and noise follow laws of physics, but no detail that another scanner would show appears."
)
ASSUMED_FIELD = 3.0  # T


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "simulate",
        help="make a scan look like one of another field strength or resolution",
        description="Contrast, shading, distortion, resolution and noise, in this order, of a T1-weighted scan made "
        "like that of another scanner. " + NOTICE,
    )
    parser.add_argument(
        "-i", "--input", required=True, metavar="IN", help="NIfTI, MGZ or DICOM folder; 3D, T1-weighted"
    )
    add_series(parser)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help=".nii, .nii.gz, .mgh or .mgz")
    parser.add_argument("--like", required=True, type=_tesla, metavar="B0", help="field strength: 1.5T, 3T or 7T")
    parser.add_argument("--force", action="store_true", help="overwrite outputs that exist")
    parser.add_argument("--quiet", action="store_true", help="no summary; warnings and errors stay")
    parser.add_argument("--info", metavar="JSON", help="record of what was simulated")

    what = parser.add_argument_group("contrast and noise")
    what.add_argument(
        "--from", dest="origin", type=_tesla, metavar="B0", help="field strength of IN (default: its metadata, else 3T)"
    )
    what.add_argument("--no-contrast", action="store_true", help="keep the contrast: any weighting will do")
    what.add_argument(
        "--noise",
        type=_percent,
        metavar="P",
        help="added noise, percent of the median of the head (default: as field strength and voxel volume demand)",
    )
    what.add_argument(
        "--bias", type=positive_float, metavar="S", help="shade by a random field of log-standard deviation S"
    )
    what.add_argument("--seed", type=int, default=0, metavar="S", help="of noise and shading (default: 0)")
    what.add_argument("--gradnl", metavar="COEFFS", help="distort by the gradients of this coil (.grad, .coef, NIfTI)")
    what.add_argument("--radius", type=positive_float, metavar="MM", help="R0 of a .coef file, which states none")

    how = parser.add_argument_group("resolution")
    how.add_argument(
        "--voxel-size", type=positive_float, nargs="+", metavar="MM", help="one number or three (default: those of IN)"
    )
    how.add_argument(
        "--thickness",
        type=positive_float,
        metavar="MM",
        help="slices of this thickness, a 2D acquisition; a larger voxel size leaves gaps, a smaller one overlaps",
    )
    how.add_argument("--profile", choices=("gaussian", "supergaussian"), default="gaussian", help="of the slices")
    how.add_argument(
        "--slice-axis", type=int, choices=(0, 1, 2), metavar="A", help="stored axis (default: the longest voxel's)"
    )
    add_threads(parser)


def _tesla(text: str) -> float:
    """argparse type: "1.5T" or "1.5"."""
    return positive_float(text[:-1] if text[-1:] in "tT" else text)


def _percent(text: str) -> float:
    """argparse type: 0 to 100, as a fraction."""
    if text.strip() in ("0", "0.0"):
        return 0.0
    value = positive_float(text)
    if value >= 100:
        raise argparse.ArgumentTypeError(f"expected a number below 100, found {text!r}")
    return value / 100


def run(args: argparse.Namespace) -> int:
    """Run the command; raises MrisrError, returns 0."""
    if args.info is not None and Path(args.info).suffix.lower() != ".json":
        raise UsageError(f"--info: expected a file name ending in .json, found {args.info}")
    if args.radius is not None and args.gradnl is None:
        raise UsageError("--radius: needs --gradnl")
    inputs = (args.input,) if args.gradnl is None else (args.input, args.gradnl)
    targets = {"--output": args.output, "--info": args.info}
    with Outputs(targets, force=args.force, inputs=inputs) as outputs:
        from mrisr.io import nifti
        from mrisr.io.adapters import to_volume

        nifti.check_output(args.output, force=args.force)
        source, _ = to_volume(args.input, series=args.series, group=args.group)
        use_threads(args.threads)
        result, record = simulate(source, args)
        nifti.write(result, outputs.stage("--output"))
        if args.info:
            write_text(outputs.stage("--info"), json.dumps(record, indent=2) + "\n")
        outputs.commit()
    if not args.quiet:
        print("\n".join([*(f"{key}: {text}" for key, text in record["summary"].items()), NOTICE]), file=sys.stderr)
    return 0


def simulate(source, args: argparse.Namespace):
    """(the simulated Volume, record) of the Volume `source`."""
    import torch

    from mrisr.corrections import read_distortion, warn_unless_scanner_coordinates
    from mrisr.physics import bias, field, gradnl
    from mrisr.physics.degrade import ForwardModel, rician

    if source.data.ndim != 3:
        raise InputError(f"{source.name}: expected one 3D scan, found shape {source.data.shape}")
    field.check_field(args.like, "--like")
    origin = _origin(source, args)
    coarse, psf, resolution = _acquisition(source, args)
    generator = torch.Generator().manual_seed(args.seed)
    record = {"input": source.name, "simulated": True, "from_tesla": origin, "like_tesla": args.like, "seed": args.seed}
    summary = record["summary"] = {}

    x = torch.from_numpy(source.data)
    if args.no_contrast:
        summary["contrast"] = "kept"
    else:
        x = field.change_field(x, origin, args.like, peaks=_peaks(source))
        summary["contrast"] = f"T1 weighting of {origin:g} T made that of {args.like:g} T (simulated)"
    if args.bias is not None:
        x = bias.restore(x, bias.bias_field(x.shape, generator, args.bias))
        summary["shading"] = f"random, log-standard deviation {args.bias:g}"
    if args.gradnl is not None:
        warn_unless_scanner_coordinates(source)
        warp = gradnl.simulation(read_distortion(args.gradnl, args.radius, source.meta)[0], source.grid)
        x = warp.forward(x)
        summary["distortion"] = f"{args.gradnl}, up to {float(warp.offset.square().sum(0).sqrt().max()):.3g} mm"
    model = ForwardModel.between(source.data.shape, source.voxel_size, coarse.shape, coarse.voxel_size, psf)
    y = model.forward(x)
    summary["resolution"] = resolution
    sigma, summary["noise"] = _noise(source, y, coarse, origin, args)
    y = rician(y, sigma, generator) if sigma > 0 else y.abs()
    record["noise_sigma"] = sigma
    record["voxel_size"], record["shape"] = list(coarse.voxel_size), list(coarse.shape)
    return source.replace(y.numpy(), coarse.affine), record


def _origin(source, args: argparse.Namespace) -> float:
    from mrisr.physics.field import check_field

    if args.origin is not None:
        return check_field(args.origin, "--from")
    field = source.meta.get("MagneticFieldStrength")
    if isinstance(field, int | float) and 0.3 <= field <= 12:
        return float(field)
    warnings.warn(
        f"{source.name}: nothing says its field strength; {ASSUMED_FIELD:g} T assumed (state it: --from)",
        MrisrWarning,
        stacklevel=2,
    )
    return ASSUMED_FIELD


def _peaks(source):
    from mrisr.physics.field import tissue_peaks

    try:
        return tissue_peaks(source.data, source.voxel_size)
    except InputError as error:
        raise InputError(f"{source.name}: {error} (or keep the contrast: --no-contrast)") from error


def _acquisition(source, args: argparse.Namespace):
    """(coarse Grid, point spread per axis, both in words) from --voxel-size, --thickness, --profile, --slice-axis."""
    import numpy as np

    from mrisr import grid as grids
    from mrisr.physics.psf import AxisPSF

    fine = np.array(source.voxel_size)
    if args.voxel_size is not None and len(args.voxel_size) not in (1, 3):
        raise UsageError(f"--voxel-size: expected one number or three (one per axis), found {len(args.voxel_size)}")
    voxel = fine.copy() if args.voxel_size is None else np.broadcast_to(np.array(args.voxel_size), 3).copy()
    axis = args.slice_axis if args.slice_axis is not None else (2 if np.ptp(voxel) < 1e-3 else int(voxel.argmax()))
    if args.thickness is not None and args.voxel_size is None:
        voxel[axis] = args.thickness
    if (voxel < fine * 0.999).any():
        sizes = " x ".join(f"{v:.3g}" for v in fine)
        raise UsageError(
            f"--voxel-size: a simulation cannot be finer than the scan ({sizes} mm), found {voxel.tolist()}"
        )
    kinds, widths = ["kspace"] * 3, voxel.copy()
    if args.thickness is not None:
        kinds[axis], widths[axis] = args.profile, args.thickness
    psf = tuple(AxisPSF(kind, float(width)) for kind, width in zip(kinds, widths))
    coarse = grids.plan(source.grid, voxel_size=tuple(map(float, voxel)))
    words = f"{' x '.join(map(str, coarse.shape))} voxels of {' x '.join(f'{v:.3g}' for v in voxel)} mm"
    if args.thickness is not None:
        words += f", slices of {args.thickness:g} mm along axis {axis}"
    return coarse, psf, words


def _noise(source, y, coarse, origin: float, args: argparse.Namespace) -> tuple[float, str]:
    """(standard deviation to add, in intensity units; why)."""
    import numpy as np

    from mrisr.physics.field import noise_level
    from mrisr.physics.foreground import certain
    from mrisr.physics.intensity import intensity_scale

    offset, scale = intensity_scale(y.numpy())
    inside = certain((y - offset) / scale)
    median = float(y[inside].median())
    if args.noise is not None:
        return args.noise * median, f"{100 * args.noise:g} % of the median of the head added"
    before, remainder = _noise_of(source.data), _noise_of(y.numpy())
    if before is None or remainder is None:
        return 0.0, "none added: too little of the scan is head to measure its own"
    volume = float(np.prod(source.voxel_size))
    level = noise_level(before, origin, volume, args.like, float(np.prod(coarse.voxel_size)))
    sigma = float(np.sqrt(max(0.0, level**2 - remainder**2)))
    there = f"{100 * remainder / median:.2g} %"
    if sigma == 0:
        return 0.0, f"none added: what is left of the scan's own ({there}) is as much already"
    return sigma, f"{100 * sigma / median:.2g} % of the median of the head added, {there} there already"


def _noise_of(data) -> float | None:
    """Noise of a scan in its own units."""
    import torch

    from mrisr.physics.intensity import estimate_noise, intensity_scale

    offset, scale = intensity_scale(data)
    level = estimate_noise(torch.from_numpy((data - offset) / scale))
    return None if level is None else level * scale
