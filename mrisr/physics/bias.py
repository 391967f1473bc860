"""Bias fields: the smooth multiplicative shading of coils, made up, estimated, taken out and put back.

A scan is v = b * u with b > 0 smooth. A field is float32 [X, Y, Z] on the scan's own grid with geometric mean about 1
over the head, so that taking it out keeps the intensity scale. What transmit fields do to *contrast* at 7 T is not
multiplicative, and no field undoes it.

Sources: N4, Tustison et al., IEEE TMI 29, 2010; from T1w and T2w, Glasser et al., NeuroImage 80, 2013 and the HCP
pipelines (BiasFieldCorrection_sqrtT1wXT1w); random fields, Billot et al., Medical Image Analysis 86, 2023 (SynthSR).
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

from mrisr import grid as grids
from mrisr.errors import InputError, MrisrWarning, UsageError
from mrisr.ops.resample import apply_axes, interpolation_matrix, resample3d
from mrisr.physics.foreground import certain
from mrisr.physics.intensity import intensity_scale

STEEPEST = 100.0  # largest / smallest value of a field that is believed


def bias_field(shape, generator: torch.Generator, log_std: float = 0.3, lattice: float = 0.025) -> torch.Tensor:
    """A random field, float32 [X, Y, Z]: log-domain Gaussian lattice (SynthSR: std 0.3, lattice 0.025).

    Each axis has max(2, round(lattice * n)) control points, joined by cubic B-splines; geometric mean about 1.
    """
    coarse = tuple(max(2, int(round(lattice * n))) for n in shape)
    nodes = torch.randn(coarse, generator=generator, dtype=torch.float32) * log_std
    matrices = [interpolation_matrix(c, n, c / n, "bspline", 3) for c, n in zip(coarse, shape)]
    return apply_axes(nodes, matrices).exp()


def check_field(field, shape, name: str = "bias field") -> None:
    """InputError naming `name` unless `field` [..., X, Y, Z] has `shape` and can be divided by."""
    if tuple(field.shape[-3:]) != tuple(shape):
        raise InputError(
            f"{name}: its grid is {tuple(field.shape[-3:])}, the scan's {tuple(shape)}; give a field on the scan's grid"
        )
    values = torch.as_tensor(field).detach()
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{name}: has values that are not finite; expected a positive factor in every voxel")
    if low <= 0:
        count = int((values <= 0).sum())
        raise InputError(
            f"{name}: {count} voxels are zero or below (lowest {low:.4g}); expected a positive factor in every voxel, "
            "outside of the head too"
        )
    if high > STEEPEST * low:
        raise InputError(f"{name}: ranges from {low:.4g} to {high:.4g}; a bias field varies by less than {STEEPEST:g}x")


def check_same_grid(field: grids.Grid, scan: grids.Grid, name: str = "bias field") -> None:
    """InputError naming `name` unless the two grids have one shape and lie within a tenth of a voxel of each other."""
    if field.shape != scan.shape:
        raise InputError(f"{name}: its grid is {field.shape}, the scan's {scan.shape}; give one on the scan's grid")
    apart = np.linalg.inv(scan.affine) @ field.affine - np.eye(4)
    farthest = np.abs(apart[:3] @ np.array([*scan.shape, 1.0])).max()
    if farthest > 0.1 or np.abs(apart[:3, :3]).max() > 1e-2:
        raise InputError(f"{name}: lies {farthest:.3g} voxels away from the scan; give one on the scan's grid")


def remove(x: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """x / field; x [..., X, Y, Z], field [..., X, Y, Z]. Differentiable in both. InputError as `check_field`."""
    check_field(field, x.shape[-3:])
    return x / field.to(x)


def restore(x: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
    """x * field: undoes `remove`. Differentiable in both. InputError as `check_field`."""
    check_field(field, x.shape[-3:])
    return x * field.to(x)


def on_grid(field: torch.Tensor, source: grids.Grid, target: grids.Grid, order: int = 3) -> torch.Tensor:
    """`field` [..., X, Y, Z] of `source` on the voxels of `target`, interpolated in the log domain: stays positive."""
    check_field(field, source.shape)
    matrix = np.linalg.inv(source.affine) @ target.affine
    return resample3d(field.log(), target.shape, matrix, order=order).exp()


def guidance(field: torch.Tensor, source: grids.Grid, target: grids.Grid) -> torch.Tensor:
    """What a network is told of a field: its logarithm on the target grid, [1, X', Y', Z']."""
    return on_grid(field, source, target).log()[None]


def estimate(
    scan: np.ndarray | torch.Tensor,
    voxel_size,
    *,
    mask: np.ndarray | torch.Tensor | None = None,
    shrink: int = 4,
    spacing: float = 180.0,
    iterations: tuple[int, ...] = (50, 50, 50, 50),
    threads: int | None = None,
) -> torch.Tensor:
    """The bias field of one scan by N4 (SimpleITK): float32 [X, Y, Z], geometric mean 1 within the mask.

    Args:
        scan: [X, Y, Z], magnitudes; voxels at or below 0 take no part (their logarithm does not exist).
        voxel_size: mm, 3 values.
        mask: bool, like scan: where tissue is; None: voxels above 15 % of the intensity scale.
        shrink: the estimate is made on every `shrink`-th voxel; fewer along axes with fewer than 32 voxels.
        spacing: of the B-spline's control points, mm.
        iterations: at most, per level; each level halves the spacing.
        threads: CPU threads; None: as many as SimpleITK takes by itself.

    Raises:
        InputError: SimpleITK is missing, or too little of the scan is tissue.
    """
    sitk = _simpleitk()
    data = np.asarray(scan, np.float32)
    if data.ndim != 3:
        raise UsageError(f"bias.estimate: expected a scan [X, Y, Z], found shape {data.shape}")
    inside = _mask(data, mask)
    image, where = (sitk.GetImageFromArray(np.ascontiguousarray(a.T)) for a in (data, inside.astype(np.uint8)))
    for each in (image, where):
        each.SetSpacing([float(v) for v in voxel_size])
    factors = [max(1, min(int(shrink), n // 8)) for n in data.shape]
    small, where = (sitk.Shrink(each, factors) for each in (image, where))
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([int(i) for i in iterations])
    if threads is not None:
        n4.SetNumberOfThreads(int(threads))
    # A B-spline of order 3 has three control points more than it has spans.
    extents = [n * v for n, v in zip(data.shape, voxel_size)]
    n4.SetNumberOfControlPoints([max(1, round(e / spacing)) + 3 for e in extents])
    try:
        n4.Execute(small, where)
        log_field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"bias: N4 failed ({reason}); give a field, or leave the bias as it is") from error
    return _normalised(torch.from_numpy(np.ascontiguousarray(log_field, dtype=np.float32)).exp(), inside)


def estimate_t1w_t2w(t1w, t2w, voxel_size, *, mask=None, smoothing: float = 5.0, lower: float = 0.5) -> torch.Tensor:
    """The bias field that a T1w and a T2w scan of one head on one grid share (the HCP way).

    The contrasts of the two are nearly opposite, so that sqrt(T1w * T2w) is the field times a nearly constant image.
    It is divided by its mean; voxels that stand more than `lower` standard deviations below what a Gaussian of
    `smoothing` mm finds around them are no brain tissue and leave; the rest is eroded by a voxel, continued to the
    whole field of view by its nearest voxel, and smoothed.

    Args:
        t1w, t2w: [X, Y, Z] on one grid, magnitudes.
        voxel_size: mm, 3 values.
        mask: bool [X, Y, Z]: the brain; None: where both are above 15 % of their intensity scales.
        smoothing: sigma, mm.

    Returns:
        float32 [X, Y, Z], geometric mean 1 within the mask.
    """
    from scipy import ndimage

    first, second = np.asarray(t1w, np.float64), np.asarray(t2w, np.float64)
    if first.shape != second.shape:
        raise InputError(f"bias: T1w is {first.shape}, T2w is {second.shape}; resample them onto one grid first")
    inside = _mask(first, mask) & _mask(second, mask)
    product = np.sqrt(np.abs(first * second))
    product /= product[inside].mean()
    sigma = [smoothing / float(v) for v in voxel_size]

    def smooth_within(values, where):
        weight = ndimage.gaussian_filter(where.astype(np.float64), sigma)
        return ndimage.gaussian_filter(values * where, sigma) / np.maximum(weight, 1e-6)

    ratio = product / np.maximum(smooth_within(product, inside), 1e-6)
    tissue = inside & (ratio >= ratio[inside].mean() - lower * ratio[inside].std())
    eroded = ndimage.binary_erosion(tissue)
    tissue = eroded if eroded.sum() >= 0.1 * tissue.sum() else tissue
    nearest = ndimage.distance_transform_edt(~tissue, return_distances=False, return_indices=True, sampling=voxel_size)
    field = ndimage.gaussian_filter(product[tuple(nearest)], sigma)
    return _normalised(torch.from_numpy(field.astype(np.float32)), inside)


def _mask(data: np.ndarray, mask) -> np.ndarray:
    if mask is not None:
        inside = np.asarray(mask).astype(bool)
        if inside.shape != data.shape:
            raise InputError(f"bias: the mask is {inside.shape}, the scan {data.shape}; give one on the scan's grid")
    else:
        offset, scale = intensity_scale(data)
        inside = certain(torch.from_numpy((data - offset) / scale)).numpy()
    inside = inside & (data > 0)
    if inside.sum() < 100:
        raise InputError(f"bias: {int(inside.sum())} voxels of tissue above zero; expected a scan of a head")
    return inside


def _normalised(field: torch.Tensor, inside: np.ndarray) -> torch.Tensor:
    """`field` divided by its geometric mean within `inside`, and a warning where it is unlikely."""
    field = field / field[torch.from_numpy(inside)].log().mean().exp()
    check_field(field, inside.shape, "the estimated bias field")
    within = field[torch.from_numpy(inside)]
    if float(within.max()) > 10 * float(within.min()):
        warnings.warn(
            f"the estimated bias field ranges from {float(within.min()):.2g} to {float(within.max()):.2g} within the "
            "head; look at it before you use it",
            MrisrWarning,
            stacklevel=3,
        )
    return field


def _simpleitk():
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError(
            f"bias: N4 needs SimpleITK ({error}); install it: pip install '.[bias]', or give the field as a file"
        ) from error
    return SimpleITK
