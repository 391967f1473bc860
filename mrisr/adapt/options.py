"""What `adapt` goes with, as far as the arguments alone say: known without PyTorch, so that it is refused at once."""

from __future__ import annotations

from mrisr.errors import BackendError, UsageError

ENDING = ".safetensors"  # of the file that keeps the weights


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
