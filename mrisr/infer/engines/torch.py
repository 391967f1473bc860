"""PyTorch, channels-last, float32 or with convolutions in bfloat16: runs wherever PyTorch does.

On a CPU the network runs as a program over slabs (`mrisr.infer.engines.program`): the same result as the module's own
forward, in less memory and, because slabs stay in the cache, less time. On a GPU it does where that is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch

from mrisr.environment import bfloat16_absence
from mrisr.errors import BackendError
from mrisr.infer.engines import precision
from mrisr.infer.engines.engine import Engine, Network
from mrisr.infer.engines.program import compile_network, map_bytes
from mrisr.infer.engines.slabs import SlabRunner, scratch_folder
from mrisr.infer.memory import COSTS
from mrisr.nn.unet import UNet

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchEngine(Engine):
    """See `mrisr.infer.engines.Engine`. The caller's module keeps its device, layout and training flag.

    Args:
        asked: the precision, as `mrisr.infer.engines.precision.asked_for` gives it.

    Raises:
        BackendError: bfloat16 was asked for and cannot be had, or gives other values.
    """

    name = "torch"
    cost = COSTS["torch"]
    layered = True

    def __init__(self, net: torch.nn.Module, device: torch.device, threads: int, request: str = "float32") -> None:
        self.device = device
        self.threads = threads if device.type == "cpu" else 0
        self.capturable = device.type == "cuda"
        # float() and to() work in place on modules, so the engine owns a copy.
        self._net = copy.deepcopy(net).eval().requires_grad_(False)
        self._net.to(device=device, dtype=torch.float32, memory_format=torch.channels_last_3d)
        self.precision = "float32"
        self.precision, self.precision_why = precision.decide(
            request, device, self._lacks_bfloat16() if request != "float32" else None, self._difference
        )

    def prepare(
        self,
        shape: tuple[int, int, int],
        *,
        exact: bool = False,
        spill: bool = False,
        tick: Callable[[float], None] | None = None,
    ) -> Network:
        """See `Engine.prepare`.

        Args:
            exact: run in slabs (a CPU always does).
            spill: keep the largest maps in a file in `mrisr.infer.engines.slabs.scratch_folder()`; on a CPU only.
            tick: called with the fraction done.

        Raises:
            BackendError: `spill` on another device.
        """
        if spill and self.device.type != "cpu":
            raise BackendError(
                f"torch: the maps do not fit the memory budget of {self.device}, and only a CPU keeps them in a file; "
                'raise memory, or use device="cpu"'
            )
        network = self._net
        dtype = DTYPES[self.precision]
        if isinstance(network, UNet) and (exact or spill or self.device.type == "cpu" or dtype != torch.float32):
            folder = scratch_folder() if spill else None
            network = SlabRunner(network, compile_network(network), spill=folder, tick=tick, dtype=dtype)

        def run(x, y, vector, guidance, active=None):
            with torch.inference_mode(), limited(self.threads), self._full_precision():
                try:
                    return network(x, y, vector, guidance, active)
                except torch.OutOfMemoryError as error:
                    raise BackendError(
                        f"torch: {self.device} ran out of memory on a piece of {shape} voxels; state a "
                        f"smaller memory or tile ({str(error).splitlines()[0]})"
                    ) from error

        return run

    def _lacks_bfloat16(self) -> str | None:
        if not isinstance(self._net, UNet):
            return f"{type(self._net).__name__} is not run layer by layer, as bfloat16 is"
        if self.device.type == "cpu" and not torch.backends.mkldnn.is_available():
            return "this PyTorch was built without oneDNN"
        return bfloat16_absence(self.device)

    def _difference(self) -> float:
        """Of bfloat16 from float32, on the fixed tile."""
        inputs = [t.to(self.device) for t in precision.example()]
        answers = {}
        for self.precision in ("float32", "bfloat16"):
            answers[self.precision] = self.prepare((precision.TILE,) * 3)(*inputs)
        return precision.difference(answers["bfloat16"], answers["float32"])

    def map_bytes(self, shape: tuple[int, int, int], spill: bool = False) -> float | None:
        """See `Engine.map_bytes`; None where the module runs as it is."""
        if not isinstance(self._net, UNet) or (self.device.type != "cpu" and not spill):
            return None
        return map_bytes(self._net, shape, self.device.type, spill)

    def spill_bytes(self, shape: tuple[int, int, int]) -> int:
        return compile_network(self._net).spilled(shape)

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
