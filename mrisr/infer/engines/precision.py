"""What the network computes in on a processor: float32, or bfloat16 where the processor has it and the values agree.

Convolutions in bfloat16 are two to four times as fast where AMX-BF16 or AVX512-BF16 is, and a residual then differs by
about 1 % of its root mean square: less than a thousandth of the picture. Before an engine is used in bfloat16 it runs
one fixed tile, which is compared with float32 in PyTorch. A verdict is kept in the cache with all that it depends on
(weights, processor, versions, threads), so that it is found once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mrisr import environment, schema
from mrisr.environment import bfloat16_instructions
from mrisr.errors import BackendError, InputError, OutputError, UsageError
from mrisr.io.atomic import replacing
from mrisr.physics.psf import parse_psf

if TYPE_CHECKING:
    import torch

    from mrisr.infer.engines.device import Device

PRECISIONS = ("auto", "float32", "bfloat16")
# Largest RMS difference from float32, as a share of the output's RMS. The shipped networks differ by 0.009 to 0.013,
# OpenVINO's float16 on a processor by 0.06 and more (benchmarks/results/precision.md).
TOLERANCE = 0.025
TILE = 32  # edge of the fixed tile
# What the network is told of the fixed tile: stored and target voxel, mm; noise; sigma / sigma_data.
EXAMPLE_VOXELS, EXAMPLE_NOISE, EXAMPLE_SIGMA_RATIO = (1.0, 0.7), 0.02, 20.0
FILE_NAME = "precision.json"


def asked_for(precision: str) -> str:
    """`precision`, or where that is "auto" what MRISR_PRECISION says. Raises UsageError."""
    stands_for = os.environ.get("MRISR_PRECISION") or "auto"
    for name, value in (("precision", precision), ("MRISR_PRECISION", stands_for)):
        if value not in PRECISIONS:
            raise UsageError(f"{name}: expected one of {', '.join(PRECISIONS)}, found {value!r}")
        if value != "auto":
            return value
    return "auto"


def decide(
    request: str, device: torch.device | Device, missing: str | None, difference: Callable[[], float]
) -> tuple[str, str]:
    """(precision, why) of an engine.

    Args:
        request: as `asked_for` gives it.
        missing: why this engine or device has no bfloat16, or None.
        difference: of the engine in bfloat16 from float32, on the fixed tile; called where it decides.

    Raises:
        BackendError: bfloat16 was asked for and cannot be had, or gives other values.
    """
    if request == "float32":
        return "float32", "asked for"
    if request == "auto" and device.type != "cpu":
        return "float32", "auto: float32 on a GPU"
    if missing is not None:
        if request == "bfloat16":
            raise BackendError(f"precision: bfloat16 was asked for, but {missing}; use float32, or auto")
        return "float32", f"auto: {missing}"
    rms = difference()
    if rms <= TOLERANCE:
        has = f", which this processor has ({', '.join(bfloat16_instructions())})" if device.type == "cpu" else ""
        origin = "asked for" if request == "bfloat16" else "auto"
        return "bfloat16", f"{origin}{has}; differs from float32 by {rms:.2%} of a tile's residual (RMS)"
    wrong = (
        f"bfloat16 differs from float32 by {rms:.2%} of a tile's residual (RMS), at most {TOLERANCE:.1%} is rounding"
    )
    if request == "bfloat16":
        raise BackendError(f"precision: {wrong}; use float32, or auto")
    return "float32", f"auto: {wrong}"


def example() -> tuple[torch.Tensor, ...]:
    """The fixed tile: a head-like y with folds and edges, x = 0, a vector as of a cut of k-space, no guidance."""
    import torch

    from mrisr.nn.condition import Condition

    line = torch.linspace(-1, 1, TILE)
    a, b, c = torch.meshgrid(line, line, line, indexing="ij")
    radius = (a**2 + b**2 + c**2).sqrt()
    folds = 0.5 + 0.25 * torch.sin(19 * a) * torch.sin(17 * b) * torch.sin(15 * c)
    y = torch.where(radius < 0.8, folds, torch.where(radius < 0.9, 0.9, 0.0))[None, None]
    stored, target = ((size,) * 3 for size in EXAMPLE_VOXELS)
    cond = Condition.of_acquisition(parse_psf("kspace", stored)[0], target, EXAMPLE_NOISE, stored=stored)
    return torch.zeros_like(y), y, cond.vector(torch.ones(1), 1 / EXAMPLE_SIGMA_RATIO), cond.guidance_for(y.shape[2:])


def difference(values: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of found - expected, as a share of that of expected; infinite where something is not finite."""
    import torch

    if not bool(torch.isfinite(values).all()):
        return float("inf")
    return float((values - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def measure_once(key: tuple, measure: Callable[[], float]) -> float:
    """measure(), or what it was when nothing in `key` was different (kept in the cache, where there is one)."""
    model, flags = environment.processor()
    # Sorted: a set has another order in every process.
    facts = (key, TILE, model, sorted(flags), environment.versions())
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    folder = environment.cache_folder()
    path = None if folder is None else folder / FILE_NAME
    table = _read(path)
    if name not in table:
        table[name] = measure()
        _write(path, table)
    return table[name]


def _read(path: Path | None) -> dict[str, float]:
    if path is None:
        return {}
    try:
        content = schema.read(path, lenient=True)  # a verdict may be infinite
    except InputError:  # not there yet, not to be entered, or damaged: measured again
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: value for name, value in content.items() if isinstance(value, float) and value >= 0}


def _write(path: Path | None, table: dict[str, float]) -> None:
    """Beside, then renamed; no cache is no error."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, force=True) as beside:
            beside.write_text(json.dumps(table), encoding="utf-8")
    except (OSError, OutputError):
        return
