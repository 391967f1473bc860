"""Corrections in training pairs: made-up gradient coils and known bias fields, undone as inference undoes them.

A patch lies somewhere in the bore of a made-up scanner. What shifts it as a whole changes nothing, so that the crop is
displaced by the rest only; the network is told the whole displacement, as it is at inference. The fine crop is shaded
and displaced, then acquired; the start y is the acquired scan brought back onto the undistorted fine grid in one
interpolation, times |det|, divided by the field. That interpolation is not the one whose measured band comes back
exactly: displaced pairs have no band (`mrisr.physics.degrade.band_matrices`), in training and inference alike. Pairs
with a known field keep theirs: a field is so smooth that dividing by it moves nothing across the edge of the band.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mrisr.grid import Grid
from mrisr.nn.condition import guidance_channels
from mrisr.nn.vector import brick_grid
from mrisr.ops.resample import apply_axes, resample3d
from mrisr.physics import coils, gradnl, smooth
from mrisr.physics.bias import bias_field
from mrisr.physics.degrade import SLICE_KINDS
from mrisr.physics.psf import PSF

LARGEST = 8.0  # mm, within 110 mm of the isocentre
DEGREE = 7  # of the made-up coils
FARTHEST = 110.0  # mm, from the isocentre to the middle of a patch
VOXEL = (0.6, 1.1)  # mm
RELATIVE = 8.0  # voxels that a crop may be displaced by relative to its middle: its margin is twice as wide
POINTS = 6  # Chebyshev points along a crop
ROUNDS = 8  # of the fixed-point iteration for the inverse
AROUND = 12  # fine voxels kept around the core for the spline's prefilter and the displacement
LOG_STD = (0.1, 0.4)  # of known bias fields


@dataclass(frozen=True, eq=False)
class BoreDistortion:
    """A coil's displacement as a crop of `size`^3 sees it: in voxels at voxel positions, zero in its middle.

    Within a crop it is smooth enough for a product of polynomials through `POINTS`^3 points, which cost far less than
    solid harmonics.

    Attributes:
        size: voxels along the crop.
        series: float64 [12, POINTS^3], Chebyshev coefficients of the displacement and of its gradient [3, 3].
        bulk: float64 [3, 1] voxels, the displacement of the middle.
        voxel: mm.
    """

    size: int
    series: torch.Tensor
    bulk: torch.Tensor
    voxel: float

    @classmethod
    def random(cls, rng: np.random.Generator, size: int) -> BoreDistortion:
        """A made-up coil, and a crop of any orientation somewhere in its bore."""
        coil = coils.random_coil(rng, LARGEST * rng.random() ** 0.5, DEGREE)
        voxel, turn = float(rng.uniform(*VOXEL)), np.linalg.qr(rng.normal(size=(3, 3)))[0]
        direction = rng.normal(size=3)
        centre = FARTHEST * rng.random() ** (1 / 3) * direction / np.linalg.norm(direction)
        affine = np.eye(4)
        affine[:3, :3] = turn * voxel
        affine[:3, 3] = centre - affine[:3, :3] @ np.full(3, (size - 1) / 2)
        node = np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS)
        points = smooth.world(affine, [(node + 1) * (size - 1) / 2] * 3)
        turn = torch.from_numpy(turn)
        shift = turn.T @ coil.displacement_at(points) / voxel
        gradient = torch.einsum("ai,abp,bj->ijp", turn, coil.gradient_at(points), turn)
        fit = torch.from_numpy(np.linalg.inv(np.polynomial.chebyshev.chebvander(node, POINTS - 1)))
        values = torch.cat([shift, gradient.flatten(0, 1)])
        series = torch.einsum("cijk,ai,bj,dk->cabd", values.reshape(12, *[POINTS] * 3), fit, fit, fit).flatten(1)
        bulk = series[:3] @ _basis(torch.zeros(3, 1, dtype=torch.float64))
        series[:3, 0] -= bulk[:, 0]
        calm = min(1.0, RELATIVE / max(1e-6, float((shift - bulk).norm(dim=0).max())))
        return cls(size, series * calm, bulk * calm, voxel)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """[d, det] [4, P] at points [3, P] (index): where the scan shows them, and what restores their intensity."""
        values = self.series @ self._basis(points)
        return torch.cat([values[:3], gradnl.determinant(values[3:].unflatten(0, (3, 3)))])

    def inverse(self, points: torch.Tensor) -> torch.Tensor:
        """[u, det] [4, P] with u + d(points + u) = 0: what the scan shows at a point, and how it was spread."""
        u = torch.zeros_like(points)
        for _ in range(ROUNDS):
            u = -self.series[:3] @ self._basis(points + u)
        return torch.cat([u, self.forward(points + u)[3:]])

    def _basis(self, points: torch.Tensor) -> torch.Tensor:
        return _basis(2 * points / (self.size - 1) - 1)


def _basis(t: torch.Tensor) -> torch.Tensor:
    """Products of Chebyshev polynomials at t [3, P], -1 to 1: [POINTS^3, P]."""
    rows = [torch.ones_like(t), t]
    while len(rows) < POINTS:
        rows.append(2 * t * rows[-1] - rows[-2])
    x, y, z = torch.stack(rows, dim=1)
    return (x[:, None, None] * y[:, None] * z).flatten(0, 2)


@dataclass(frozen=True, eq=False)
class Guided:
    """What happens to a pair of `patch`^3 voxels in the middle of a crop of `size`^3; either part may be None.

    Attributes:
        distortion: of the gradients.
        field: float32 [size]^3, the known bias field on the undistorted crop.
    """

    size: int
    patch: int
    distortion: BoreDistortion | None
    field: torch.Tensor | None

    @property
    def core(self) -> slice:
        margin = (self.size - self.patch) // 2
        return slice(margin, margin + self.patch)

    def acquired(self, x: torch.Tensor, psf: PSF) -> torch.Tensor:
        """The crop [size]^3 as the scanner shows it: shaded, then displaced."""
        x = x if self.field is None else x * self.field.to(x)
        if self.distortion is None:
            return x
        shift = smooth.polynomial(self.distortion.inverse, Grid(x.shape, np.eye(4)), POINTS - 1, device=x.device)
        # A cubic spline keeps 99 % of what half the bandwidth holds; where more is acquired, a quintic one has to.
        order = 3 if min(p.width for p in psf) >= 2 else 5
        return resample3d(x, x.shape, np.eye(4), displacement=shift[:3], order=order).div_(shift[3])

    def corrected(self, y: torch.Tensor) -> torch.Tensor:
        """A start [patch]^3 divided by the field."""
        return y if self.field is None else y / self.field[(self.core,) * 3].to(y)

    def start(self, scan: torch.Tensor, matrices, positions, psf) -> torch.Tensor:
        """The distorted scan brought back onto the core: [patch]^3.

        k-space that was cut is filled with zeros first (its axes go to the fine grid, which loses nothing), slices are
        left as they are; then one spline interpolation does the rest.

        Args:
            matrices: [size, n] per axis, the start of an undistorted scan; None where nothing changes.
            positions: float64 [size] per axis, where the fine voxels lie in the scan (index).
        """
        grid = self._core_grid()
        shift = smooth.polynomial(self.distortion.forward, grid, POINTS - 1, device=scan.device)
        first = max(0, self.core.start - AROUND)
        window = slice(first, self.core.stop + AROUND)
        filled, index = [], np.zeros((3, 4))
        for axis, (matrix, at, p) in enumerate(zip(matrices, positions, psf)):
            thick = p.kind in SLICE_KINDS and matrix is not None
            index[axis, axis] = step = at[1] - at[0] if thick else 1.0
            index[axis, 3] = at[self.core.start] if thick else self.core.start - first
            shift[axis] *= step
            filled.append(None if thick else np.eye(self.size)[window] if matrix is None else matrix[window])
        return resample3d(apply_axes(scan, filled), grid.shape, index, displacement=shift[:3]).mul_(shift[3])

    def channels(self) -> torch.Tensor:
        """The guidance [1, 8, patch/8, patch/8, patch/8]."""
        fields = {}
        if self.field is not None:
            inside = self.field[(self.core,) * 3].log()
            fields["log_bias"] = torch.nn.functional.avg_pool3d(inside[None], 8)[0]
        if self.distortion is not None:
            bricks = smooth.voxelwise(self.distortion.forward, brick_grid(self._core_grid()))
            fields["displacement"] = bricks[:3] + self.distortion.bulk.to(bricks)[..., None, None]
            fields["log_det"] = bricks[3].log()
        return guidance_channels(**fields)

    def _core_grid(self) -> Grid:
        affine = np.eye(4)
        affine[:3, 3] = self.core.start
        return Grid((self.patch,) * 3, affine)


def random_guidance(rng: np.random.Generator, size: int, patch: int, gradnl: float, bias: float) -> Guided | None:
    """Draw whether a pair is displaced (probability `gradnl`) and whether its shading is known (`bias`), and both.

    `rng` decides everything, and is nobody else's: what else is random about a pair does not depend on this.
    """
    displaced, shaded = rng.random() < gradnl, rng.random() < bias
    if not (displaced or shaded):
        return None
    distortion = BoreDistortion.random(rng, size) if displaced else None
    field = None
    if shaded:
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        field = bias_field((size,) * 3, generator, float(rng.uniform(*LOG_STD)))
    return Guided(size, patch, distortion, field)
