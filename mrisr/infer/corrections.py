"""Gradient nonlinearity and bias field of a scan: taken out on the way to the start, and told to the network.

Undoing a displacement and changing the grid are one interpolation. A spline on the coarse grid would lose what a cut of
k-space holds up to its edge, so those axes are filled with zeros to the target's spacing first, which loses nothing:
that start is as good as the start of an undistorted scan, a quintic spline straight from the coarse grid 0.1 to 1 dB
worse (benchmarks/results/guidance.md). Slices keep their own grid until then.

The displaced start is made some rows at a time, so that displacements of the whole target never exist at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mrisr.errors import CATCHING, UsageError
from mrisr.grid import Grid, plan
from mrisr.infer.fade import HALF, ORDER, Fade
from mrisr.infer.info import BiasInfo, GradnlInfo
from mrisr.nn.vector import GUIDANCE_CHANNELS, GUIDANCE_STRIDE, brick_grid
from mrisr.ops.either import apart
from mrisr.ops.resample import apply_axes
from mrisr.physics.degrade import fourier_axes, start_matrices
from mrisr.physics.psf import PSF

if TYPE_CHECKING:
    import torch

    from mrisr.nn.condition import Condition
    from mrisr.physics.gradnl import Nonlinearity, Warp

    Volume = torch.Tensor | np.ndarray

ROWS = 32  # of the target that are displaced at a time
REACH = 24  # rows beyond them that the prefilter of a quintic spline needs: 0.43^24 is 2e-9
# float32 volumes of the size of such rows alive at once: displacement twice, its size, factor, result, its source.
ROW_COPIES = 16.0
# At the points of a chunk: basis functions of a polynomial, or else samples of the displacement and its gradient.
BASIS_BYTES, SAMPLED_BYTES = 120 * 10**6, 300 * 10**6
# float32 source volumes: a field, its logarithm, what was divided; N4 has copies of its own in float32 and float64.
FIELD_COPIES, ESTIMATE_COPIES = 4.0, 12.0


@dataclass(frozen=True, eq=False)
class Corrections:
    """What is known of a scan's distortions; read and checked by `mrisr.corrections`.

    Attributes:
        nonlinearity: of the gradients, or None.
        field: the bias field, float32 [X, Y, Z] on the scan's grid, "auto" to estimate it by N4, or None.
        field_from: what messages call it.
        keeps_bias: multiply the result by the field again.
    """

    nonlinearity: Nonlinearity | None = None
    field: torch.Tensor | str | None = None
    field_from: str = ""
    keeps_bias: bool = False

    @property
    def displaces(self) -> bool:
        """Whether anything is moved: then the forward model along the axes does not hold."""
        return self.nonlinearity is not None and self.nonlinearity.displaces

    @property
    def shades(self) -> bool:
        """Whether anything is divided by."""
        return self.field is not None

    @property
    def estimates(self) -> bool:
        """Whether the field is still to be found."""
        return isinstance(self.field, str)

    def start_copies(self, shape: tuple[int, int, int]) -> float:
        """float32 target volumes alive at once while the start is made, or the result is shaded again."""
        if not self.displaces:
            return 2.0
        rows = min(shape[0], ROWS)
        return 3.0 + (ROW_COPIES * rows + 2.0 * min(shape[0], rows + 3 * REACH)) / shape[0]

    @property
    def source_copies(self) -> float:
        """float32 source volumes alive at once beyond those of a scan without corrections."""
        return ESTIMATE_COPIES if self.estimates else FIELD_COPIES if self.shades else 0.0

    @property
    def points_bytes(self) -> int:
        """What positions and basis functions take while a displacement is evaluated."""
        if not self.displaces:
            return 0
        return SAMPLED_BYTES if self.nonlinearity.distortion.degree is None else BASIS_BYTES


@dataclass(frozen=True)
class Displacement:
    """What the correction of geometry does to the target, for `info`.

    Attributes:
        largest: mm, at most, between a voxel of the output and where the scan shows it.
        det: lowest and highest factor on the intensity.
        warnings: what the user has to know of it.
    """

    largest: float = 0.0
    det: tuple[float, float] = (1.0, 1.0)
    warnings: tuple[str, ...] = ()


class Corrector:
    """The way from a scan's grid to its target grid and back, with its corrections, on one device.

    Attributes:
        given: what is known of the distortions.
        fade: how it is interpolated where the network does not count.
        field: the bias field on the scan's grid, or None.
        guidance: of "gradnl" and "bias", whether the network is told of it.

    Args:
        ends: as for `Fade.between`.
        learnt: which of "gradnl" and "bias" the network has learnt to be told of.
        device: of the tensors that it works on; None: it works on NumPy arrays, of scans without corrections.
    """

    def __init__(
        self,
        corrections: Corrections,
        source: Grid,
        target: Grid,
        psf: PSF,
        *,
        ends: str = "fade",
        learnt=(),
        device: torch.device | str | None = "cpu",
    ) -> None:
        self.corrections, self.source, self.target, self.device = corrections, source, target, device
        self.fade = Fade.between(source, target, psf, ends)
        self.field = None if corrections.estimates else corrections.field
        self.guidance = {
            "gradnl": "gradnl" in learnt and corrections.displaces,
            "bias": "bias" in learnt and corrections.shades,
        }
        self._matrices = start_matrices(source.shape, source.voxel_size, target.shape, target.voxel_size, psf)
        if corrections.displaces:
            filled = fourier_axes(source.voxel_size, target.voxel_size, psf)
            self._matrices = tuple(m if f else None for m, f in zip(self._matrices, filled))
            sizes = [t if f else s for s, t, f in zip(source.voxel_size, target.voxel_size, filled)]
            self._between = plan(source, voxel_size=tuple(sizes))

    def with_field(self, field: torch.Tensor) -> Corrector:
        """The same with the field that was to be estimated (`estimate_field`)."""
        estimated = copy(self)
        estimated.field = field
        return estimated

    def remove_bias(self, data: np.ndarray) -> np.ndarray:
        """One frame [X, Y, Z] divided by the field; itself where there is none."""
        return data if self.field is None else data / self.field.numpy()

    def start(self, lr: Volume) -> tuple[Volume, Displacement]:
        """The network's start on the target grid from a frame [X, Y, Z] without its bias, and how it was displaced."""
        between = apply_axes(lr, self._matrices)
        if not self.corrections.displaces:
            return apart(between, lr), Displacement()
        from mrisr.ops.resample.spline import resample3d

        y = lr.new_empty(self.target.shape)
        largest, low, high, messages = 0.0, np.inf, 0.0, ()
        for rows, grid in self._slabs():
            warp, texts = self._warp(self._between, grid)
            displacement = warp.voxels()
            piece, index = _rows_for(between, warp, displacement)
            y[rows] = resample3d(piece, warp.target.shape, index, displacement=displacement, modulate=warp.gain)
            largest = max(largest, float(warp.offset.square().sum(0).max()) ** 0.5)
            low, high = min(low, float(warp.gain.min())), max(high, float(warp.gain.max()))
            messages = messages or texts  # once for a scan, not once for every few rows
        return y, Displacement(largest, (low, high), messages)

    def interpolate(self, lr: Volume) -> Volume:
        """Plain interpolation of a frame [X, Y, Z] onto the target, where the network's answer does not count."""
        return self._interpolate(lr, self.fade.cubic, ORDER, modulated=True)

    def network_weights(self, head: torch.Tensor) -> torch.Tensor:
        """How much of the network's answer counts on the target, 0 to 1; head: float [X, Y, Z], 1 in it, 0 in air."""
        return self.fade.cut_ends(self._interpolate(head, self.fade.linear, 1))

    def background(self, mask: Volume) -> Volume:
        """A mask of the scan, float [X, Y, Z], on the target's grid: bool."""
        return self._interpolate(mask, self.fade.linear, 1) > HALF

    def _interpolate(self, volume: Volume, matrices: tuple, order: int, modulated: bool = False) -> Volume:
        """A volume of the scan's grid on the target's, along the axes or displaced."""
        if not self.corrections.displaces:
            return apart(apply_axes(volume, matrices), volume)
        from mrisr.ops.resample.spline import resample3d

        out = volume.new_empty(self.target.shape)
        for rows, grid in self._slabs():
            warp, _ = self._warp(self.source, grid)
            displacement = warp.voxels()
            piece, index = _rows_for(volume, warp, displacement)
            gain = warp.gain if modulated else False
            out[rows] = resample3d(
                piece, warp.target.shape, index, displacement=displacement, modulate=gain, order=order
            )
        return out

    def restore_bias(self, volume: Volume) -> Volume:
        """A volume on the target grid, multiplied by the field (in place) where that was asked for."""
        if not (self.corrections.keeps_bias and self.corrections.shades):
            return volume
        from mrisr.ops.resample.spline import resample3d

        field = self.field.log().to(self.device)
        for rows, grid in self._slabs():
            displacement = self._warp(self.source, grid)[0].voxels() if self.corrections.displaces else None
            index = np.linalg.inv(self.source.affine) @ grid.affine
            volume[rows] *= resample3d(field, grid.shape, index, displacement=displacement, order=3).exp_()
        return volume

    def add_guidance(self, cond: Condition, order: tuple[int, int, int], mirrored: tuple[int, ...] = ()) -> Condition:
        """`cond` with what the network is told of the corrections, [1, 8, D/8, H/8, W/8].

        Args:
            order: of the stored axes, as the network sees them.
            mirrored: stored axes along which it sees the target turned round.
        """
        if not any(self.guidance.values()):
            return cond
        import torch.nn.functional as F

        bricks = brick_grid(_mirrored(self.target, mirrored))
        # A brick that the grid's end cuts off has its middle outside: it is told what its neighbour is.
        whole = tuple(max(1, n // GUIDANCE_STRIDE) for n in self.target.shape)
        pad = [p for n, k in zip(reversed(bricks.shape), reversed(whole)) for p in (0, n - k)]
        channels = F.pad(self._channels(Grid(whole, bricks.affine)), pad, mode="replicate")
        components = [0, *(1 + i for i in order), *range(4, GUIDANCE_CHANNELS)]
        guidance = channels[:, components].permute(0, 1, *(2 + i for i in order)).contiguous()
        return replace(cond, guidance=guidance)

    def _channels(self, bricks: Grid) -> torch.Tensor:
        """The channels at the voxels of a grid whose voxels are 8 of the target's, along its axes."""
        from mrisr.nn.condition import guidance_channels
        from mrisr.ops.resample.spline import resample3d

        fields, displacement = {}, None
        if self.corrections.displaces:
            warp, _ = self._warp(bricks, bricks)
            if self.guidance["gradnl"]:
                fields["displacement"] = warp.voxels() * GUIDANCE_STRIDE
                fields["log_det"] = warp.gain.clamp_min(1e-3).log()
            displacement = replace(warp, source=self.source).voxels()
        if self.guidance["bias"]:
            index = np.linalg.inv(self.source.affine) @ bricks.affine
            log = self.field.log().to(self.device)
            fields["log_bias"] = resample3d(log, bricks.shape, index, displacement=displacement, order=3)
        return guidance_channels(**fields)

    def gradnl_info(self, displacement: Displacement, model: str) -> GradnlInfo:
        """The account of the geometry."""
        nonlinearity = self.corrections.nonlinearity
        if nonlinearity is None:
            return GradnlInfo("absent", guidance="nothing to tell")
        note = _guidance_note(self.guidance["gradnl"], model) if nonlinearity.displaces else "nothing to tell"
        return GradnlInfo(
            "given",
            nonlinearity.source,
            nonlinearity.done,
            nonlinearity.why,
            displacement.largest,
            displacement.det,
            note,
        )

    def bias_info(self, model: str) -> BiasInfo:
        """The account of the bias field."""
        if self.field is None:
            return BiasInfo("absent", guidance="nothing to tell")
        state = "estimated" if self.corrections.estimates else "given"
        span = (float(self.field.min()), float(self.field.max()))
        output = "kept" if self.corrections.keeps_bias else "corrected"
        return BiasInfo(state, self.corrections.field_from, span, output, _guidance_note(self.guidance["bias"], model))

    def _warp(self, source: Grid, target: Grid) -> tuple[Warp, tuple[str, ...]]:
        """How a grid is read from another, and what was warned about on the way."""
        with CATCHING, warnings.catch_warnings(record=True) as records:
            warnings.simplefilter("always")
            warp = self.corrections.nonlinearity.warp(source, target, device=self.device)
        return warp, tuple(str(w.message) for w in records)

    def _slabs(self) -> Iterator[tuple[slice, Grid]]:
        """Rows of the target, and the grid that they are."""
        shape, affine = self.target.shape, self.target.affine
        for first in range(0, shape[0], ROWS):
            rows = slice(first, min(first + ROWS, shape[0]))
            shift = np.eye(4)
            shift[0, 3] = first
            yield rows, Grid((rows.stop - first, *shape[1:]), affine @ shift)


def estimate_field(data: np.ndarray, grid: Grid, threads: int | None) -> torch.Tensor:
    """The bias field by N4, of the mean over the frames of `data` [X, Y, Z] or [X, Y, Z, T]."""
    from mrisr.physics import bias

    scan = data if data.ndim == 3 else data.mean(axis=3)
    return bias.estimate(scan, grid.voxel_size, threads=threads)


def _mirrored(grid: Grid, axes: tuple[int, ...]) -> Grid:
    """The same voxels, counted from the other end along `axes`."""
    turn = np.eye(4)
    for axis in axes:
        turn[axis, [axis, 3]] = -1, grid.shape[axis] - 1
    return Grid(grid.shape, grid.affine @ turn)


def _rows_for(volume: torch.Tensor, warp: Warp, displacement: torch.Tensor):
    """The rows of `volume` (on warp.source) that the target's are read from, and target -> their index [4, 4]."""
    import torch

    index = np.linalg.inv(warp.source.affine) @ warp.target.affine
    line = torch.arange(warp.target.shape[0], device=displacement.device) * index[0, 0] + index[0, 3]
    at = line[:, None, None] + displacement[0]
    n = volume.shape[0]
    low = int(np.clip(np.floor(float(at.min())) - REACH, 0, n - 1))
    high = int(np.clip(np.ceil(float(at.max())) + REACH + 1, low + 1, n))
    index[0, 3] -= low
    return volume[low:high].contiguous(), index


def _guidance_note(yes: bool, model: str) -> str:
    return "told to the network" if yes else f"not told to the network: {model} was trained without it"


def learnt(meta: dict) -> tuple[str, ...]:
    """Which of "gradnl" and "bias" a network has learnt to be told of, by what its weights say of themselves."""
    if "guidance" in meta:
        return tuple(meta["guidance"])
    return tuple(name for name in ("gradnl", "bias") if meta.get("config", {}).get(name, 0) > 0)


def check_consistency(corrections: Corrections, choice: str) -> None:
    """UsageError where consistency is asked for and geometry is corrected."""
    if choice == "on" and corrections.displaces:
        raise UsageError(
            "consistency: 'on' needs a forward model along the axes, which a scan with gradient nonlinearity has not; "
            "use 'auto' or 'off', or correct the scan first: mrisr correct"
        )
