"""The scanner, forward: what a coarse scan of a fine volume would have been.

Order: contrast -> bias field -> blur or k-space cut -> decimation -> noise last. The blur and the decimation
are one matrix per axis: the transfer function of the point spread, evaluated in the Fourier domain at the
centre-aligned positions of the coarse grid, so that any real factor works and the adjoint is the transpose. A gap
between slices needs nothing of its own: the spacing is the coarse voxel, the thickness the width of the profile. What a
scanner leaves out of the k-space of the coarse scan (partial Fourier, its corners) and what it appends (zeros) come
after the noise, which is measured too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mrisr import grid as grids
from mrisr.errors import UsageError
from mrisr.ops.resample import apply_axes, fourier_matrix, interpolation_matrix, transposed
from mrisr.physics.psf import PSF, gaussian_transfer

if TYPE_CHECKING:
    import torch

    Volume = TypeVar("Volume", np.ndarray, torch.Tensor)

SLICE_KINDS = ("gaussian", "supergaussian")
MEAN_WIDTHS = 5.75  # full width at half maximum of what counts as the local mean, in acquired widths


def axis_matrix(n_hr: int, n_lr: int, hr_voxel: float, lr_voxel: float, psf) -> np.ndarray | None:
    """Acquisition of one axis, [n_lr, n_hr]; None where it is the identity."""
    positions = grids.axis_positions(n_hr, n_lr, lr_voxel / hr_voxel)
    uncut = psf.kind not in SLICE_KINDS and psf.window == "box" and psf.width <= hr_voxel * (1 + 1e-6)
    if uncut and n_hr == n_lr and np.allclose(positions, np.arange(n_hr), atol=1e-9):
        return None
    # Nothing finer than the fine grid itself can be acquired from it.
    return fourier_matrix(n_hr, positions, lambda f: psf.transfer(f / hr_voxel))


@dataclass(frozen=True)
class ForwardModel:
    """Linear acquisition H: fine grid -> coarse grid, separable along the stored axes.

    Attributes:
        hr_shape, lr_shape: voxels of the two grids.
        matrices: three of float64 [n_lr, n_hr], or None where an axis is untouched.
    """

    hr_shape: tuple[int, int, int]
    lr_shape: tuple[int, int, int]
    matrices: tuple

    @classmethod
    def between(cls, hr_shape, hr_voxel, lr_shape, lr_voxel, psf: PSF) -> ForwardModel:
        """From two centre-aligned grids (voxel sizes in mm) and the point spread of each axis."""
        matrices = tuple(
            axis_matrix(int(n), int(m), float(h), float(v), p)
            for n, m, h, v, p in zip(hr_shape, lr_shape, hr_voxel, lr_voxel, psf)
        )
        return cls(tuple(map(int, hr_shape)), tuple(map(int, lr_shape)), matrices)

    def forward(self, x: Volume) -> Volume:
        """H x: [..., X, Y, Z] on the fine grid -> [..., x, y, z] on the coarse one."""
        self._check(x, self.hr_shape, "forward")
        return apply_axes(x, self.matrices)

    def adjoint(self, y: Volume) -> Volume:
        """H^T y: <Hx, y> = <x, H^T y>."""
        self._check(y, self.lr_shape, "adjoint")
        return apply_axes(y, transposed(self.matrices))

    def _check(self, x, shape, name):
        if tuple(x.shape[-3:]) != shape:
            raise UsageError(f"ForwardModel.{name}: expected [..., {shape}], found x.shape={tuple(x.shape)}")


def coarse_grid(hr: grids.Grid, factor) -> grids.Grid:
    """The coarse grid of a scan whose voxels are `factor` (number or three, > 0) times as long, same centre."""
    factor = np.broadcast_to(np.asarray(factor, np.float64), 3)
    return grids.plan(hr, voxel_size=tuple(float(v) for v in np.asarray(hr.voxel_size) * factor))


def start_matrices(lr_shape, lr_voxel, hr_shape, hr_voxel, psf: PSF) -> tuple:
    """Per-axis interpolation that makes the network's start `y` from a coarse scan.

    Fourier where the axis is a cut of k-space (all that was measured comes back exactly), quintic B-spline across
    slices (whose samples alias, so that a trigonometric polynomial would ring). None where nothing changes.
    """
    matrices, filled = [], fourier_axes(lr_voxel, hr_voxel, psf)
    for n_in, v_in, n_out, v_out, fourier in zip(lr_shape, lr_voxel, hr_shape, hr_voxel, filled):
        ratio = float(v_out) / float(v_in)
        if n_in == n_out and abs(ratio - 1.0) < 1e-9:
            matrices.append(None)
            continue
        matrices.append(interpolation_matrix(n_in, n_out, ratio, "fourier" if fourier else "bspline"))
    return tuple(matrices)


def fourier_axes(lr_voxel, hr_voxel, psf: PSF) -> tuple[bool, bool, bool]:
    """Which axes a start is interpolated along by Fourier sums: all but slices on a finer target."""
    return tuple(p.kind not in SLICE_KINDS or float(o) > float(i) for i, o, p in zip(lr_voxel, hr_voxel, psf))


def band_matrices(shape, voxel, psf: PSF) -> tuple | None:
    """Per axis, the projection [n, n] on the frequencies that a cut of k-space measured; None across slices.

    The start `y` of such a scan holds that band exactly as it was measured. What a network adds there can only be
    wrong (or smooth away signal that looks like noise), so `outside_band` removes it from every residual. A slice
    profile attenuates and aliases instead of cutting: no band is exact (inference keeps the local mean there).
    """
    if any(p.kind in SLICE_KINDS for p in psf):
        return None
    return tuple(
        fourier_matrix(int(n), np.arange(n), lambda f, p=p, v=v: (f < 0.5 * min(1.0, v / p.width)) * 1.0)
        for n, v, p in zip(shape, map(float, voxel), psf)
    )


def mean_matrices(shape, voxel, psf: PSF) -> tuple:
    """Per axis, a smoothing [n, n] over `MEAN_WIDTHS` acquired widths, which keeps constants.

    For scans without an exact band: what is left of a residual without this part (`outside_band`) leaves the local
    mean of the start as it is, which every profile measures. Measured on slices of 4 mm: no difference in PSNR (0.01
    dB), and no brightness that the network could change. Narrower, a thin column between nothing loses its level
    (tests/infer/test_levels.py); wider, tissue beside an implant does.
    """
    widths = [MEAN_WIDTHS * max(p.width, v) for p, v in zip(psf, map(float, voxel))]
    return tuple(
        fourier_matrix(int(n), np.arange(n), lambda f, w=w, v=v: gaussian_transfer(f / v, w))
        for n, v, w in zip(shape, map(float, voxel), widths)
    )


def outside_band(residual: Volume, matrices: tuple | None, denoise: float = 0.0) -> Volume:
    """`residual` [..., X, Y, Z] without its part in the measured band of `band_matrices`.

    Args:
        denoise: 0 to 1: the share of that part that stays, for it is what the network takes for noise.
    """
    if matrices is None or denoise == 1:
        return residual
    return residual - apply_axes(residual, matrices) * (1 - denoise)


def kspace_mask(shape, partial=(1.0, 1.0, 1.0), elliptical: bool = False) -> torch.Tensor:
    """Which frequencies of a grid [X, Y, Z] a scanner measures: bool, in the order of `torch.fft.fftn`.

    Args:
        partial: of each axis, the part of k-space that is measured, above 0.5 and up to 1: low and positive
            frequencies are, the most negative ones are not (partial Fourier).
        elliptical: only what lies within the ellipsoid that touches the edges of k-space, as many 3D sequences do.
    """
    if len(partial) != 3 or not all(0.5 < float(p) <= 1.0 for p in partial):
        raise UsageError(f"kspace_mask: partial must be three numbers above 0.5 and up to 1, found {partial}")
    import torch

    mask, radius = torch.ones(tuple(shape), dtype=torch.bool), torch.zeros(())
    for axis, (n, part) in enumerate(zip(shape, partial)):
        f = torch.fft.fftfreq(int(n), dtype=torch.float64)
        line = [1] * axis + [-1] + [1] * (2 - axis)
        mask = mask & (f >= 0.5 - float(part) - 1e-9).reshape(line)
        radius = radius + (2 * f).square().reshape(line)
    return mask & (radius <= 1.0 + 1e-9) if elliptical else mask


def sampled(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`x` [..., X, Y, Z], real or complex, with the frequencies outside of `mask` set to zero: complex, like x.

    A projection: it is its own adjoint, <sampled(x), y> = <x, sampled(y)>.
    """
    import torch

    if tuple(x.shape[-3:]) != tuple(mask.shape):
        raise UsageError(f"sampled: the mask is {tuple(mask.shape)}, x.shape={tuple(x.shape)}")
    return torch.fft.ifftn(torch.fft.fftn(x, dim=(-3, -2, -1)) * mask.to(x.device), dim=(-3, -2, -1))


def zero_fill_matrices(shape, factor) -> tuple:
    """Interpolation of a scan [X, Y, Z] by appended zeros to `factor` (>= 1, one number or three) times as many voxels
    per axis, centre-aligned: three of float64 [n_out, n_in], or None where nothing changes."""
    factors = np.broadcast_to(np.asarray(factor, np.float64), 3)
    if not (np.isfinite(factors).all() and factors.min() >= 1):
        raise UsageError(f"zero_fill: expected factors of 1 or more, found {factor}")
    return tuple(
        None if f == 1 else interpolation_matrix(int(n), int(np.floor(n * f + 0.5 + 1e-4)), 1 / f, "fourier")
        for n, f in zip(shape, factors.tolist())
    )


def zero_fill(x: torch.Tensor, factor) -> torch.Tensor:
    """`x` [..., X, Y, Z], real or complex, on `zero_fill_matrices` times as many voxels; differentiable."""
    import torch

    matrices = zero_fill_matrices(x.shape[-3:], factor)
    if x.is_complex():
        return torch.complex(apply_axes(x.real, matrices), apply_axes(x.imag, matrices))
    return apply_axes(x, matrices)


def _complex_noise(x: torch.Tensor, sigma: float, generator: torch.Generator):
    """(x + sigma * normal, sigma * normal): the two channels of a receiver."""
    import torch

    real = x + sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return real, sigma * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def rician(x: torch.Tensor, sigma, generator: torch.Generator) -> torch.Tensor:
    """Magnitude of x plus complex Gaussian noise of standard deviation `sigma` per channel (Gudbjartsson 1995).

    `generator` lives on the device of x.
    """
    import torch

    return torch.hypot(*_complex_noise(x, sigma, generator))


def degrade(
    x: torch.Tensor,
    model: ForwardModel,
    *,
    bias=None,
    noise_sigma: float = 0.0,
    generator=None,
    mask: torch.Tensor | None = None,
    stored: float | tuple[float, float, float] = 1.0,
):
    """A scan of `x` (magnitude, [..., X, Y, Z] on the fine grid) by the scanner `model`.

    Args:
        bias: multiplicative field on the fine grid, or None.
        noise_sigma: standard deviation of the noise of each complex channel, in the units of `x`; 0: no noise.
        generator: torch.Generator on the device of `x`, needed where there is noise.
        mask: `kspace_mask` of the coarse grid, or None: all of k-space is measured.
        stored: voxels stored per voxel acquired, 1 or more, one number or three: zero-filling.

    Returns:
        [..., x, y, z] on the coarse grid, or finer by `stored`.
    """
    if noise_sigma < 0 or not np.isfinite(noise_sigma):
        raise UsageError(f"degrade: noise_sigma must be finite and >= 0, found {noise_sigma}")
    if noise_sigma > 0 and generator is None:
        raise UsageError("degrade: noise needs a torch.Generator, so that the result can be repeated")
    y = model.forward(x if bias is None else x * bias)
    plain = mask is None and np.all(np.asarray(stored) == 1)
    if plain:
        return rician(y, noise_sigma, generator) if noise_sigma > 0 else y
    if noise_sigma > 0:
        import torch

        y = torch.complex(*_complex_noise(y, noise_sigma, generator))
    if mask is not None:
        y = sampled(y, mask)
    return zero_fill(y, stored).abs()
