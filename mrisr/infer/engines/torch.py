"""PyTorch eager, channels-last, float32: runs wherever PyTorch does, and is the yardstick of the others."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from mrisr.errors import BackendError
from mrisr.infer.engines.select import Network


class TorchEngine:
    """See `mrisr.infer.engines.Engine`. The caller's module keeps its device, layout and training flag."""

    name = "torch"
    precision = "float32"

    def __init__(self, net: torch.nn.Module, device: torch.device, threads: int) -> None:
        self.device = device
        self.threads = threads if device.type == "cpu" else 0
        # float() and to() work in place on modules, so the engine owns a copy.
        self._net = copy.deepcopy(net).eval().requires_grad_(False)
        self._net.to(device=device, dtype=torch.float32, memory_format=torch.channels_last_3d)

    def prepare(self, shape: tuple[int, int, int]) -> Network:
        def run(x, y, vector, guidance, active=None):
            with torch.inference_mode(), limited(self.threads), self._full_precision():
                try:
                    return self._net(x, y, vector, guidance, active)
                except torch.OutOfMemoryError as error:
                    raise BackendError(
                        f"torch: {self.device} ran out of memory on a piece of {shape} voxels; state a "
                        f"smaller memory or tile ({str(error).splitlines()[0]})"
                    ) from error

        return run

    def _full_precision(self):
        """cuDNN rounds float32 convolutions to TF32 unless told not to; "float32" here means float32."""
        if self.device.type == "cuda":
            return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        return nullcontext()

    def release(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Use `threads` CPU threads inside (0: leave them), and put the process's setting back afterwards."""
    before = torch.get_num_threads()
    if threads and threads != before:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if threads and threads != before:
            torch.set_num_threads(before)
