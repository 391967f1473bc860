"""``mrisr demo``: a bundled brain made coarse and brought back, with the picture and the PSNR."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import mrisr
from mrisr.cli.options import add_run_options, use_threads
from mrisr.cli.outputs import Outputs
from mrisr.errors import InputError, OutputError, to_do

FACTOR = 2
ZOOM = 72.0  # mm of the brain that the picture shows


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "demo",
        help="degrade a bundled brain to 2 mm, bring it back to 1 mm, show before and after",
        description="Take nilearn's bundled 1 mm MNI152 template (an average of 152 people, skull-stripped), "
        "cut its k-space to 2 mm, upscale that to 1 mm, and compare with the original. Needs no network.",
    )
    parser.add_argument("-o", "--output", default="out", metavar="DIR", help="writes DIR/demo/* (default: out)")
    parser.add_argument(
        "--model", default="base", metavar="M", help="shipped name or .safetensors file (default: base)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an earlier demo")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; raises MrisrError, returns 0."""
    folder = _make_folder(Path(args.output) / "demo")
    names = ("input_2mm.nii.gz", "output_1mm.nii.gz", "demo.png", "demo.json")
    with Outputs({name: folder / name for name in names}, force=args.force) as outputs:
        use_threads(args.threads)
        original = load_template()
        coarse = degrade(original)

        result, info = mrisr.upscale(
            coarse,
            voxel_size=original.voxel_size,
            psf="kspace",
            device=args.device,
            model=args.model,
            engine=args.engine,
            memory=args.memory,
            tile=args.tile,
            threads=args.threads,
            precision=args.precision,
            progress=not args.quiet,
            return_info=True,
        )
        from mrisr import preview
        from mrisr.io import nifti

        rivals, scores = compare(original, coarse, result)
        nifti.write(coarse, outputs.stage("input_2mm.nii.gz"))
        nifti.write(result, outputs.stage("output_1mm.nii.gz"))
        preview.save(picture(original, rivals["cubic"], result, scores), outputs.stage("demo.png"))
        record = {"psnr_db": scores, "info": info.to_dict()}
        outputs.stage("demo.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        outputs.commit()

    print(f"MNI152 template: {_text(coarse)} -> {_text(result)}")
    print(f"engine {info.engine.name} on {info.engine.device}, {sum(info.seconds.values()):.1f} s")
    print("PSNR against the original inside the head mask:")
    for name, value in scores.items():
        gain = "" if name == "cubic" else f"  ({value - scores['cubic']:+.2f} dB over cubic)"
        print(f"  {name:<12} {value:6.2f} dB{gain}")
    print(f"picture: {folder / 'demo.png'}")
    print(info.notice)
    return 0


def load_template():
    """nilearn's 1 mm MNI152 template as a Volume, cropped to even counts so that 2 mm divides it."""
    try:
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise InputError(
            f"demo: needs nilearn for its brain template ({error}); install it: pip install '.[demo]'"
        ) from error
    from mrisr.volume import Volume

    image = load_mni152_template(resolution=1)
    even = tuple(slice(0, count // FACTOR * FACTOR) for count in image.shape)
    return Volume(image.get_fdata(dtype="float32")[even], image.affine, name="MNI152 template")


def degrade(original):
    """The 2 mm scan of `original`: k-space cut, then decimation."""
    import torch

    from mrisr.physics.degrade import ForwardModel, coarse_grid
    from mrisr.physics.psf import parse_psf

    grid = coarse_grid(original.grid, FACTOR)
    psf = parse_psf("kspace", grid.voxel_size)[0]
    model = ForwardModel.between(original.data.shape, original.voxel_size, grid.shape, grid.voxel_size, psf)
    return original.replace(model.forward(torch.from_numpy(original.data)).numpy(), grid.affine)


def compare(original, coarse, result) -> tuple[dict, dict[str, float]]:
    """(baseline volumes by name, PSNR in dB by name): cubic, zero-filled and mrisr, inside the head mask."""
    from mrisr.evaluate.baselines import BASELINES
    from mrisr.evaluate.masks import head_mask
    from mrisr.evaluate.metrics import psnr

    rivals = {name: BASELINES[name](coarse.data, coarse.grid, original.grid) for name in ("cubic", "zerofill")}
    mask = head_mask(original.data, original.voxel_size)
    everyone = {"cubic": rivals["cubic"], "zero-filled": rivals["zerofill"], "mrisr": result.data}
    return rivals, {name: psnr(original.data, data, mask) for name, data in everyone.items()}


def picture(original, cubic, result, scores: dict[str, float]):
    """Before (cubic), after, and the original, zoomed into the brain, as one sheet."""
    from mrisr.preview import Panel, contact_sheet, fewer_greys, percentile_window

    window = percentile_window(original.data)
    panels = [
        Panel(f"2 mm, cubic: {scores['cubic']:.2f} dB", cubic, original.affine, window),
        Panel(f"2 mm, mrisr: {scores['mrisr']:.2f} dB", result.data, original.affine, window),
        Panel("original, 1 mm", original.data, original.affine, window),
    ]
    footer = "mrisr demo: MNI152 template cut to 2 mm (simulated), brought back to 1 mm"
    return fewer_greys(contact_sheet(panels, footer=footer, zoom=ZOOM, planes=("coronal", "axial")))


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); {to_do(error)}") from error
    return folder


def _text(volume) -> str:
    return f"{' x '.join(map(str, volume.data.shape))} at {volume.voxel_size[0]:g} mm"
