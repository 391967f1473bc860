"""Where the network's answer counts, and what stands where it does not.

In air, and beyond the centre of the first and the last slice, a network can only invent: there the result is plain
interpolation (cubic, and beyond the outer samples the nearest of them), into which its answer fades. Where somebody has
masked the background, the result has that value, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mrisr import grid as grids
from mrisr.grid import Grid
from mrisr.ops.resample import bspline_matrix, interpolation_matrix
from mrisr.physics.degrade import SLICE_KINDS
from mrisr.physics.psf import PSF

ORDER = 3  # of the interpolation that stands in air and at the ends
# In slices, from the centre of an end slice inwards: where the network's answer begins, and where it is all there.
END_NONE, END_ALL = 0.0, 1.0
HALF = 0.5 + 1e-4  # share of background in a target voxel from where it is background; a tie, rounded or not, is head
ENDS = ("fade", "crop", "full")


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
        weights.clamp_(0, 1)
        for axis, line in enumerate(self.ends):
            if line is not None:
                shape = [-1 if a == axis else 1 for a in range(3)]
                weights *= torch.as_tensor(line, dtype=weights.dtype, device=weights.device).reshape(shape)
        return weights


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
