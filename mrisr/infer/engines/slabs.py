"""Run a `mrisr.infer.engines.program.Program`: maps in memory or in a file, rows computed slab by slab, each once.

Maps are [rows + 2, H, W, C] float32 (channels-last) with a row of zeros at either end, so that a slab and its
neighbours are one dense view: no convolution copies or converts its input.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mrisr.errors import MemoryBudgetError, MrisrWarning, because
from mrisr.infer.engines.program import Program, Step
from mrisr.infer.memory import show
from mrisr.nn.active import active_bricks
from mrisr.nn.blocks import FilmBlock, NormBlock
from mrisr.ops import group_norm as gn

Produce = Callable[[int, int, torch.Tensor], None]


def convolve(x: torch.Tensor, conv: torch.nn.Conv3d, padding=(0, 0, 0), weights=None) -> torch.Tensor:
    """The layer's convolution with another padding, by oneDNN whatever the shape; `weights`: its (weight, bias) in the
    dtype to compute in, which the result then has.

    On a CPU PyTorch itself takes a slow path of its own where N * C * D * H is at most 20480, as it is for thin slabs.
    """
    weight, bias = (conv.weight, conv.bias) if weights is None else weights
    x = x.to(weight.dtype)
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(x, weight, bias, padding, conv.stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, conv.stride, padding)


class Map:
    """A feature map of `rows` rows [H, W, C] and its two border rows of zeros, in memory or in `folder`."""

    def __init__(self, rows: int, size: tuple[int, int], channels: int, device, folder: Path | None) -> None:
        shape = (rows + 2, *size, channels)
        self.rows, self.file = rows, None
        if folder is None:
            self.data = torch.empty(shape, device=device)
            self.data[0].zero_()
            self.data[-1].zero_()
        else:
            self.file = _spill_file(shape, folder)
            self.data = torch.from_numpy(self.file)

    def view(self, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop), from -1 to rows + 1: [1, C, stop - start, H, W], a view."""
        return self.data[start + 1 : stop + 1].permute(3, 0, 1, 2)[None]

    def done_with(self, start: int, stop: int) -> None:
        """Rows that this pass does not touch again may leave memory (they stay in the file)."""
        if self.file is None:
            return
        row = self.data[0].numel() * self.data.element_size()
        first = -(-(start + 1) * row // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (stop + 1) * row // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self.file._mmap.madvise(mmap.MADV_DONTNEED, first, last - first)


def scratch_folder() -> Path:
    """Where maps are spilled: TMPDIR where that is set, and nowhere else then; else the system's temporary folder.

    Raises MemoryBudgetError where it cannot be written to; warns where it lies in memory itself.
    """
    setting = os.environ.get("TMPDIR")
    try:
        folder = Path(setting or tempfile.gettempdir())
    except FileNotFoundError as error:
        raise MemoryBudgetError(
            f"memory: no folder for the scratch file ({because(error)}); name one in TMPDIR"
        ) from error
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise MemoryBudgetError(
            f"memory: the scratch file would go to {folder}, which is no folder that can be written to; raise memory, "
            "or name another folder in TMPDIR"
        )
    if _lies_in_memory(folder):
        warnings.warn(
            f"the scratch file goes to {folder}, which lies in memory: nothing is saved; name a folder on a disk in "
            "TMPDIR",
            MrisrWarning,
            stacklevel=2,
        )
    return folder


def _lies_in_memory(folder: Path) -> bool:
    """Whether the folder is on a tmpfs (Linux; elsewhere nobody says)."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return False
    kinds = {Path(fields[1]): fields[2] for fields in map(str.split, mounts.read_text().splitlines())}
    folder = folder.resolve()
    return next((kinds[part] for part in (folder, *folder.parents) if part in kinds), "") in ("tmpfs", "ramfs")


def _spill_file(shape: tuple[int, ...], folder: Path) -> np.memmap:
    """Zeros in a file that has no name any more: it goes when the map goes, however the process ends."""
    size = int(np.prod(shape)) * 4
    free = shutil.disk_usage(folder).free
    if free < size:
        raise MemoryBudgetError(
            f"memory: in this budget the job needs {show(size, up=True)} of scratch space in {folder}, which has "
            f"{show(free)} free; raise memory, or name another folder in TMPDIR"
        )
    try:
        handle, name = tempfile.mkstemp(prefix="mrisr-", dir=folder)
    except OSError as error:
        raise MemoryBudgetError(
            f"memory: cannot make a scratch file in {folder} ({error.strerror}); name another folder in TMPDIR"
        ) from error
    try:
        # Claimed now: a full disk found while writing through a mapping would end the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:
            os.truncate(handle, size)
        with os.fdopen(handle, "r+b", closefd=False) as file:
            return np.memmap(file, np.float32, "r+", shape=shape)
    except OSError as error:
        raise MemoryBudgetError(
            f"memory: cannot set {show(size, up=True)} of {folder} aside ({error.strerror}); raise memory, or name "
            "another folder in TMPDIR"
        ) from error
    finally:
        os.close(handle)
        os.unlink(name)


class SlabRunner:
    """The program of one network, ready to run on one device.

    Args:
        net: the network whose weights are on `device`, channels-last.
        rows: rows of a slab at 1/2 resolution, at 1/4 twice as many; None: `Program.slab_rows`.
        spill: folder for the maps at 1/2 resolution; None: everything stays in memory.
        tick: called with the fraction done after each step.
        dtype: of convolutions. Maps, the sums of residual blocks, statistics and the last convolution stay float32.
    """

    def __init__(
        self,
        net,
        program: Program,
        *,
        rows: int | None = None,
        spill: Path | None = None,
        tick: Callable[[float], None] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.net, self.program, self.rows, self.spill, self.tick = net, program, rows, spill, tick
        self.dtype, self._weights = dtype, {}

    def convolve(self, x: torch.Tensor, conv: torch.nn.Conv3d, padding=(0, 0, 0)) -> torch.Tensor:
        """`convolve` in the dtype of this run."""
        return convolve(x, conv, padding, self.weights(conv))

    def weights(self, conv) -> tuple[torch.Tensor, torch.Tensor]:
        """(weight, bias) of a layer in the dtype of this run; cast once."""
        if self.dtype == torch.float32:
            return conv.weight, conv.bias
        if conv not in self._weights:
            weight = conv.weight.to(self.dtype, memory_format=torch.channels_last_3d)
            self._weights[conv] = weight, conv.bias.to(self.dtype)
        return self._weights[conv]

    def __call__(self, x, y, vector, guidance, active=None) -> torch.Tensor:
        """As `mrisr.nn.unet.UNet.forward` for N = 1, same result; x may be an expanded zero."""
        if active is None and self.net.config.norm == "group":
            active = active_bricks(y)
        return _Run(self, x, y, vector, guidance, active).result()


class _Run:
    """One pass through the program."""

    def __init__(self, runner: SlabRunner, x, y, vector, guidance, active) -> None:
        self.runner, self.x, self.y, self.guidance = runner, x, y, guidance
        self.shape = tuple(y.shape[2:])
        self.embedding = runner.net.embed(vector)
        self.active = None if active is None else (active > 0)[0, 0]
        self.maps: dict[str, Map] = {}
        self.partials: dict[str, list[torch.Tensor]] = {}
        self.out = torch.empty_like(y, memory_format=torch.contiguous_format)

    def result(self) -> torch.Tensor:
        program, tick = self.runner.program, self.runner.tick
        progress, total = 0.0, sum(map(program.work, program.steps))
        for step in program.steps:
            getattr(self, "_" + step.op)(step)
            for name in step.frees:
                del self.maps[name]
            progress += program.work(step)
            if tick is not None:
                tick(progress / total)
        return self.out

    # --- rows, maps and masks ---

    def _size(self, level: int) -> tuple[int, int, int]:
        return tuple(n // 2 ** (level + 1) for n in self.shape)

    def _make(self, name: str) -> Map:
        program, level = self.runner.program, self.runner.program.levels[name]
        rows, *size = self._size(level)
        folder = self.runner.spill if level == 0 else None
        feature_map = self.maps[name] = Map(rows, tuple(size), program.channels[name], self.y.device, folder)
        return feature_map

    def _slabs(self, level: int) -> Iterator[tuple[int, int]]:
        rows, step = self._size(level)[0], self.runner.rows
        if step is None:
            step = self.runner.program.slab_rows(level, self.shape, self.y.device.type)
        else:
            step *= 2**level
        for start in range(0, rows, step):
            yield start, min(start + step, rows)

    def _mask(self, level: int, start: int, stop: int) -> torch.Tensor | None:
        """Active voxels of rows [start, stop): uint8 [1, 1, rows, H, W]."""
        if self.active is None:
            return None
        scale = 4 >> level  # the active bricks are those of the coarsest level
        rows = self.active[torch.arange(start, stop, device=self.active.device) // scale]
        return rows.repeat_interleave(scale, 1).repeat_interleave(scale, 2).to(torch.uint8)[None, None]

    def _masked(self, values: torch.Tensor, level: int, start: int, stop: int) -> torch.Tensor:
        mask = self._mask(level, start, stop)
        return values if mask is None else values.mul_(mask)

    def _rolling(self, level: int, channels: int, produce: Produce, conv) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(start, stop, conv(u) of these rows), where produce(a, b, out) makes rows [a, b) of u, in order, once.

        The two rows of u that neighbouring slabs share are carried over; beyond the ends u is zero.
        """
        slabs = list(self._slabs(level))
        rows, *size = self._size(level)
        most = max(b - a for a, b in slabs) + 2
        between = torch.empty((most, *size, channels), device=self.y.device, dtype=self.runner.dtype)
        row = 0
        between[0].zero_()
        for start, stop in slabs:
            upto = min(stop + 1, rows)
            at = row - start + 1
            if upto > row:
                produce(row, upto, between[at : at + upto - row].permute(3, 0, 1, 2)[None])
            row = upto
            if stop == rows:
                between[stop - start + 1].zero_()
            window = between[: stop - start + 2].permute(3, 0, 1, 2)[None]
            yield start, stop, self.runner.convolve(window, conv, (0, 1, 1))
            between[:2] = between[stop - start : stop - start + 2].clone()

    def _statistics(self, name: str, level: int, start: int, stop: int) -> None:
        """Partial group-norm statistics of rows of a map, taken while they are still in the cache."""
        if self.active is None:
            return
        groups = self.runner.program.channels[name] // 8
        part = gn.stats(self.maps[name].view(start, stop), groups, self._mask(level, start, stop))
        if start == 0:
            self.partials[name] = []
        self.partials[name].append(part)

    # --- steps ---

    def _enter(self, step: Step) -> None:
        target = self._make(step.target)

        def packed(a: int, b: int, out: torch.Tensor) -> None:
            pieces = out.permute(0, 2, 3, 4, 1)[0].unflatten(-1, (2, 2, 2, 2))  # rows, H, W, (x | y), 2, 2, 2
            for k, volume in enumerate((self.x, self.y)):
                cells = volume[0, 0, 2 * a : 2 * b].unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).unflatten(4, (-1, 2))
                pieces[:, :, :, k] = cells.permute(0, 2, 4, 1, 3, 5)

        for start, stop, values in self._rolling(0, 16, packed, step.module):
            target.view(start, stop).copy_(self._masked(values, 0, start, stop))
            self._statistics(step.target, 0, start, stop)
            target.done_with(start, stop)

    def _film_block(self, step: Step) -> None:
        block: FilmBlock = step.module
        target = self.maps[step.target]
        film = block.film(self.embedding).chunk(2, dim=1)

        def between(a: int, b: int, out: torch.Tensor) -> None:
            values = self.runner.convolve(target.view(a - 1, b + 1), block.conv1, (0, 1, 1))
            block.activate(values, *film, out=out)

        for start, stop, values in self._rolling(step.level, target.data.shape[-1], between, block.conv2):
            target.view(start, stop).add_(values)
            target.done_with(start, stop)

    def _normalised(self, step: Step, film: bool) -> Produce:
        """Rows of silu(norm(source)), inactive voxels zero."""
        block: NormBlock = step.module
        source = self.maps[step.source]
        mean, rstd = gn.merge(torch.cat(self.partials.pop(step.source), dim=1))
        affine = block.norm2 if film else block.norm1
        scale, shift = block.film(self.embedding).chunk(2, dim=1) if film else (None, None)

        def produce(a: int, b: int, out: torch.Tensor) -> None:
            rows = gn.apply(source.view(a, b), mean, rstd, affine[0], affine[1], scale=scale, shift=shift, act="silu")
            out.copy_(self._masked(rows, step.level, a, b))
            source.done_with(a, b)

        return produce

    def _norm_conv(self, step: Step) -> None:
        block: NormBlock = step.module
        produce, target = self._normalised(step, film=False), self._make(step.target)
        for start, stop, values in self._rolling(step.level, target.data.shape[-1], produce, block.conv1):
            target.view(start, stop).copy_(values)
            self._statistics(step.target, step.level, start, stop)
            target.done_with(start, stop)

    def _norm_conv_add(self, step: Step) -> None:
        block: NormBlock = step.module
        produce, target = self._normalised(step, film=True), self.maps[step.target]
        for start, stop, values in self._rolling(step.level, target.data.shape[-1], produce, block.conv2):
            target.view(start, stop).add_(self._masked(values, step.level, start, stop))
            self._statistics(step.target, step.level, start, stop)
            target.done_with(start, stop)

    def _down(self, step: Step) -> None:
        source, target, conv = self.maps[step.source], self._make(step.target), step.module
        for start, stop in self._slabs(step.level):
            values = self.runner.convolve(source.view(2 * start, 2 * stop), conv)
            target.view(start, stop).copy_(self._masked(values, step.level, start, stop))
            self._statistics(step.target, step.level, start, stop)
            source.done_with(2 * start, 2 * stop)

    def _guide(self, step: Step) -> None:
        target = self.maps[step.target]
        if self.guidance.any():
            tokens = self.guidance[0].permute(1, 2, 3, 0)
            target.data[1:-1] += F.linear(tokens, step.module.weight.flatten(1))
            self._masked(target.view(0, target.rows), step.level, 0, target.rows)
            self._statistics(step.target, step.level, 0, target.rows)

    def _attend(self, step: Step) -> None:
        target = self.maps[step.target]
        active = None if self.active is None else self.active[None, None]
        target.view(0, target.rows).copy_(step.module(target.view(0, target.rows), active))
        self._statistics(step.target, step.level, 0, target.rows)

    def _up_add(self, step: Step) -> None:
        source, target, conv = self.maps[step.source], self.maps[step.target], step.module
        weight, bias = self.runner.weights(conv)
        weight, bias = weight.permute(0, 2, 3, 4, 1).flatten(1), bias.repeat(8)
        for start, stop in self._slabs(step.level + 1):
            a, b = 2 * start, 2 * stop
            # A transposed convolution whose taps do not overlap is a matrix product: [r, h, w, C] -> [.., 2, 2, 2, C'].
            cells = torch.addmm(bias, source.data[start + 1 : stop + 1].flatten(0, 2).to(weight.dtype), weight)
            cells = cells.unflatten(0, (stop - start, *source.data.shape[1:3])).unflatten(-1, (2, 2, 2, -1))
            rows = target.data[a + 1 : b + 1]
            rows.unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).add_(
                cells.permute(0, 3, 1, 4, 2, 5, 6)
            )
            self._masked(target.view(a, b), step.level, a, b)
            self._statistics(step.target, step.level, a, b)
            target.done_with(a, b)

    def _exit(self, step: Step) -> None:
        source, conv = self.maps[step.source], step.module
        for start, stop in self._slabs(0):
            values = convolve(source.view(start - 1, stop + 1), conv, (0, 1, 1))
            values = self._masked(values, 0, start, stop)
            cells = (
                self.out[0, 0, 2 * start : 2 * stop].unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).unflatten(4, (-1, 2))
            )
            cells.copy_(values[0].unflatten(0, (2, 2, 2)).permute(3, 0, 4, 1, 5, 2))
            source.done_with(start - 1, stop)
