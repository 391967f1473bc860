"""The U-Net as a linear program over maps, run in slabs: the whole-volume result in a fraction of its memory.

A network is a short list of steps. Each reads and writes whole feature maps, but only a slab of rows (the first
spatial axis) at a time: rows of what lies between two convolutions of a block exist for one slab only. Every row of
every layer is computed once, from the same neighbours as in the whole volume, so that slab size changes nothing but
memory. Group-norm statistics are finished before the first row is normalised, and attention (at the coarsest level,
1/512 of the voxels) runs in one piece. `mrisr.infer.engines.slabs` executes it.

Nothing public does both exactly and fast: tiles with enough halo cost 6 to 90 times the work, averaged statistics
are not exact. Memory is that of the maps alive at once, which `peak` adds up from the steps themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from torch import nn

from mrisr.nn.blocks import NormBlock
from mrisr.nn.unet import MULTIPLE, Stage, UNet

FLOAT = 4  # bytes
ATTENTION_COPIES = 6  # maps alive at once in attention
# A slab of one map: on a CPU small enough to stay in the cache from layer to layer (slabs beside one piece:
# benchmarks/results/exact_tiling.json); a GPU wants long ones.
SLAB_BYTES = {"cpu": 5 * 2**20, "cuda": 512 * 2**20}
LEAST_ROWS = 2


@dataclass(frozen=True)
class Step:
    """One step of the program.

    Attributes:
        op: "enter", "film_block", "norm_conv", "norm_conv_add", "down", "guide", "attend", "up_add" or "exit".
        module: the layers it needs.
        source: the map (or "input") it reads.
        target: the map (or "output") it writes; the same as `source` for steps in place.
        level: of the target, 0 at 1/2 resolution.
        frees: maps that nobody reads afterwards.
    """

    op: str
    module: nn.Module
    source: str
    target: str
    level: int
    frees: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """The steps of a network, and the channels of its maps."""

    steps: tuple[Step, ...]
    channels: dict[str, int]
    levels: dict[str, int]

    def rows_bytes(self, name: str, shape: tuple[int, int, int]) -> int:
        """Bytes of one row of a map; shape is the target grid's."""
        scale = 2 ** (self.levels[name] + 1)
        return (shape[1] // scale) * (shape[2] // scale) * self.channels[name] * FLOAT

    def map_bytes(self, name: str, shape: tuple[int, int, int]) -> int:
        """Bytes of a whole map with its two border rows."""
        rows = shape[0] // 2 ** (self.levels[name] + 1) + 2
        return rows * self.rows_bytes(name, shape)

    def slab_rows(self, level: int, shape: tuple[int, int, int], device: str = "cpu") -> int:
        """Rows of a slab at a level."""
        return max(LEAST_ROWS, SLAB_BYTES[device] // self.rows_bytes(f"h{level}", shape))

    def peak(self, shape: tuple[int, int, int], device: str = "cpu", spill: bool = False) -> int:
        """Bytes of maps and slabs alive at once; with `spill`, of those that are not in a file."""
        alive: set[str] = set()
        most = 0
        for step in self.steps:
            alive |= {step.target} & set(self.channels)
            size = sum(self.map_bytes(name, shape) for name in alive if not (spill and self.levels[name] == 0))
            most = max(most, size + self._working(step, shape, device))
            alive -= set(step.frees)
        return most

    def spilled(self, shape: tuple[int, int, int]) -> int:
        """Bytes of the file."""
        return sum(self.map_bytes(name, shape) for name, level in self.levels.items() if level == 0)

    def work(self, step: Step) -> float:
        """A step's share of the arithmetic, in arbitrary units (for a progress bar)."""
        taps = {"down": 2, "up_add": 2, "film_block": 54, "guide": 1, "exit": 7}.get(step.op, 27)
        width = self.channels.get(step.target, self.channels["h0"])
        return taps * width**2 / 8**step.level

    def _working(self, step: Step, shape: tuple[int, int, int], device: str) -> int:
        """What a step holds beyond the maps."""
        name = step.target if step.target in self.channels else step.source
        if step.op == "attend":
            return ATTENTION_COPIES * self.map_bytes(name, shape)
        # Input rows, result, and the rows between: slabs, and the two rows that neighbours share.
        return 5 * (self.slab_rows(self.levels[name], shape, device) + 3) * self.rows_bytes(name, shape)


def compile_network(net: UNet) -> Program:
    """The program of a U-Net of either normalisation."""
    widths = net.config.widths
    channels = {f"h{level}": width for level, width in enumerate(widths)}
    if net.config.norm == "group":
        channels |= {f"t{level}": width for level, width in enumerate(widths)}
    steps = [
        Step("enter", net.entrance, "input", "h0", 0),
        *_stage(net.encode0, 0),
        Step("down", net.down0, "h0", "h1", 1),
        *_stage(net.encode1, 1),
        Step("down", net.down1, "h1", "h2", 2),
        Step("guide", net.guide, "h2", "h2", 2),
        *_stage(net.middle.stage, 2, net.middle.attention),
        Step("up_add", net.up1, "h2", "h1", 1, frees=("h2",)),
        *_stage(net.decode1, 1),
        Step("up_add", net.up0, "h1", "h0", 0, frees=("h1",)),
        *_stage(net.decode0, 0),
        Step("exit", net.exit, "h0", "output", 0, frees=("h0",)),
    ]
    return Program(tuple(steps), channels, {name: int(name[1:]) for name in channels})


def map_bytes(net: UNet, shape: tuple[int, int, int], device: str = "cpu", spill: bool = False) -> float:
    """Bytes of maps in memory per network voxel of a target of `shape`, layer by layer; see `Program.peak`."""
    size = tuple(-(-n // MULTIPLE) * MULTIPLE for n in shape)
    return compile_network(net).peak(size, device, spill) / math.prod(size)


def _stage(stage: Stage, level: int, attention=()) -> Iterator[Step]:
    h, t = f"h{level}", f"t{level}"
    for block, attend in zip_longest(stage.blocks, attention):
        if isinstance(block, NormBlock):
            yield Step("norm_conv", block, h, t, level)
            yield Step("norm_conv_add", block, t, h, level, frees=(t,))
        else:
            yield Step("film_block", block, h, h, level)
        if attend is not None:
            yield Step("attend", attend, h, h, level)
