"""``mrisr doctor``: what this installation can do here, and the reason for everything that it cannot."""

from __future__ import annotations

import argparse
import json
import sys

from mrisr import environment, native, ops
from mrisr.io import gzipped

LIBRARIES = (
    "numpy",
    "scipy",
    "nibabel",
    "isal",
    "torch",
    "triton",
    "openvino",
    "onnx",
    "tensorrt",
    "nilearn",
    "accelerate",
)
CPU_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16", "asimd")


def add_parser(subparsers) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this installation can do here, and why not the rest",
        description="Versions, CPU, devices, engines, native core, operator backends, weights. Exits with 0.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0."""
    report = examine()
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(_lines(report)))
    return 0


def examine() -> dict[str, dict]:
    """Everything the command prints, as plain JSON-ready dictionaries: section -> name -> finding."""
    return {
        "versions": environment.versions(LIBRARIES, absent="not installed"),
        "cpu": cpu(),
        "devices": devices(),
        "engines": engines(),
        "files": files(),
        "native core": native_core(),
        "operators": operators(),
        "weights": weights(),
    }


def cpu() -> dict[str, object]:
    """Model, cores this process may use, and the instruction sets that matter here."""
    import torch

    model, flags = environment.processor()
    return {
        "model": model,
        "features": " ".join(flag for flag in CPU_FLAGS if flag in flags) or "unknown",
        "cores for this process": environment.cores(),
        "torch threads": torch.get_num_threads(),
    }


def devices() -> dict[str, str]:
    """The CPU and every CUDA device, or why there is none."""
    import torch

    table = {"cpu": "available"}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            size = about.total_memory / 2**30
            table[f"cuda:{index}"] = f"{about.name}, {size:.0f} GiB, sm_{about.major}{about.minor}"
    elif torch.version.cuda:
        table["cuda"] = f"none: PyTorch has CUDA {torch.version.cuda}, but no device was found"
    else:
        table["cuda"] = "none: this PyTorch was built without CUDA"
    return table


def engines() -> dict[str, str]:
    """Each engine, for the shipped kind of network: available, or the reason why not."""
    from types import SimpleNamespace

    from mrisr.infer.engines.select import NAMES, missing, pick_device
    from mrisr.nn.presets import PRESETS

    device, student = pick_device("auto"), SimpleNamespace(config=PRESETS["student"])
    return {name: missing(name, device, student) or f"available on {device}" for name in NAMES}


def files() -> dict[str, str]:
    """What packs and unpacks .nii.gz and .mgz."""
    return {"gzip": gzipped.describe()}


def native_core() -> dict[str, str]:
    """Whether the C++ core loads, what it runs on, and its CUDA kernels; or the reasons."""
    facts = native.describe()
    archs = ", ".join(f"sm_{arch}" for arch in facts["cuda_archs"])
    kernels = f"built for {archs}" if archs else "not built"
    return {
        "core": f"loaded, instruction set {facts['isa']}" if facts["native"] else f"absent: {facts['native_reason']}",
        "CUDA kernels": f"{kernels}, can run" if facts["cuda"] else f"{kernels}, cannot run: {facts['cuda_reason']}",
    }


def operators() -> dict[str, str]:
    """Each operator family and backend: available, or the reason why not."""
    return {f"{family} / {name}": reason or "available" for family, name, reason in ops.backend_table()}


def weights() -> dict[str, str]:
    """Shipped weights: size and number of networks, start of their SHA-256, and their model card."""
    from mrisr.weights import registry

    table = {}
    for name in registry.available():
        model = registry.identify(name)
        files = [model.path, *model.networks.values()]
        size = f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
        size += f" in {len(files)} networks" if len(files) > 1 else ""
        about = f"card {model.card}" if model.card else "no model card"
        table[name] = f"{size}, sha256 {model.sha256[:12]}, {about}"
    return table or {"none": "no weights in the package: mrisr.upscale needs model=PATH"}


def _lines(report: dict[str, dict]) -> list[str]:
    lines = [f"mrisr doctor ({sys.executable})"]
    for section, findings in report.items():
        lines += ["", section]
        lines += [f"  {name:<26}{finding}" for name, finding in findings.items()]
    return lines
