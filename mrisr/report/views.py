"""What a report shows of a scan: the same part of the head before and after, cut in three planes.

Before is the scan by cubic convolution on the output's grid: what a viewer makes of it, and what the output has to be
better than. Nearest neighbours beside the output would make any result look good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from mrisr import preview
from mrisr.physics.foreground import tissue
from mrisr.volume import Volume

__all__ = ["PLANES", "Pair", "pair"]

# Canonical axes are left to right, posterior to anterior, inferior to superior (RAS+). Per plane: the axis that is cut,
# the axis that runs to the right and the one that runs down, both backwards: radiological, front and head up.
PLANES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}
LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # left, right, top, bottom of the picture
BRAIN_MM = 165.0  # from the top of the head down: the brain, not the neck
MARGIN_MM = 4.0
COARSE_MM = 4.0  # at which the head is looked for
OFF_MIDLINE = 0.06  # of the width: at the middle a head shows the fissure between its hemispheres
WINDOW_SHARE = 0.1  # of the intensity window is the whole scale of the difference
HEAD_SHARE = 0.15  # of the intensity window, above which a voxel counts as head


@dataclass(frozen=True, eq=False)
class Pair:
    """The part of a head that is shown, before and after, on one grid.

    before, after  float32 [X, Y, Z], in the output's stored axis order; spread likewise, or None
    affine         (4, 4) of this part, voxel index -> mm, RAS+
    window         (black, white) of both
    """

    before: np.ndarray
    after: np.ndarray
    affine: np.ndarray
    window: tuple[float, float]
    spread: np.ndarray | None = None

    @cached_property
    def axes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Stored axis along each canonical one, and its direction."""
        return preview.closest_axes(self.affine[:3, :3])

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """mm per stored axis."""
        return tuple(float(v) for v in np.linalg.norm(self.affine[:3, :3], axis=0))

    @cached_property
    def head(self) -> np.ndarray:
        """bool [X, Y, Z]: bright enough to be head."""
        low, high = self.window
        return self.before > low + HEAD_SHARE * (high - low)

    @cached_property
    def centre(self) -> tuple[int, ...]:
        """Canonical index that the planes go through: the centre of brightness, a little beside the midline."""
        weight = np.clip((canonical(self.before, self.axes) - self.window[0]) / _span(self.window), 0, 1)
        total = float(weight.sum(dtype=np.float64)) or 1.0
        centres = []
        for axis in range(3):
            profile = weight.sum(axis=tuple(k for k in range(3) if k != axis), dtype=np.float64)
            centres.append(float(profile @ np.arange(profile.size)) / total)
        centres[0] += OFF_MIDLINE * weight.shape[0]
        return tuple(int(np.clip(round(c), 0, n - 1)) for c, n in zip(centres, weight.shape))

    def picture(self, plane: str, what: str) -> Image.Image:
        """One plane of "before", "after", "difference" or "spread", with square pixels of the smaller voxel."""
        if what == "difference":
            cut = self.slice(plane, self.after) - self.slice(plane, self.before)
            reach = WINDOW_SHARE * _span(self.window)
            return self._square(plane, cut, (-reach, reach), _DIVERGING)
        if what == "spread":
            return self._square(plane, self.slice(plane, self.spread), (0.0, self.spread_top), _RISING)
        return self._square(plane, self.slice(plane, getattr(self, what)), self.window, None)

    @cached_property
    def spread_top(self) -> float:
        """The top of the scale of the spread, in input intensity units."""
        inside = self.spread[self.head] if self.head.any() else self.spread
        return float(np.percentile(inside, 99)) or 1.0

    def slice(self, plane: str, data: np.ndarray) -> np.ndarray:
        """[rows, columns] of one plane through the centre: radiological, front and head up."""
        cut, right, down = PLANES[plane]
        view = canonical(data, self.axes)
        flat = np.take(view, self.centre[cut], axis=cut)  # the two other axes, in ascending order
        rows = flat if down < right else flat.T
        return rows[::-1, ::-1]

    def _square(self, plane: str, values: np.ndarray, window: tuple[float, float], palette) -> Image.Image:
        _, right, down = PLANES[plane]
        order = self.axes[0]
        mm = (self.spacing[order[right]], self.spacing[order[down]])
        size = tuple(max(1, round(n * v / min(mm))) for n, v in zip(values.shape[::-1], mm))
        scaled = np.clip((values - window[0]) / _span(window), 0, 1) * 255
        picture = Image.fromarray(np.rint(scaled).astype(np.uint8))
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        if palette is not None:
            picture.putpalette(palette)
        return picture


def pair(source: Volume, result: Volume, spread: Volume | None = None) -> Pair:
    """What to show of a scan and its result; of 4D data the first frame.

    Args:
        source, result: as `mrisr.upscale` takes and gives them: parallel axes in the same order.
        spread: voxel-wise standard deviation on the result's grid.

    Raises GeometryError where the axes of the two are not parallel.
    """
    scan, output = next(source.frames()), next(result.frames())
    box = brain_box(output, result.affine)
    part = tuple(slice(low, high) for low, high in box)
    affine = result.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [low for low, _ in box]
    shape = [high - low for low, high in box]
    before = preview.interpolate(scan, source.affine, shape, affine)
    spread_values = None if spread is None else next(spread.frames())[part]
    return Pair(before, output[part], affine, preview.percentile_window(before), spread_values)


def brain_box(data: np.ndarray, affine: np.ndarray) -> list[tuple[int, int]]:
    """(first, behind the last) voxel per stored axis of what is shown: the head without air, and without the neck."""
    from scipy import ndimage

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    steps = [max(1, round(COARSE_MM / v)) if n >= 16 else 1 for n, v in zip(data.shape, spacing)]
    coarse = _block_means(data, steps)
    low, high = np.percentile(coarse, (1, 99))
    inside = tissue(np.clip((coarse - low) / max(high - low, 1e-30), 0, 2).astype(np.float32)) > 0
    parts, count = ndimage.label(inside)
    if count > 1:
        inside = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    if not inside.any():
        return [(0, n) for n in data.shape]
    box = []
    for axis, (n, step, mm) in enumerate(zip(data.shape, steps, spacing)):
        planes = np.flatnonzero(inside.any(axis=tuple(k for k in range(3) if k != axis)))
        margin = round(MARGIN_MM / mm)
        box.append((max(0, planes[0] * step - margin), min(n, (planes[-1] + 1) * step + margin)))
    order, signs = preview.closest_axes(affine[:3, :3])
    up, most = order[2], round(BRAIN_MM / spacing[order[2]])
    low, high = box[up]
    box[up] = (max(low, high - most), high) if signs[2] > 0 else (low, min(high, low + most))
    return box


def canonical(data: np.ndarray, axes: tuple[Sequence[int], Sequence[int]]) -> np.ndarray:
    """A view of [X, Y, Z] whose axes run left to right, posterior to anterior, inferior to superior."""
    order, signs = axes
    return np.transpose(data, order)[tuple(slice(None, None, s) for s in signs)]


def _block_means(data: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    for axis, step in enumerate(steps):
        if step > 1:
            whole = data.shape[axis] // step
            blocks = data[tuple(slice(whole * step) if k == axis else slice(None) for k in range(3))]
            data = blocks.reshape(*data.shape[:axis], whole, step, *data.shape[axis + 1 :]).mean(axis=axis + 1)
    return np.asarray(data, np.float32)


def _span(window: tuple[float, float]) -> float:
    return max(window[1] - window[0], 1e-30)


def _ramp(stops: Sequence[tuple[float, tuple[int, int, int]]]) -> list[int]:
    """256 RGB entries through `stops` (place 0 to 1, colour)."""
    at = np.linspace(0, 1, 256)
    places = [place for place, _ in stops]
    channels = [np.interp(at, places, [colour[k] for _, colour in stops]) for k in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(int).ravel().tolist()


# Told apart by those who see no red or no green; nothing is black, as the air is.
_DIVERGING = _ramp([(0, (120, 190, 255)), (0.25, (38, 98, 190)), (0.5, (13, 17, 23)), (0.75, (200, 96, 20)),
                    (1, (255, 206, 120))])  # fmt: skip
_RISING = _ramp([(0, (13, 17, 23)), (0.35, (76, 42, 122)), (0.65, (196, 66, 96)), (0.85, (246, 146, 60)),
                 (1, (252, 240, 170))])  # fmt: skip
