"""``mrisr export``: a trained network as a bundle that needs no Python."""

from __future__ import annotations

import argparse

from mrisr.cli.options import add_threads, positive_int, use_threads

FORMATS = ("onnx", "openvino", "tensorrt")
PRECISIONS = ("float32", "float16", "bfloat16")


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "export",
        help="write a model as a bundle (ONNX, configuration, card) that other programs run",
        description="DIR receives model.onnx, config.json, card.md and weights.safetensors; mrisr upscale --model DIR "
        "and libmrisr read it. Every graph is compared with PyTorch before DIR appears.",
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--model", default="base", metavar="M", help="shipped name or path of weights (default: base)")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="onnx",
        help="onnx; openvino adds model.xml and model.bin; tensorrt adds model.plan (default: onnx)",
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=PRECISIONS,
        default=["float32"],
        help="of the ONNX graphs; float32 is always written, a plan is built of the last (default: float32)",
    )
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there")
    plan = parser.add_argument_group("TensorRT plan")
    for name, text in (
        ("tile", "the one size of volume that the plan takes, voxels (default: 128)"),
        ("smallest", "smallest size; with it the plan takes any size up to --largest"),
        ("largest", "largest size (default: that of --tile)"),
    ):
        plan.add_argument(f"--{name}", nargs=3, type=positive_int, metavar=("D", "H", "W"), help=text)
    plan.add_argument("--refit", action="store_true", help="let new weights be put into the plan later")
    plan.add_argument(
        "--portable",
        action="store_true",
        help="a plan for other GPUs (Ampere or newer) and, with TensorRT, for its later versions",
    )
    plan.add_argument("--timing-cache", metavar="FILE", help="read and written: later builds take less time")
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command; raises MrisrError, returns 0."""
    use_threads(args.threads)
    from mrisr.export.build import export_bundle
    from mrisr.export.tensorrt import PlanOptions, trtexec
    from mrisr.weights import registry

    sizes = {name: tuple(value) for name in ("tile", "smallest", "largest") if (value := getattr(args, name))}
    plan = PlanOptions(**sizes, refit=args.refit, portable=args.portable, timing_cache=args.timing_cache)
    bundle = export_bundle(
        registry.load(args.model),
        args.output,
        form=args.format,
        precisions=args.precision,
        force=args.force,
        plan=plan,
        say=lambda line: print(line, flush=True),
    )
    print(f"{args.output}: {', '.join(sorted(bundle.config['files']))}, config.json")
    print(f"TensorRT builds the same with: {trtexec(bundle.config, args.precision[-1], plan)}")
    return 0
