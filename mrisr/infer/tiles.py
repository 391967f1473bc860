"""Which part of a volume the network sees, and how overlapping pieces become one volume again.

The plan is made on the target grid. Everything the network is shown starts at a multiple of 8 voxels counted
from the volume's own origin (the network halves the grid three times; 64 where it attends in windows), so
neither cropping nor tiling moves its internal sampling grid.

Along every axis the tiles' weights add up to one at every voxel. A 3D weight is the product of three such
axis weights, so the pieces add up to one in 3D without any running sum of weights: a constant comes back as
that constant. A tile that is left out (air) contributes a zero residual with its weight intact, and the
residual fades to zero over the last voxels of the processed box where that ends in air: plain interpolation,
without a step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrisr.errors import UsageError
from mrisr.ops.either import blend_add_
from mrisr.physics.foreground import BRICK

if TYPE_CHECKING:
    import torch

    Volume = torch.Tensor | np.ndarray

OVERLAP = 24  # voxels shared by neighbouring tiles, a multiple of 8; a model may want more (`shared`)
# The same of networks that learnt one kind of acquisition alone: they look further, and with 24 voxels a tile of 80
# misses the 0.2 % of the range that tests/infer/test_pipeline.py allows.
FAR_OVERLAP = 40
TRIM = 8  # of those, thrown away at a tile's cut face, where convolutions have seen padding instead of data
MARGIN = 8  # air kept inside the processed box around the foreground bricks, which are grown by 8 already
FADE = 8  # voxels over which the residual goes to zero at a box face that lies in air
SMALLEST_TILE = 2 * OVERLAP

EXACT = "exact"

Triple = tuple[int, int, int]


def round_up(n: int, multiple: int = BRICK) -> int:
    """The smallest multiple that is not below `n`."""
    return -(-int(n) // multiple) * multiple


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis: starts[k] in target voxels, weights[k, i] of voxel starts[k] + i."""

    size: int
    starts: tuple[int, ...]
    weights: np.ndarray


@dataclass(frozen=True)
class TilePlan:
    """What the network runs on; iterate with `for start, weights in plan`.

    Attributes:
        shape: of the target volume.
        box: (start, stop) of the processed part in target voxels; stop may pass the volume's end (edge
            padding).
        axes: the tile grid per axis.
        active: index triples of the tiles that hold foreground.
        kind: "whole" (one piece), "exact" (one piece, layer by layer) or "tiles".
    """

    shape: Triple
    box: tuple[Triple, Triple]
    axes: tuple[Axis, Axis, Axis]
    active: tuple[Triple, ...]
    kind: str

    @property
    def tile(self) -> Triple:
        """Size of every piece, voxels."""
        return tuple(a.size for a in self.axes)

    @property
    def tile_voxels(self) -> int:
        """Voxels of a piece."""
        return int(np.prod(self.tile))

    @property
    def extent(self) -> Triple:
        """Size of the processed box, voxels."""
        return tuple(b - a for a, b in zip(*self.box, strict=True))

    @property
    def count(self) -> int:
        """Number of pieces on the grid, the skipped ones included."""
        return int(np.prod([len(a.starts) for a in self.axes]))

    @property
    def computed_voxels(self) -> int:
        return len(self.active) * self.tile_voxels

    @property
    def active_fraction(self) -> float:
        """Network voxels computed / voxels of the target (above 1 where overlaps outweigh skipped air)."""
        return self.computed_voxels / int(np.prod(self.shape))

    def __iter__(self) -> Iterator[tuple[Triple, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        for index in self.active:
            start = tuple(a.starts[k] for a, k in zip(self.axes, index, strict=True))
            yield start, tuple(a.weights[k] for a, k in zip(self.axes, index, strict=True))


def shared(size: int, overlap: int) -> int:
    """Voxels that neighbouring tiles of `size` share: `overlap`, where it is above OVERLAP at most half of a tile."""
    return min(overlap, max(OVERLAP, size // (2 * BRICK) * BRICK))


def cut_axis(length: int, size: int, overlap: int = OVERLAP, trim: int = TRIM, align: int = BRICK) -> Axis:
    """Tiles of `size` voxels that cover [0, length), neighbours sharing at least `shared(size, overlap)` voxels.

    Tile k starts at k * stride, where stride is the largest multiple of `align` that keeps the overlap; the
    last one is moved back to the first aligned start that reaches the end. Weights are zero on the outer
    `trim` voxels of a cut face, rise as sin^2 over the rest of the overlap, and are divided by their sum,
    known per axis.
    """
    if size >= length:
        return Axis(length, (0,), np.ones((1, length), np.float32))
    overlap = shared(size, overlap)
    stride = (size - overlap) // align * align
    if stride < align:
        raise UsageError(
            f"tile: {size} voxels are too few beside an overlap of {overlap} and starts at multiples of "
            f"{align}; expected at least {align + overlap}"
        )
    last = round_up(length - size, align)
    starts = [*range(0, last, stride), last]
    position = np.arange(size) + 0.5
    weights = np.zeros((len(starts), last + size))
    for k, start in enumerate(starts):
        rise = _rise(position - trim, overlap - 2 * trim) if k > 0 else np.ones(size)
        fall = _rise(size - position - trim, overlap - 2 * trim) if k < len(starts) - 1 else np.ones(size)
        weights[k, start : start + size] = rise * fall
    weights /= weights.sum(axis=0)
    own = np.stack([weights[k, s : s + size] for k, s in enumerate(starts)])
    return Axis(size, tuple(starts), own.astype(np.float32))


def _rise(distance: np.ndarray, width: int) -> np.ndarray:
    return np.sin(0.5 * np.pi * np.clip(distance / width, 0.0, 1.0)) ** 2


def plan(
    shape: Triple,
    foreground: np.ndarray | None = None,
    *,
    tile: int | Triple | str | None = None,
    max_voxels: int | None = None,
    align: int = BRICK,
    overlap: int = OVERLAP,
) -> TilePlan:
    """Plan the network's work on a target volume of `shape`.

    Args:
        foreground: bool mask of bricks of 8^3 voxels (`mrisr.physics.foreground.bricks`); None: all is foreground.
        tile: a size in voxels, one or three (rounded up to a multiple of 8); None takes the whole box where
            that has at most `max_voxels` voxels, else the cheapest tile that has; "exact" takes the whole box
            whatever its size, for an engine that runs it layer by layer.
        align: piece starts are multiples of this, counted from the volume's origin.
        overlap: what the model wants tiles to share, see `shared`.

    Raises:
        UsageError: tile below 48 voxels.
    """
    start, stop = foreground_box(shape, foreground, align)
    extent = tuple(b - a for a, b in zip(start, stop, strict=True))
    exact = isinstance(tile, str) and tile == EXACT
    if tile is not None and not exact:
        sizes = tuple(min(s, n) for s, n in zip(check_tile(tile, align), extent, strict=True))
    elif exact or max_voxels is None or np.prod(extent) <= max_voxels:
        sizes = extent
    else:
        sizes = cheapest_tile(extent, max_voxels, align, overlap)
    axes = tuple(
        _place(cut_axis(n, size, overlap, align=align), low, high, full)
        for n, size, low, high, full in zip(extent, sizes, start, stop, shape, strict=True)
    )
    everything = tuple(itertools.product(*(range(len(a.starts)) for a in axes)))
    active = tuple(i for i in everything if _holds_foreground(i, axes, foreground))
    kind = EXACT if exact else "whole" if len(everything) == 1 else "tiles"
    return TilePlan(tuple(shape), (start, stop), axes, active, kind)


def check_tile(tile: int | Triple, align: int = BRICK) -> Triple:
    """A stated size as three, multiples of 8. UsageError where it is no size, or too small."""
    least = smallest_tile(align)
    sizes = (tile,) * 3 if isinstance(tile, (int, np.integer)) and not isinstance(tile, bool) else tile
    whole = isinstance(sizes, (tuple, list, np.ndarray)) and all(isinstance(s, (int, np.integer)) for s in sizes)
    if not whole or len(sizes) != 3 or min(sizes) < least:
        raise UsageError(
            f'tile: expected None, "exact", or at least {least} voxels (one whole number or three), found {tile!r}'
        )
    return tuple(round_up(s) for s in sizes)


def smallest_tile(align: int = BRICK) -> int:
    """Edge of the smallest tile there is, voxels."""
    return max(SMALLEST_TILE, align + OVERLAP)


def cheapest_tile(extent: Triple, max_voxels: int, align: int = BRICK, overlap: int = OVERLAP) -> Triple:
    """The tile of at most `max_voxels` voxels (multiples of 8) that covers `extent` for the least work.

    Where even the smallest tile is larger the smallest one is returned: the memory model reports that case.
    """
    best, best_cost = tuple(min(smallest_tile(align), n) for n in extent), np.inf
    for combination in itertools.product(*(_sizes(n, align, overlap) for n in extent)):
        cost = np.prod([size * count for size, count in combination])
        if cost < best_cost and np.prod([size for size, _ in combination]) <= max_voxels:
            best, best_cost = tuple(size for size, _ in combination), cost
    return best


def _sizes(length: int, align: int, overlap: int) -> list[tuple[int, int]]:
    """(tile size, number of tiles) for every useful cut of an axis."""
    counts = {length: 1}
    for size in range(smallest_tile(align), length, BRICK):
        counts[size] = len(cut_axis(length, size, overlap, align=align).starts)
    fewest: dict[int, int] = {}
    for size, count in counts.items():
        # Of several sizes with the same number of tiles the smallest is cheapest.
        fewest[count] = min(size, fewest.get(count, size))
    return [(size, count) for count, size in fewest.items()]


def _place(axis: Axis, start: int, stop: int, full: int) -> Axis:
    """Move an axis to the box, and let the residual fade where the box ends inside the volume."""
    weights = axis.weights.copy()
    fade = _rise(np.arange(axis.size) + 0.5, FADE).astype(np.float32)
    if start > 0:
        weights[0] *= fade
    if stop < full:
        weights[-1] *= fade[::-1]
    return Axis(axis.size, tuple(start + s for s in axis.starts), weights)


def foreground_box(shape: Triple, foreground: np.ndarray | None, align: int = BRICK) -> tuple[Triple, Triple]:
    """(start, stop) of the foreground and `MARGIN` voxels around it; without a mask, of the whole volume."""
    if foreground is None or not foreground.any():
        return (0, 0, 0), tuple(round_up(n) for n in shape)
    start, stop = [], []
    for axis, n in enumerate(shape):
        line = np.flatnonzero(foreground.any(axis=tuple(a for a in range(3) if a != axis)))
        start.append(max(0, int(line[0]) * BRICK - MARGIN) // align * align)
        stop.append(min(round_up(n), (int(line[-1]) + 1) * BRICK + MARGIN))
    return tuple(start), tuple(stop)


def _holds_foreground(index: Triple, axes: tuple[Axis, ...], foreground: np.ndarray | None) -> bool:
    if foreground is None or not foreground.any():
        return True
    window = []
    for k, axis in zip(index, axes, strict=True):
        voxels = np.flatnonzero(axis.weights[k]) + axis.starts[k]  # a trimmed rim does not reach the output
        window.append(slice(max(0, voxels[0] - MARGIN) // BRICK, (voxels[-1] + MARGIN) // BRICK + 1))
    return bool(foreground[tuple(window)].any())


class Seams:
    """Measures how much neighbouring tiles disagree where they share the weight equally."""

    def __init__(self, plan: TilePlan) -> None:
        self.plan = plan
        self._finished: set[Triple] = set()
        self._gaps: list[Volume] = []  # left on their device until asked for

    @property
    def largest(self) -> float | None:
        """Largest absolute difference, in the units of the values; None where no two tiles met."""
        return float(np.max([float(gap) for gap in self._gaps])) if self._gaps else None

    def add(self, index: Triple, piece: Volume, so_far: Volume) -> None:
        """Compare piece `index` with its finished neighbours; `so_far` is the blend without it."""
        for axis in range(3):
            before = tuple(i - (a == axis) for a, i in enumerate(index))
            if before in self._finished:
                self._face(index, axis, piece, so_far)
        self._finished.add(index)

    def _face(self, index: Triple, axis: int, piece: Volume, so_far: Volume) -> None:
        rows, here, there = [], [], []
        for a, (k, cut) in enumerate(zip(index, self.plan.axes, strict=True)):
            weights, start = cut.weights[k], cut.starts[k]
            inside = start + np.arange(cut.size) < self.plan.shape[a]
            if a == axis:  # the plane next to half weight
                near = np.where(inside & (weights < 0.5), weights, -1.0)
                rows = np.array([int(near[: cut.size // 2 + 1].argmax())])
                share = 1.0 - float(weights[rows[0]])
            else:  # only where no third tile has a say
                rows = np.flatnonzero(inside & (weights > 1 - 1e-6))
            if len(rows) == 0:
                return
            here.append(rows)
            there.append(rows + start)
        self._gaps.append(abs(piece[np.ix_(*here)] - so_far[np.ix_(*there)] / share).max())


def weights_on(plan: TilePlan, device: torch.device | None) -> list[tuple[Volume, ...]]:
    """The three weight vectors of every active piece, on a device, where each axis is copied once; None: arrays."""
    axes = [axis.weights for axis in plan.axes]
    if device is not None:
        import torch

        axes = [torch.as_tensor(weights, device=device) for weights in axes]
    return [tuple(axis[k] for axis, k in zip(axes, index, strict=True)) for index in plan.active]


def blend(
    plan: TilePlan,
    run: Callable[[Triple], Volume],
    out: Volume,
    tick: Callable[[float], None] | None = None,
    seams: Seams | None = None,
    weights: list | None = None,
) -> Volume:
    """Add every active piece, weighted, into `out` [X, Y, Z] (handed over as zeros), and return it.

    Args:
        run: start of a piece -> its values, [x, y, z] of size `plan.tile`.
        tick: called with the fraction done after each piece.
        seams: told of every piece before it is added.
        weights: from `weights_on`, for the device of `out`; None: they are brought there piece by piece.
    """
    for count, (start, own) in enumerate(plan, 1):
        piece = run(start)
        if seams is not None:
            seams.add(plan.active[count - 1], piece, out)
        blend_add_(out, piece, start, own if weights is None else weights[count - 1])
        if tick is not None:
            tick(count / len(plan.active))
    return out
