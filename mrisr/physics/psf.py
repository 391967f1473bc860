"""Point spread functions of the acquisition, one per axis, as transfer functions.

`width` is the acquired voxel size in mm (for slices: the thickness, full width at half maximum), which is *not* the
stored voxel size where a scanner zero-fills or slices overlap. Profiles: the cut of k-space, a Gaussian
slice profile of sigma = thickness / 2.355, a super-Gaussian exp(-ln 2 |2x / thickness|^4) as the sharper one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mrisr.errors import UsageError

KINDS = ("unknown", "kspace", "gaussian", "supergaussian")
WINDOWS = ("box", "hann", "tukey")
WIDTHS = (0.01, 100.0)  # mm; what is finer or coarser is no acquisition of a head
FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))
# A voxel this much longer than the shortest one is a slice of a 2D acquisition, not an anisotropic 3D matrix.
THICK_SLICE_RATIO = 1.8


@dataclass(frozen=True)
class AxisPSF:
    """How one axis was acquired.

    Attributes:
        kind: "kspace" (a cut of k-space: sinc), "gaussian" or "supergaussian" (slice profiles) or "unknown"
            (handled as a k-space cut, but the network is told that nobody knows).
        width: acquired voxel size or slice thickness, mm.
        window: apodisation of a k-space cut: "box", "hann" or "tukey".
    """

    kind: str
    width: float
    window: str = "box"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UsageError(f"psf: kind must be one of {KINDS}, found {self.kind!r}")
        if self.window not in WINDOWS:
            raise UsageError(f"psf: window must be one of {WINDOWS}, found {self.window!r}")
        if not WIDTHS[0] <= self.width <= WIDTHS[1]:
            raise UsageError(f"psf: width must be from {WIDTHS[0]:g} to {WIDTHS[1]:g} mm, found {self.width!r}")

    def transfer(self, frequency: np.ndarray) -> np.ndarray:
        """Gain at `frequency` (cycles per mm, >= 0); 1 at zero."""
        f = np.asarray(frequency, np.float64)
        if self.kind == "gaussian":
            return gaussian_transfer(f, self.width)
        if self.kind == "supergaussian":
            return _supergaussian_transfer(f * self.width)
        cut = 0.5 / self.width
        # The relative margin keeps a frequency that equals the cut in exact arithmetic on one side of it.
        inside = f < cut * (1 - 1e-9)
        if self.window == "hann":
            return np.where(inside, 0.5 + 0.5 * np.cos(np.pi * np.minimum(f / cut, 1.0)), 0.0)
        if self.window == "tukey":
            ramp = np.clip((f / cut - 0.75) / 0.25, 0.0, 1.0)
            return np.where(inside, 0.5 + 0.5 * np.cos(np.pi * ramp), 0.0)
        return inside.astype(np.float64)


PSF = tuple[AxisPSF, AxisPSF, AxisPSF]


def gaussian_transfer(f: np.ndarray, width: float) -> np.ndarray:
    """Of a Gaussian with that full width at half maximum, mm, at f cycles per mm; 1 at 0."""
    return np.exp(-2.0 * (np.pi * (width / FWHM_PER_SIGMA) * f) ** 2)


def _supergaussian_transfer(f: np.ndarray) -> np.ndarray:
    """Fourier transform of exp(-ln 2 (2x)^4), normalised to 1 at 0; `f` in cycles per full width at half maximum."""
    x = np.linspace(0.0, 1.6, 801)
    profile = np.exp(-np.log(2.0) * (2.0 * x) ** 4)
    profile[0] *= 0.5  # trapezoid of an even function over half its support
    return (profile @ np.cos(2 * np.pi * np.outer(x, f.ravel()))).reshape(f.shape) / profile.sum()


def thick_slices(
    voxel_size: Sequence[float], meta: dict | None = None, spectrum: Sequence[float] | None = None
) -> np.ndarray:
    """bool [3]: the axes that go across the slices of a 2D acquisition, by MRAcquisitionType and the shape of the
    voxel: of the stored one and, where nobody says "2D", of the one that was measured. Arguments as of `auto_psf`."""
    size, acquisition = np.asarray(voxel_size, np.float64), (meta or {}).get("MRAcquisitionType")
    if acquisition == "3D":
        return np.zeros(3, bool)
    slices = _long(size)
    if acquisition == "2D":
        near_isotropic = not slices.any() and size.max() > 1.05 * size.min()
        return size > 0.999 * size.max() if near_isotropic else slices
    measured = size.copy()
    for acquired in (spectrum, (meta or {}).get("AcquiredVoxelSize")):
        if (wider := _zero_filled(size, acquired)).any():
            measured[wider] = np.asarray(acquired, np.float64)[wider]
    # Zeros that fill one axis make the others look thick, and those that fill a slab of slices make it look thin.
    return slices & _long(measured)


def _long(size: np.ndarray) -> np.ndarray:
    return size >= THICK_SLICE_RATIO * size.min()


def auto_psf(
    voxel_size: Sequence[float],
    meta: dict | None = None,
    spectrum: Sequence[float] | None = None,
    profiles: Sequence[str | None] = (None, None, None),
) -> tuple[PSF, str]:
    """What the metadata and the shape of a voxel say of its acquisition: (psf, the reason in words).

    Near-isotropic voxels come from a 3D acquisition, which cuts k-space along all three axes. An axis at least
    1.8 times as long as the shortest, as stored and as measured, is the slice axis of a 2D acquisition and has a slice
    profile: a Gaussian, or what the spectrum shows, which may be that these are slices of a 3D acquisition. Metadata
    that say "2D" or "3D" overrule that, and a stated thickness takes the place of the spacing. An axis whose spectrum
    ends before its Nyquist limit was filled with zeros by the scanner: what the header says of that counts, else what
    the spectrum shows.

    Args:
        voxel_size: stored voxel size, mm, 3 values.
        meta: DICOM keywords where known; MRAcquisitionType ("2D", "3D"), SliceThickness (mm) and AcquiredVoxelSize (mm,
            3 values; what a DICOM header says was measured before zero-filling) are used.
        spectrum: mm, 3 values: the acquired voxel size by `mrisr.physics.acquired.estimate_acquired`, the stored one
            where no edge was found; None: not looked at.
        profiles: per axis the profile of its slices by `mrisr.physics.acquired.slice_profile`; None: not known.
    """
    meta, size = meta or {}, np.asarray(voxel_size, np.float64)
    slices, source = thick_slices(size, meta, spectrum), "the voxel shape"
    if (slices != thick_slices(size, {**meta, "MRAcquisitionType": None}, spectrum)).any():
        source = f"MRAcquisitionType {meta['MRAcquisitionType']}"
    kinds = ["gaussian" if thick else "kspace" for thick in slices]
    for axis in np.flatnonzero(slices):
        if profiles[axis] is None:
            continue
        kinds[axis] = str(profiles[axis])
        if kinds[axis] == "kspace" and meta.get("MRAcquisitionType") == "2D":
            kinds[axis] = "supergaussian"  # the sharpest that slices of their own have
        source += f", the spectrum (axis {axis}: {kinds[axis]})"
    near_isotropic = source == "the voxel shape" and not _long(size).any()
    slices &= np.array([kind != "kspace" for kind in kinds])
    width, thickness, filled = size.copy(), meta.get("SliceThickness"), ""
    if slices.any() and isinstance(thickness, int | float) and WIDTHS[0] <= thickness <= WIDTHS[1]:
        width[slices], source = float(thickness), f"{source} and SliceThickness"
    for acquired, what in ((spectrum, "the spectrum"), (meta.get("AcquiredVoxelSize"), "the acquired matrix")):
        wider = _zero_filled(size, acquired) & ~slices
        if wider.any():
            width[wider] = np.asarray(acquired, np.float64)[wider]
            filled = f"{what} (axis {', '.join(str(i) for i in np.flatnonzero(wider))} is zero-filled)"
    if filled:
        source += f" and {filled}"
    psf = tuple(AxisPSF(kind, float(w)) for kind, w in zip(kinds, width))
    if slices.any():
        axes = ", ".join(str(i) for i in np.flatnonzero(slices))
        return psf, f"assumed from {source}: slice profile along axis {axes}, k-space cut elsewhere"
    if near_isotropic:
        source += ", near-isotropic"
    return psf, f"assumed from {source}: a k-space cut along all axes"


def _zero_filled(size: np.ndarray, acquired) -> np.ndarray:
    """Which axes were acquired more coarsely than they are stored, by more than rounding."""
    if not isinstance(acquired, list | tuple) or len(acquired) != 3:
        return np.zeros(3, bool)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and np.isfinite(v) for v in acquired):
        return np.zeros(3, bool)
    sizes = np.asarray(acquired, np.float64)
    return (sizes > 1.02 * size) & (sizes <= WIDTHS[1])


def _axis_psf(item) -> AxisPSF:
    """One (kind, width mm) entry of the `psf` argument."""
    try:
        kind, width = item
        return AxisPSF(kind, float(width))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"psf: expected a kind, a pair (kind, width in mm) or an AxisPSF for each axis, found {item!r}"
        ) from error


def parse_psf(
    psf,
    voxel_size: Sequence[float],
    meta: dict | None = None,
    spectrum: Sequence[float] | None = None,
    profiles: Sequence[str | None] = (None, None, None),
) -> tuple[PSF, str, bool]:
    """Turn the `psf` argument of `mrisr.upscale` into (psf, origin in words, certain).

    Args:
        psf: "auto"; one kind for all axes; a sequence of three, each a kind, a (kind, width mm) pair, or an
            `AxisPSF`. A kind alone has the stored voxel size as its width.
        voxel_size: stored voxel size, mm, 3 values.
        meta, spectrum, profiles: as for `auto_psf`.
    """
    if isinstance(psf, str) and psf == "auto":
        return (*auto_psf(voxel_size, meta, spectrum, profiles), False)
    if not isinstance(psf, str | AxisPSF | list | tuple):
        raise UsageError(f"psf: expected 'auto', one kind or three entries (one per axis), found {psf!r}")
    items = [psf] * 3 if isinstance(psf, str | AxisPSF) else list(psf)
    if len(items) != 3:
        raise UsageError(f"psf: expected 'auto', one kind or three entries (one per axis), found {len(items)}")
    axes = []
    for item, size in zip(items, voxel_size):
        if isinstance(item, AxisPSF):
            axes.append(item)
        elif isinstance(item, str):
            axes.append(AxisPSF(item, float(size)))
        else:
            axes.append(_axis_psf(item))
    certain = all(axis.kind != "unknown" for axis in axes)
    return tuple(axes), "stated by the caller", certain
