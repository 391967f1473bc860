"""Where the network's answer counts, and what stands where it does not.

In air, and beyond the centre of the first and the last slice, a network can only invent: there the result is plain
interpolation (cubic, and beyond the outer samples the nearest of them), into which its answer fades. Where somebody has
masked the background, the result has that value, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrisr import grid as grids
from mrisr import native
from mrisr.grid import Grid
from mrisr.ops import arrays
from mrisr.ops.arrays import DROP
from mrisr.ops.resample import bspline_matrix, interpolation_matrix
from mrisr.physics.degrade import SLICE_KINDS
from mrisr.physics.psf import PSF

if TYPE_CHECKING:
    import torch

    Volume = torch.Tensor | np.ndarray

ORDER = 3  # of the interpolation that stands in air and at the ends
# In slices, from the centre of an end slice inwards: where the network's answer begins, and where it is all there.
END_NONE, END_ALL = 0.0, 1.0
HALF = 0.5 + 1e-4  # share of background in a target voxel from where it is background; a tie, rounded or not, is head
ENDS = ("fade", "crop", "full")
# A head gives no negative signal, and dark lines beside bright fat are no anatomy: the network's answer keeps so much
# of what interpolation gives, counted from no signal; and goes so much of the scan's range above its highest value.
LEAST, MOST = 0.1, 0.15
ROWS = 32  # of the first axis, at a time


@dataclass(frozen=True)
class Fade:
    """How a scan's grid is interpolated onto its target where the network does not count.

    Attributes:
        cubic: per axis, the interpolation [n_out, n_in] that stands in air; None where nothing changes.
        linear: the same for weights and masks.
        ends: per axis, how much of the network's answer counts for the sake of end slices, [n_out], or None: all.
        open_axes: axes at whose ends air may lie: not those of slices.
    """

    cubic: tuple
    linear: tuple
    ends: tuple
    open_axes: tuple[bool, bool, bool]

    @classmethod
    def between(cls, source: Grid, target: Grid, psf: PSF, ends: str = "fade") -> Fade:
        """ends: "fade", or "full": the network's answer counts up to the end ("crop": as "fade")."""
        slices = slice_axes(psf)
        cubic, linear, weights = [], [], []
        for n_in, v_in, n_out, v_out, sliced in zip(
            source.shape, source.voxel_size, target.shape, target.voxel_size, slices
        ):
            ratio, same = v_out / v_in, n_in == n_out and abs(v_out / v_in - 1) < 1e-9
            at = grids.axis_positions(n_in, n_out, ratio)
            weights.append(_end_weights(at, n_in) if sliced and ends != "full" else None)
            inside = np.clip(at, 0, n_in - 1)
            linear.append(None if same else bspline_matrix(n_in, inside, 1))
            if ratio > 1 + 1e-9:  # what the target cannot hold is taken out, as everywhere
                cubic.append(interpolation_matrix(n_in, n_out, ratio, "fourier"))
            else:
                cubic.append(None if same else bspline_matrix(n_in, inside, ORDER))
        return cls(tuple(cubic), tuple(linear), tuple(weights), tuple(not s for s in slices))

    def cut_ends(self, weights: torch.Tensor) -> torch.Tensor:
        """`weights` [X, Y, Z] on the target, limited to 0..1 and taken down towards the ends of slices, in place."""
        import torch

        weights.clamp_(0, 1)
        for axis, line in enumerate(self.ends):
            if line is not None:
                shape = [-1 if a == axis else 1 for a in range(3)]
                weights *= torch.as_tensor(line, dtype=weights.dtype, device=weights.device).reshape(shape)
        return weights

    def apply(
        self,
        image: Volume,
        std: Volume | None,
        scan: Volume,
        head: np.ndarray,
        limits: Limits,
        threads: int,
    ) -> None:
        """What `mrisr.infer.finish.fade` does, in place and in one pass of the native core (csrc/core/fade.cpp).

        Args:
            image, std: float32 [X, Y, Z] on the target, contiguous, on the CPU; no spread: None.
            scan: likewise [x, y, z].
            head: uint8 [x, y, z] of `mrisr.physics.foreground.tissue`.
        """
        double = [
            [None if m is None else np.ascontiguousarray(m, np.float64) for m in of] for of in (self.cubic, self.linear)
        ]
        ends = [None if line is None else np.ascontiguousarray(line, np.float32) for line in self.ends]
        image, std, scan = (None if v is None else arrays.in_memory(v) for v in (image, std, scan))
        native.module().fade(
            image.ctypes.data,
            0 if std is None else std.ctypes.data,
            scan.ctypes.data,
            head.ctypes.data,
            scan.shape,
            image.shape,
            *([0 if m is None else m.ctypes.data for m in of] for of in (*double, ends)),
            DROP,
            limits.floor,
            limits.ceiling,
            LEAST,
            threads,
        )


@dataclass(frozen=True)
class Limits:
    """What values a result may have, in the units of what it is put on: mean signal has none below `floor`.

    Attributes:
        floor: the smaller of no signal and the scan's lowest value.
        ceiling: the scan's highest value, and `MOST` of the scan's range above it.
    """

    floor: float
    ceiling: float

    @classmethod
    def of(cls, scan: Volume, zero: float) -> Limits:
        """Of a scan in which no signal is `zero`."""
        lowest, highest = float(scan.min()), float(scan.max())
        floor = min(zero, lowest)
        return cls(floor, highest + MOST * (highest - floor))

    def hold(self, answer: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
        """`answer` [X, Y, Z] in place: at least `LEAST` of what interpolation gives there (`plain`), counted from the
        floor, and not above the ceiling; what interpolation itself has beyond them stays."""
        import torch

        for some, here in zip(answer.split(ROWS), plain.split(ROWS)):
            lower = torch.minimum(here, (here - self.floor).mul_(LEAST).add_(self.floor))
            torch.maximum(some, lower, out=some)
            torch.minimum(some, here.clamp(min=self.ceiling), out=some)
        return answer


def slice_axes(psf: PSF) -> tuple[bool, bool, bool]:
    """Which stored axes run across slices."""
    return tuple(p.kind in SLICE_KINDS for p in psf)


def inner_range(n_in: int, n_out: int, ratio: float) -> slice:
    """Voxels of a target axis from the centre of the first to that of the last sample; all where there are none."""
    at = grids.axis_positions(n_in, n_out, ratio)
    inside = np.flatnonzero((at >= -1e-6) & (at <= n_in - 1 + 1e-6))
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, n_out)


def _end_weights(at: np.ndarray, n: int) -> np.ndarray:
    inside = np.minimum(at, n - 1 - at)
    share = np.clip((inside - END_NONE) / (END_ALL - END_NONE), 0.0, 1.0)
    return share * share * (3 - 2 * share)
