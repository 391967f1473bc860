"""What an engine is: the whole of what the stages ask of one, with plain answers for those that need no more.

An engine swaps the network alone: preconditioning, tiles and samplers are shared. A new one states `name`, `cost`,
`device`, `threads`, `precision` and `precision_why`, prepares networks, and overrides what else it can do better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from mrisr.infer.memory import Cost

if TYPE_CHECKING:
    import torch

    from mrisr.infer.engines.device import Device

# (x, y [1, 1, D, H, W], vector [1, 40], guidance [1, 8, D/8, H/8, W/8], active or None) -> F [1, 1, D, H, W],
# float32: the interface of mrisr.nn.unet.UNet, so that mrisr.diffusion.precond.Denoiser takes either. An engine with
# `takes_arrays` is given NumPy arrays too, and then gives one.
Network = Callable[..., Any]
# What an engine is made of: the PyTorch module; OpenVINO also takes a model of which the cache has the graph
# (`mrisr.infer.known.KnownModel`).
Source = Any

CAPTURING_CALL = 3  # of a network on a GPU: so often a loop runs before a CUDA graph of it pays


class Engine(Protocol):
    """Where and how the network runs.

    Attributes:
        name: as in the `engine` argument.
        cost: what it takes beyond the volumes, where `map_bytes` says nothing.
        device: of the tensors it takes and gives.
        threads: on the CPU; 0 on a GPU.
        precision: of the arithmetic.
        precision_why: why that one.
        tile: the one piece that it is built for, voxels as the network sees them, or None: any.
        layered: whether it can run layer by layer (`exact`, `spill`).
        takes_arrays: whether its networks take NumPy arrays as well as tensors.
        capturable: whether its work asks the host for nothing, so that a CUDA graph can hold it.
    """

    name: str
    cost: Cost
    device: torch.device | Device
    threads: int
    precision: str
    precision_why: str
    tile: tuple[int, int, int] | None = None
    layered: bool = False
    takes_arrays: bool = False
    capturable: bool = False

    def prepare(
        self,
        shape: tuple[int, int, int],
        *,
        exact: bool = False,
        spill: bool = False,
        tick: Callable[[float], None] | None = None,
    ) -> Network:
        """The network, ready for volumes of `shape` (multiples of 8).

        It runs without autograd, and its result may be overwritten by its next call. Ctrl-C interrupts it.

        Args:
            exact: layer by layer; of a `layered` engine only.
            spill: keep the largest maps in a file; of a `layered` engine only.
            tick: called with the fraction done, by an engine that knows it.
        """
        ...

    def map_bytes(self, shape: tuple[int, int, int], spill: bool = False) -> float | None:
        """Bytes of feature maps in memory per network voxel of a target of `shape`, of an engine that gives them back
        when it is released; None: `cost` says it, and they stay until the end."""
        return None

    def spill_bytes(self, shape: tuple[int, int, int]) -> int:
        """Bytes of the file that `prepare(shape, spill=True)` keeps maps in."""
        return 0

    def release(self) -> None:
        """Give back working memory between runs (compiled kernels stay)."""
