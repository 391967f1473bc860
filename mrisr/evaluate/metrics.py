"""Image quality against a reference volume.

Every metric compares `image` with `reference` (float arrays [X, Y, Z] on the same grid) in the intensities
they come in: neither is rescaled, shifted or clipped, so a method that changes the brightness of a scan pays
for it. The data range is the 99.9th percentile of the reference. Filters are separable and run as one small
dense matrix per axis (a matrix product beats an 11-tap convolution loop on a CPU: about 0.1 s per axis for
256^3).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from mrisr.errors import InputError, UsageError
from mrisr.ops.resample import apply_axes

SSIM_SIGMA, SSIM_WINDOW = 1.5, 11
HFEN_SIGMA, HFEN_WINDOW = 1.5, 15
NMI_BINS = 64
BAND_GUARD = 0.05  # cycles per voxel beyond the acquired band that the window's edge can reach


def data_range(reference: np.ndarray, name: str = "data_range: the reference") -> float:
    """The 99.9th percentile of the reference: one bright vessel must not set the scale of every PSNR.

    InputError, which begins with `name`, where that is not positive and finite.
    """
    value = float(np.percentile(np.asarray(reference), 99.9))
    if not (math.isfinite(value) and value > 0):
        raise InputError(
            f"{name}: expected a scan of magnitudes, whose 99.9th percentile is positive and finite; found {value:g}"
        )
    return value


def psnr(reference, image, mask=None, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB, 20 log10(data_range / RMSE), RMSE over `mask` (bool [X, Y, Z]).

    Equal images give inf. Raises InputError where shapes differ or the mask is empty.
    """
    reference, image, mask, span = _prepare(reference, image, mask, data_range)
    mse = float(np.mean((image[mask].astype(np.float64) - reference[mask]) ** 2))
    return math.inf if mse == 0 else 10 * math.log10(span**2 / mse)


def ssim3d(reference, image, mask=None, data_range: float | None = None) -> float:
    """Structural similarity in 3D, mean over `mask`.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 2004,
    with their Gaussian window (sigma 1.5 voxels, 11 taps per axis, normalised), K1 = 0.01, K2 = 0.03 and
    population moments; edges are reflected about the outer face of the outer voxel.
    """
    reference, image, mask, span = _prepare(reference, image, mask, data_range)
    box = _bounding_box(mask, margin=SSIM_WINDOW // 2)
    # Moments of shifted data are exact to shift back; without the shift E[x^2] - E[x]^2 loses digits in
    # float32.
    shift = float(np.mean(reference[mask])) / span
    x = torch.as_tensor(reference[box], dtype=torch.float32) / span - shift
    y = torch.as_tensor(image[box], dtype=torch.float32) / span - shift
    kernel = gaussian_kernel(SSIM_SIGMA, SSIM_WINDOW)
    blur = _Separable(x.shape, {"g": kernel}, x.dtype)

    mean_x, mean_y = blur(x, "ggg"), blur(y, "ggg")
    var_x = blur(x * x, "ggg") - mean_x**2
    var_y = blur(y * y, "ggg") - mean_y**2
    cov = blur(x * y, "ggg") - mean_x * mean_y
    mean_x, mean_y = mean_x + shift, mean_y + shift
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    score /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(score[torch.as_tensor(mask[box])].double().mean())


def hfen(reference, image, mask=None) -> float:
    """High-frequency error norm: ||LoG(image) - LoG(reference)|| / ||LoG(reference)|| over `mask`; 0 is
    perfect.

    Ravishankar and Bresler, "MR image reconstruction from highly undersampled k-space data by dictionary
    learning", IEEE TMI 2011: Laplacian of Gaussian of 1.5 voxels in a 15-tap window, here in 3D.
    """
    reference, image, mask, _ = _prepare(reference, image, mask, 1.0)
    box = _bounding_box(mask, margin=HFEN_WINDOW // 2)
    inside = torch.as_tensor(mask[box])
    scale = max(float(np.abs(reference[mask]).max()), np.finfo(np.float32).tiny)
    truth = torch.as_tensor(reference[box], dtype=torch.float32) / scale
    error = torch.as_tensor(image[box], dtype=torch.float32) / scale - truth
    kernels = {
        "g": gaussian_kernel(HFEN_SIGMA, HFEN_WINDOW),
        "d": second_derivative_kernel(HFEN_SIGMA, HFEN_WINDOW),
    }
    filters = _Separable(truth.shape, kernels, truth.dtype)

    def norm_of_log(volume: torch.Tensor) -> float:
        log = filters(volume, "dgg") + filters(volume, "gdg") + filters(volume, "ggd")
        return float(torch.linalg.vector_norm(log[inside].double()))

    below = norm_of_log(truth)
    if below == 0:
        raise InputError("hfen: the reference has no detail inside the mask (its LoG is zero everywhere)")
    return norm_of_log(error) / below  # LoG is linear: the difference of the filtered is the filtered difference


def nmi(reference, image, mask=None, data_range: float | None = None, bins: int = NMI_BINS) -> float:
    """Normalised mutual information (H(A) + H(B)) / H(A, B): 1 (independent) to 2 (one determines the other).

    Studholme, Hill and Hawkes, "An overlap invariant entropy measure of 3D medical image alignment", Pattern
    Recognition 1999. Joint histogram of `bins` equal bins over [0, data_range], outliers in the end bins.
    """
    reference, image, mask, span = _prepare(reference, image, mask, data_range)
    joint = np.bincount(
        _bin_index(reference[mask], span, bins) * bins + _bin_index(image[mask], span, bins),
        minlength=bins * bins,
    )
    joint = joint.reshape(bins, bins) / joint.sum()
    both = _entropy(joint)
    if both == 0:
        return 2.0  # one single bin in both: knowing one is knowing the other
    return (_entropy(joint.sum(1)) + _entropy(joint.sum(0))) / both


class FSC(NamedTuple):
    """frequency: [n] fraction of the coarsest axis' Nyquist frequency; correlation: [n], NaN where a shell is
    empty; coefficients: [n] how many Fourier coefficients each shell holds; area: mean of the correlation."""

    frequency: np.ndarray
    correlation: np.ndarray
    coefficients: np.ndarray
    area: float


def fsc(reference, image, mask=None, voxel_size=(1.0, 1.0, 1.0), band=None, shells: int = 40) -> FSC:
    """Fourier shell correlation Re<A, B> / (||A|| ||B||) per shell of spatial frequency.

    Harauz and van Heel, "Exact filters for general geometry three dimensional reconstruction", Optik 1986.
    Both volumes lose the reference's mean (the same number) and are multiplied by one window, the mask
    softened by 4 voxels and tapered at the array's border, so that the mask's own edge does not correlate.
    `band`: three numbers, cycles per voxel; coefficients inside that box (what the scan has measured) and up
    to BAND_GUARD outside it are then left out, and the curve tells only of what lies beyond. `voxel_size` in
    mm.
    """
    reference, image, mask, _ = _prepare(reference, image, mask, 1.0)
    box = _bounding_box(mask, margin=12)
    window = _soft_window(mask[box])
    centre = float(np.mean(reference[mask], dtype=np.float64))
    spectra = [torch.fft.rfftn((torch.as_tensor(v[box]).float() - centre) * window) for v in (reference, image)]
    shell, weight = _shell_index(window.shape, voxel_size, band, shells)

    def per_shell(values: torch.Tensor) -> np.ndarray:
        return torch.bincount(shell, (values.double() * weight).flatten(), minlength=shells + 1)[:shells].numpy()

    a, b = spectra
    cross = per_shell(a.real * b.real + a.imag * b.imag)
    power = np.sqrt(per_shell(a.abs() ** 2) * per_shell(b.abs() ** 2))
    count = per_shell(torch.ones_like(weight))
    correlation = np.full(shells, np.nan)
    np.divide(cross, power, out=correlation, where=power > 0)
    filled = correlation[~np.isnan(correlation)]
    area = float(filled.mean()) if filled.size else math.nan
    return FSC((np.arange(shells) + 0.5) / shells, correlation, count, area)


def fsc_gain(reference, image, baseline, mask=None, voxel_size=(1.0, 1.0, 1.0), *, band, shells: int = 40) -> float:
    """How much more than `baseline` the image knows beyond the acquired `band`: difference of the FSC areas
    there.

    Inside the band every method reads what the scanner wrote; only what lies beyond is a gain.
    """
    ours = fsc(reference, image, mask, voxel_size, band, shells)
    theirs = fsc(reference, baseline, mask, voxel_size, band, shells)
    return ours.area - theirs.area


# --- filters ------------------------------------------------------------------------------------------------


def gaussian_kernel(sigma: float, window: int) -> np.ndarray:
    """Sampled Gaussian of `window` (odd) taps, sigma in voxels, summing to one. float64 [window]."""
    if window % 2 == 0:
        raise UsageError(f"gaussian_kernel: window must be odd, found {window}")
    t = np.arange(window) - window // 2
    kernel = np.exp(-0.5 * (t / sigma) ** 2)
    return kernel / kernel.sum()


def filtered(volume: np.ndarray, sigma: float) -> np.ndarray:
    """`volume` [X, Y, Z] blurred by a Gaussian of `sigma` voxels (window 6 sigma, mirrored ends), float32."""
    window = 2 * max(1, math.ceil(3 * sigma)) + 1
    blur = _Separable(volume.shape, {"g": gaussian_kernel(sigma, window)}, torch.float32)
    return blur(torch.as_tensor(np.ascontiguousarray(volume, dtype=np.float32)), "ggg").numpy()


def second_derivative_kernel(sigma: float, window: int) -> np.ndarray:
    """Second derivative of the same Gaussian, made to sum to zero so that a constant gives exactly
    nothing."""
    t = np.arange(window) - window // 2
    kernel = gaussian_kernel(sigma, window) * (t**2 / sigma**4 - 1 / sigma**2)
    return kernel - kernel.mean()


def reflecting_matrix(n: int, kernel: np.ndarray) -> np.ndarray:
    """[n, n] matrix of a correlation with `kernel`, samples beyond the ends mirrored (a b c | c b a)."""
    radius = len(kernel) // 2
    index = np.arange(n)[:, None] + np.arange(-radius, radius + 1)[None]
    index = np.mod(index, 2 * n)
    index = np.minimum(index, 2 * n - 1 - index)
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], index), kernel[None])
    return matrix


class _Separable:
    """Separable filters of one shape: `filters(volume, "dgg")` runs kernel d on axis 0 and g on axes 1 and
    2."""

    def __init__(self, shape, kernels: dict[str, np.ndarray], dtype: torch.dtype):
        self._matrices = {
            name: [torch.as_tensor(reflecting_matrix(n, kernel), dtype=dtype) for n in shape]
            for name, kernel in kernels.items()
        }

    def __call__(self, volume: torch.Tensor, names: str) -> torch.Tensor:
        return apply_axes(volume, [self._matrices[name][axis] for axis, name in enumerate(names)])


# --- pieces -------------------------------------------------------------------------------------------------


def _prepare(reference, image, mask, span):
    reference, image = _to_numpy(reference), _to_numpy(image)
    if reference.ndim != 3 or reference.shape != image.shape:
        raise InputError(
            f"metrics: reference and image must be 3D and on the same grid, found {reference.shape} and {image.shape}"
        )
    for name, volume in (("reference", reference), ("image", image)):
        if not np.isfinite(volume).all():
            raise InputError(f"metrics: the {name} holds {np.count_nonzero(~np.isfinite(volume))} NaN or Inf voxels")
    mask = np.ones(reference.shape, bool) if mask is None else _to_numpy(mask).astype(bool)
    if mask.shape != reference.shape or not mask.any():
        raise InputError(f"metrics: the mask must be non-empty and of shape {reference.shape}, found {mask.shape}")
    return reference, image, mask, data_range(reference) if span is None else float(span)


def _to_numpy(volume) -> np.ndarray:
    return volume.detach().cpu().numpy() if isinstance(volume, torch.Tensor) else np.asarray(volume)


def _bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, slice, slice]:
    """Box of the mask with `margin` voxels around it: air beyond a filter's reach changes no voxel of the
    mask."""
    box = []
    for axis, n in enumerate(mask.shape):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append(slice(max(0, hit[0] - margin), min(n, hit[-1] + margin + 1)))
    return tuple(box)


def _bin_index(values: np.ndarray, span: float, bins: int) -> np.ndarray:
    return np.clip(values * (bins / span), 0, bins - 1).astype(np.int64)


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _soft_window(mask: np.ndarray) -> torch.Tensor:
    # A window's edge smears every frequency over its neighbours. Softened by 4 voxels it reaches 0.05 cycles
    # per voxel, the guard below; by less, what lies inside the acquired band would seem to be found beyond
    # it.
    window = torch.as_tensor(filtered(mask, 4.0))
    for axis, n in enumerate(mask.shape):
        ramp = max(2, min(16, n // 4))
        distance = np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.5
        taper = np.sin(0.5 * np.pi * np.minimum(distance / ramp, 1.0)) ** 2
        shape = [-1 if a == axis else 1 for a in range(3)]
        window *= torch.as_tensor(taper, dtype=torch.float32).reshape(shape)
    return window


def _shell_index(shape, voxel_size, band, shells: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Shell number of every rfftn coefficient (`shells` = outside the sphere or inside the band), and how
    many coefficients of the full transform it stands for (1 or 2)."""
    cycles = [torch.fft.fftfreq(n) for n in shape[:2]] + [torch.fft.rfftfreq(shape[2])]
    axes = torch.meshgrid(*cycles, indexing="ij")
    nyquist = 0.5 / max(voxel_size)
    radius = sum((f / v) ** 2 for f, v in zip(axes, voxel_size, strict=True)).sqrt() / nyquist
    index = (radius * shells).long().clamp(max=shells)
    if band is not None:
        measured = torch.ones_like(radius, dtype=torch.bool)
        for f, edge in zip(axes, band, strict=True):
            measured &= f.abs() <= edge + BAND_GUARD
        index[measured] = shells
    weight = torch.full(index.shape, 2.0, dtype=torch.float64)
    weight[..., 0] = 1
    if shape[2] % 2 == 0:
        weight[..., -1] = 1
    return index.flatten(), weight
