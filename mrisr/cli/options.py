"""Options that several commands share, and the argument types that argparse lacks."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

from mrisr.errors import OutputError, to_do


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, found {text!r}") from None


def positive_float(text: str) -> float:
    """argparse type: a finite number above zero."""
    value = _number(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return value


def share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, found {text!r}")
    return value


def positive_int(text: str) -> int:
    """argparse type: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return value


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``; :func:`use_threads` puts it into force."""
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="CPU threads (default: OMP_NUM_THREADS, else every core)"
    )


def use_threads(count: int | None) -> None:
    """Limit the CPU threads of everything loaded from here on, and of PyTorch where it is loaded already."""
    if count is None:
        return
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(count)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)


def _tile(text: str) -> int | str:
    if text == "exact":
        return text
    try:
        return positive_int(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected a whole number of voxels or exact, found {text!r}") from None


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add how to run (not what to compute): device, engine, memory, tile, threads."""
    group = parser.add_argument_group("how to run")
    group.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N (default: auto)")
    group.add_argument(
        "--engine",
        default="auto",
        metavar="E",
        help="what runs the network: auto (by device), torch, openvino, or tensorrt where --model is a bundle with a "
        "plan (default: auto)",
    )
    add_precision(group)
    group.add_argument(
        "--memory",
        metavar="SIZE",
        help="memory budget that is kept, such as 4GB or 512MB (default: 60 %% of what is free, by MRISR_WORKERS)",
    )
    group.add_argument(
        "--tile",
        type=_tile,
        metavar="N",
        help="tile size in output voxels, or exact: layer by layer, equal to one piece, in less memory (default: the "
        "whole volume if the budget allows, else exact where --engine is auto and it fits, else blended tiles)",
    )
    add_threads(group)


def add_precision(group) -> None:
    """Add ``--precision``."""
    group.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the network's convolutions (default: auto, bfloat16 where the processor has it and a check agrees)",
    )


def add_gradnl(group) -> None:
    """Add what is known of a scan's gradient nonlinearity."""
    group.add_argument(
        "--gradnl",
        metavar="COEFFS",
        help="Siemens coefficients (.grad or .coef), or a displacement field [X, Y, Z, 3] as NIfTI, mm to R, A, S: "
        "what is at x is shown at x + field(x)",
    )
    group.add_argument("--radius", type=positive_float, metavar="MM", help="R0 of a .coef file, which states none")
    group.add_argument(
        "--corrected",
        choices=("auto", "none", "2D", "3D"),
        default="auto",
        help="what the scanner has corrected already (default: auto, from ImageType)",
    )
    group.add_argument(
        "--slice-axis",
        type=int,
        choices=(0, 1, 2),
        default=2,
        metavar="A",
        help="axis across slices (default: 2)",
    )


def add_series(parser: argparse.ArgumentParser) -> None:
    """Add which volume of a DICOM source is meant."""
    parser.add_argument(
        "--series",
        metavar="S",
        help="of a DICOM source with several: number, UID or (part of) the description; without it they are listed",
    )
    parser.add_argument(
        "--group",
        metavar="G",
        help="of a DICOM series with several volumes (echoes, magnitude and field map, time points): number in the "
        "list that is given without it, or words of its entry",
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file, or raise an OutputError that names it. Of file names that are no UTF-8, "?" is written."""
    try:
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); {to_do(error)}") from error
