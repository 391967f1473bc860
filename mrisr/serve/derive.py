"""The derived series of a folder of DICOM files: the one place where the node meets reading, work and writing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mrisr.io import dicom
from mrisr.serve.queue import Progress


def derive(source: Path, target: Path, progress: Progress, upscale: Callable[..., tuple[Any, Any]]) -> None:
    """Read the one series in `source`, write what `upscale(volume, progress)` makes of it into the folder `target`.

    Raises what reading, upscaling and writing raise; `target` is to be thrown away then.
    """
    progress("read", 0.0)
    series = dicom.find(source)
    result, info = upscale(series.volume(), progress)
    progress("write", 0.0)
    dicom.write_series(result, series, info, target)
