"""What `adapt` goes with, as far as the arguments alone say: known without PyTorch, so that it is refused at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrisr.adapt.seconds import check_seconds
from mrisr.errors import BackendError, OutputError, UsageError
from mrisr.io.atomic import check_target

ENDING = ".safetensors"  # of the file that keeps the weights


@dataclass(frozen=True)
class Adaptation:
    """What `mrisr.upscale` was asked for: seconds of learning, and the file that keeps the weights, or None."""

    seconds: float
    keep: Path | None

    @classmethod
    def of(cls, seconds: Any, keep: str | os.PathLike | None) -> Adaptation | None:
        """None: there is nothing to learn. Raises UsageError, OutputError."""
        limit = check_seconds(seconds)
        if keep is None:
            return cls(limit, None) if limit else None
        if not limit:
            raise UsageError("keep_adapted: there are weights to keep only with adapt=SECONDS")
        path = Path(keep)
        if path.suffix != ENDING:
            raise OutputError(f"{path}: expected a file name ending in {ENDING} for adapted weights")
        check_target(path)
        return cls(limit, path)


def check_options(mode: str | None, steps: int, samples: int, denoise: float, engine: str) -> None:
    """The arguments of `mrisr.upscale` of these names. Raises UsageError, BackendError."""
    if mode == "sample" or steps > 1 or samples > 1:
        raise UsageError('adapt: teaches mode "mean"; leave mode, steps and samples alone, or adapt out')
    if denoise:
        raise UsageError("adapt: learns what the scan has measured, noise included; leave denoise at 0, or adapt out")
    if engine == "tensorrt":
        raise BackendError(
            "adapt: engine tensorrt runs a plan whose weights were fixed when it was built; use engine='torch' or "
            "'auto', or leave adapt out"
        )
