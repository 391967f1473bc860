"""Ship weights: put a trained file into the package under a name, in half precision or with a calibration if asked for.

python -m mrisr.weights.publish runs/teacher-small teacher-small --version 1 --half
python -m mrisr.weights.publish base base --calibration benchmarks/results/safety.json

The model card (NAME.md beside it) is written by hand; `benchmarks/readme_tables.py` fills in its tables.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from msgspec import Struct

from mrisr import schema
from mrisr.errors import ModelError, UsageError
from mrisr.io.atomic import replacing
from mrisr.weights import registry


class Stored(Struct):
    stored: registry.Calibration


class Report(Struct):
    """What is read of the report of `mrisr evaluate --safety`."""

    weights: str
    uncertainty: Stored


def publish(
    source: str | Path,
    name: str,
    *,
    version: int | None = None,
    half: bool = False,
    calibration: dict | None = None,
    folder: Path = registry.FOLDER,
) -> Path:
    """Write folder/name.safetensors, whole or not at all, from `source`: a shipped name, a file or a training folder.

    Args:
        version: of the weights, kept in the header; None: as it was.
        half: store bfloat16 (8 bits of mantissa: half the bytes). Loaded, they are float32 again.
        calibration: the report of `mrisr evaluate --safety`. Its conformal factors go into the header, as
            `meta["uncertainty"]`: a list of {"samples", "steps", "scale": {level: factor}, "people", "cases"}.

    Raises:
        ModelError: no such weights, or a calibration of other ones.
        UsageError: a name that is a path.
    """
    if Path(name).name != name or name.endswith(".safetensors"):
        raise UsageError(f"name: expected a plain name such as teacher-small, found {name!r}")
    import torch

    path = registry.locate(source)
    meta, tensors = registry.read(path)
    meta = {**meta, "name": name}
    if version is not None:
        meta["version"] = version
    if half:
        tensors = {key: t.to(torch.bfloat16) for key, t in tensors.items()}
        meta["stored"] = "bfloat16"
    if calibration is not None:
        meta["uncertainty"] = _with_calibration(
            meta.get("uncertainty", []), calibration, path, registry.load(source).sha256
        )
    target = folder / f"{name}.safetensors"
    whole = registry.as_bytes(tensors, meta)
    with replacing(target, force=True) as beside:
        beside.write_bytes(whole)
    return target


def _with_calibration(entries: list[dict], report: dict, path: Path, digest: str) -> list[dict]:
    """`entries` with the report's one, which takes the place of an older one for the same samples and steps."""
    schema.check(report, Report, "calibration", error=ModelError)
    if report.get("weights") != digest:
        raise ModelError(
            f"{path}: the calibration is of other weights (sha256 {str(report.get('weights'))[:12]}, these are "
            f"{digest[:12]}); run mrisr evaluate --safety on these"
        )
    new = report["uncertainty"]["stored"]
    same = [new[key] for key in ("samples", "steps")]
    return [e for e in entries if [e["samples"], e["steps"]] != same] + [new]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m mrisr.weights.publish")
    parser.add_argument("source", help="a shipped name, a .safetensors file or a training folder")
    parser.add_argument("name", help="of the shipped weights")
    parser.add_argument("--version", type=int, metavar="N")
    parser.add_argument("--half", action="store_true", help="store bfloat16")
    parser.add_argument("--calibration", type=Path, metavar="JSON", help="safety.json of mrisr evaluate --safety")
    args = parser.parse_args(arguments)
    calibration = schema.read(args.calibration, error=ModelError) if args.calibration else None
    path = publish(args.source, args.name, version=args.version, half=args.half, calibration=calibration)
    print(f"wrote {path.name}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
