"""A PNG that shows volumes side by side: pillow, numpy and SciPy's splines.

Columns are panels (before, after, difference, ...), rows are planes (sagittal, coronal, axial). Every panel is cut
through the same point in millimetres and drawn at the same scale. Whole volumes are drawn voxel by voxel (nearest
neighbour), so that a scan's real voxels stay visible; a zoomed view shows a part of the brain, magnified smoothly, so
that nothing is seen that magnifying made. Display is radiological: the patient's right is on the left of coronal and
axial planes; letters at the borders say so.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mrisr.errors import GeometryError
from mrisr.io.atomic import replacing

# Canonical axes: 0 = left to right, 1 = posterior to anterior, 2 = inferior to superior (RAS+).
# Per plane: the axis cut away, then the axes drawn to the right and upwards, with their directions.
_PLANES = {
    "sagittal": (0, (1, -1), (2, 1)),
    "coronal": (1, (0, -1), (2, 1)),
    "axial": (2, (0, -1), (1, 1)),
}
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
_MIN_WIDTH, _MAX_WIDTH = 128, 420  # pixels of one plane
# At the middle of a head the sagittal plane shows the fissure between the hemispheres, not the brain.
_OFF_MIDLINE = 0.06  # of the width
_TITLE, _GAP, _FOOTER = 22, 6, 20
ZOOM = 96.0  # mm: a good half of a brain's width, so that a voxel of 0.7 mm covers three pixels
_MOST_TIMES = 8
_MARGIN = 12  # voxels by which edges are repeated, beyond which a spline forgets them
_HEAD_WIDTH, _BRAIN_HEIGHT = 160.0, 130.0  # mm


@dataclass(frozen=True)
class Panel:
    """One column: a volume on its own grid, drawn in grey between the two values of `window`.

    data    real array [X, Y, Z]
    affine  voxel index to millimetres, RAS+, (4, 4)
    window  (black, white); None takes the first panel's
    """

    title: str
    data: np.ndarray
    affine: np.ndarray
    window: tuple[float, float] | None = None


def percentile_window(data: np.ndarray) -> tuple[float, float]:
    """Black at the minimum or 0, white at the 99.8th percentile of what is above it."""
    low = min(0.0, float(np.percentile(data, 0.5)))
    bright = data[data > low]
    high = float(np.percentile(bright, 99.8)) if bright.size else low + 1.0
    return low, high if high > low else low + 1.0


def contact_sheet(
    panels: Sequence[Panel], *, footer: str = "", zoom: float | None = None, planes: Sequence[str] = tuple(_PLANES)
) -> Image.Image:
    """Draw `panels` as columns and `planes` as rows; returns a grey PIL image.

    zoom: side in mm of the square that is shown of each plane, around the middle of the brain; None: all of the
    volumes, around the first panel's centre of mass. The sagittal plane lies a little to the right of the centre.
    Raises GeometryError where a panel is not 3D.
    """
    common = panels[0].window or percentile_window(panels[0].data)
    views = [_View(panel, panel.window or common) for panel in panels]
    centre = views[0].centre_of_mass() if zoom is None else views[0].brain_centre()
    low, high = _extent(views)
    sagittal = centre[0] + _OFF_MIDLINE * min(high[0] - low[0], _HEAD_WIDTH)
    step = min(min(view.spacing) for view in views)
    if zoom is None:
        widest = max(high[axis] - low[axis] for axis in range(3)) / step
        # Small volumes are magnified by a whole number, so that every voxel has the same size on the screen.
        step *= max(1.0, widest / _MAX_WIDTH) if widest > _MIN_WIDTH else 1 / math.ceil(_MIN_WIDTH / widest)
        times = 1
    else:
        low, high = _around(centre, zoom, low, high)
        times = round(_MAX_WIDTH * step / max(high[axis] - low[axis] for axis in range(3)))
        times = min(max(times, 1), _MOST_TIMES)
    size = [max(1, round((high[axis] - low[axis]) / step)) for axis in range(3)]
    samples = [low[axis] + (np.arange(size[axis]) + 0.5) * (high[axis] - low[axis]) / size[axis] for axis in range(3)]
    centre[0] = min(max(sagittal, low[0]), high[0] - step / 2)

    width = times * max(size[_PLANES[plane][1][0]] for plane in planes)
    height = _TITLE + sum(times * size[_PLANES[plane][2][0]] + _GAP for plane in planes) + _FOOTER
    sheet = Image.new("L", (len(views) * (width + _GAP) - _GAP, height), 0)
    for column, view in enumerate(views):
        left, top = column * (width + _GAP), _TITLE
        _write(sheet, (left + width // 2, _TITLE // 2), view.panel.title, width)
        for plane in planes:
            _, right, up = _PLANES[plane]
            picture = Image.fromarray(view.plane(plane, centre, samples))
            if times > 1:
                picture = picture.resize((times * picture.width, times * picture.height), Image.Resampling.BICUBIC)
            sheet.paste(picture, (left + (width - picture.width) // 2, top))
            _label(sheet, (left, top, width, picture.height), right, up)
            top += picture.height + _GAP
    note = f"rows: {', '.join(planes)}; radiological (patient's right on the left)"
    note = f"{footer} | {note}" if footer else note
    _write(sheet, (sheet.width // 2, sheet.height - _FOOTER // 2), note, sheet.width)
    return sheet


def upscale_sheet(
    source: np.ndarray, source_affine: np.ndarray, result: np.ndarray, result_affine: np.ndarray
) -> Image.Image:
    """Before (interpolated cubically onto the output's grid), after, and the difference, as one sheet.

    A zoomed view of the brain. source [X, Y, Z] and result [X', Y', Z'] share their axis order and directions (as
    mrisr.upscale gives them); 4D arrays show their first frame. The difference is grey where there is none; its window
    is +-10 % of the intensity window.
    """
    source, result = _first_frame(source), _first_frame(result)
    cubic = interpolate(source, source_affine, result.shape, result_affine)
    window = percentile_window(brain(cubic, result_affine))
    span = 0.1 * (window[1] - window[0])
    panels = [
        Panel(f"before: {_spacing_text(source_affine)}, cubic", cubic, result_affine, window),
        Panel(f"after: {_spacing_text(result_affine)}", result, result_affine, window),
        Panel("after - before (black/white: 10 %)", result - cubic, result_affine, (-span, span)),
    ]
    return contact_sheet(panels, footer="mrisr", zoom=ZOOM)


def brain(data: np.ndarray, affine: np.ndarray, side: float = ZOOM) -> np.ndarray:
    """The part of `data` [X, Y, Z] that a view zoomed to `side` mm shows planes of: fat and skin are not in it."""
    view = _View(Panel("volume", data, affine), percentile_window(data))
    return view.part(*_around(view.brain_centre(), side, view.low, view.high))


def interpolate(data: np.ndarray, affine: np.ndarray, shape: Sequence[int], target_affine: np.ndarray) -> np.ndarray:
    """Cubic B-spline interpolation of `data` [X, Y, Z] onto a grid with parallel axes, edges repeated; float32.

    Raises GeometryError where the two grids' axes are not parallel.
    """
    from scipy import ndimage

    between = np.linalg.inv(affine) @ target_affine
    across = between[:3, :3] - np.diag(np.diag(between[:3, :3]))
    if np.abs(across * np.asarray(shape)).max() > 0.5:
        raise GeometryError("preview: input and output axes are not parallel; expected the two sides of one upscale")
    out = np.asarray(data, dtype=np.float32)
    for axis in range(3):
        width = [(_MARGIN, _MARGIN) if k == axis else (0, 0) for k in range(3)]
        coefficients = ndimage.spline_filter1d(np.pad(out, width, "edge"), 3, axis, output=np.float32, mode="mirror")
        positions = _MARGIN + between[axis, 3] + between[axis, axis] * np.arange(shape[axis])
        weights = _spline_matrix(coefficients.shape[axis], np.clip(positions, 0, coefficients.shape[axis] - 1))
        out = np.moveaxis(np.tensordot(weights, coefficients, axes=(1, axis)), 0, axis)
    return out


def fewer_greys(image: Image.Image, levels: int = 64) -> Image.Image:
    """A grey image in `levels` shades, for a file that a page can carry; 64 are more than the eye tells apart."""
    return image.point([round(v * (levels - 1) / 255) * 255 // (levels - 1) for v in range(256)])


def save(image: Image.Image, path: str | os.PathLike) -> None:
    """Write `image` as PNG, whole or not at all, over what is there. Raises OutputError where it cannot."""
    with replacing(path, force=True) as beside:
        image.save(beside, format="PNG", optimize=True)


class _View:
    """A panel with its axes matched to left-right, posterior-anterior and inferior-superior."""

    def __init__(self, panel: Panel, window: tuple[float, float]) -> None:
        if panel.data.ndim != 3:
            raise GeometryError(f"preview: {panel.title!r} has {panel.data.ndim} dimensions; expected 3")
        self.panel, self.window = panel, window
        matrix = np.asarray(panel.affine, dtype=np.float64)[:3, :3]
        lengths = np.linalg.norm(matrix, axis=0)
        order, signs = closest_axes(matrix)
        self.order = order  # stored axis that runs along each canonical axis
        self.spacing = [float(lengths[axis]) for axis in order]
        self.sign = signs
        self.counts = [panel.data.shape[axis] for axis in order]
        middle = (np.asarray(panel.data.shape) - 1) / 2
        centre = matrix @ middle + np.asarray(panel.affine)[:3, 3]
        # Each axis is laid straight along its closest direction: an oblique scan is drawn in its own planes.
        self.low = [centre[k] - self.counts[k] * self.spacing[k] / 2 for k in range(3)]
        self.high = [centre[k] + self.counts[k] * self.spacing[k] / 2 for k in range(3)]

    def centre_of_mass(self) -> list[float]:
        """Where the brightness is centred, per canonical axis, in the millimetres of the drawing."""
        low, high = self.window
        return self._centre(np.clip((self.panel.data - low) / (high - low), 0, 1))

    def _centre(self, data: np.ndarray) -> list[float]:
        total = float(data.sum(dtype=np.float64)) or 1.0
        centre = []
        for axis, stored in enumerate(self.order):
            others = tuple(k for k in range(3) if k != stored)
            profile = data.sum(axis=others, dtype=np.float64)[:: self.sign[axis]]
            index = float(profile @ np.arange(profile.size)) / total
            centre.append(self.low[axis] + (index + 0.5) * self.spacing[axis])
        return centre

    def brain_centre(self) -> list[float]:
        """The middle of the brain, mm: of what is bright within a brain's height below the top of the head, so that
        neck and face do not pull it down and forwards."""
        low, high = self.window
        data = np.clip((self.panel.data - low) / (high - low), 0, 1)
        up = self.order[2]
        rows = np.moveaxis(data, up, 0).reshape(self.counts[2], -1)[:: self.sign[2]]
        head = np.flatnonzero((rows > 0.2).mean(axis=1) > 0.02)
        if not head.size:
            return self.centre_of_mass()
        first = max(0, int(head[-1] + 1 - _BRAIN_HEIGHT / self.spacing[2]))
        part = np.zeros(self.counts[2], bool)
        part[first : head[-1] + 1] = True
        profile = data * np.expand_dims(part[:: self.sign[2]], tuple(k for k in range(3) if k != up))
        centre = self._centre(profile)
        centre[2] = self.low[2] + (first + head[-1] + 1) / 2 * self.spacing[2]
        return centre

    def part(self, low: Sequence[float], high: Sequence[float]) -> np.ndarray:
        """The voxels whose centres lie between two corners, mm per canonical axis; at least one per axis."""
        where = [slice(None)] * 3
        for axis, stored in enumerate(self.order):
            first, last = sorted(self._index(axis, np.array([low[axis], high[axis] - 1e-6 * self.spacing[axis]])))
            where[stored] = slice(int(first), int(last) + 1)
        return self.panel.data[tuple(where)]

    def plane(self, name: str, centre: Sequence[float], samples: list[np.ndarray]) -> np.ndarray:
        """uint8 picture [rows, columns] of one plane through `centre`, sampled at `samples` mm per axis."""
        cut, (right, right_sign), (up, up_sign) = _PLANES[name]
        index = {cut: self._index(cut, np.atleast_1d(centre[cut]))[0]}
        for axis, sign in ((right, right_sign), (up, -up_sign)):  # picture rows run downwards
            index[axis] = self._index(axis, samples[axis])[::sign]
        order = np.argsort(self.order)  # canonical axis that each stored axis runs along
        cube = self.panel.data[np.ix_(*(np.atleast_1d(np.maximum(index[axis], 0)) for axis in order))]
        picture = np.moveaxis(cube, [self.order[cut], self.order[up], self.order[right]], [0, 1, 2])[0]
        low, high = self.window
        grey = np.clip((picture.astype(np.float64) - low) / (high - low), 0, 1) * 255
        inside = (index[up] >= 0)[:, None] & (index[right] >= 0)[None, :] & (index[cut] >= 0)
        return np.where(inside, np.rint(grey), 0).astype(np.uint8)

    def _index(self, axis: int, millimetres: np.ndarray) -> np.ndarray:
        """Nearest voxel index along the stored axis for canonical positions; -1 outside."""
        index = np.floor((millimetres - self.low[axis]) / self.spacing[axis]).astype(int)
        outside = (index < 0) | (index >= self.counts[axis])
        if self.sign[axis] < 0:
            index = self.counts[axis] - 1 - index
        return np.where(outside, -1, index)


def closest_axes(matrix: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For each canonical axis the stored axis that runs along it, and +1 or -1 for its direction."""
    cosines = matrix / np.linalg.norm(matrix, axis=0)
    order = max(itertools.permutations(range(3)), key=lambda p: sum(abs(cosines[k, p[k]]) for k in range(3)))
    return order, tuple(1 if cosines[k, order[k]] >= 0 else -1 for k in range(3))


def _spline_matrix(count: int, positions: np.ndarray) -> np.ndarray:
    """Weights [n_out, count] of the cubic B-spline at `positions` (index units), of coefficients."""
    taps = np.floor(positions).astype(int)[:, None] + np.arange(-1, 3)
    distance = np.abs(positions[:, None] - taps)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - np.minimum(distance, 2)) ** 3 / 6
    matrix = np.zeros((len(positions), count), dtype=np.float32)
    np.add.at(
        matrix, (np.arange(len(positions))[:, None], np.clip(taps, 0, count - 1)), np.where(distance <= 1, near, far)
    )
    return matrix


def _around(centre: Sequence[float], side: float, low: list[float], high: list[float]) -> tuple[list, list]:
    """The cube of `side` mm around `centre`, moved into the volume and cut to it."""
    starts = [min(max(c - side / 2, a), max(a, b - side)) for c, a, b in zip(centre, low, high, strict=True)]
    return starts, [min(start + side, b) for start, b in zip(starts, high, strict=True)]


def _extent(views: list[_View]) -> tuple[list[float], list[float]]:
    return (
        [min(view.low[axis] for view in views) for axis in range(3)],
        [max(view.high[axis] for view in views) for axis in range(3)],
    )


def _first_frame(data: np.ndarray) -> np.ndarray:
    return data[..., 0] if data.ndim == 4 else data


def _spacing_text(affine: np.ndarray) -> str:
    lengths = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    return " x ".join(f"{length:.3g}" for length in lengths) + " mm"


def _label(sheet: Image.Image, box: tuple[int, int, int, int], right: tuple[int, int], up: tuple[int, int]) -> None:
    left, top, width, height = box
    axis, sign = right
    letters = _LETTERS[axis][::sign]
    _write(sheet, (left + 8, top + height // 2), letters[0], 16)
    _write(sheet, (left + width - 8, top + height // 2), letters[1], 16)
    axis, sign = up
    letters = _LETTERS[axis][::sign]
    _write(sheet, (left + width // 2, top + height - 8), letters[0], 16)
    _write(sheet, (left + width // 2, top + 8), letters[1], 16)


def _write(sheet: Image.Image, at: tuple[int, int], text: str, room: int) -> None:
    """Draw `text` centred at `at`, in the largest size up to 12 that fits `room` pixels."""
    draw = ImageDraw.Draw(sheet)
    for size in (12, 11, 10, 9, 8, 7):
        font = ImageFont.load_default(size=size)
        if draw.textlength(text, font=font) <= room:
            break
    draw.text(at, text, fill=255, font=font, anchor="mm", stroke_width=1, stroke_fill=0)
