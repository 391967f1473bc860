"""What another field strength would have made of a T1-weighted scan: longer T1, other contrast, other noise.

It is a simulation, of *contrast* and *noise*, and has to be labelled so: no detail that 7 T would have shown appears.

- T1 grows with the field as a power law, T1(B0) = T1(1.5 T) (B0 / 1.5 T)^b (Bottomley et al., Medical Physics 11, 1984;
  Rooney et al., MRM 57, 2007, whose exponents are used: b = 0.382 in white matter, 0.376 in grey, 0 in CSF).
- An MPRAGE shows T1 as a signal that falls steadily from short T1 up to where it is nulled (Deichmann et al.,
  NeuroImage 12, 2000), so the intensities of a scan's own tissue peaks say which intensity is which T1.
- The signal-to-noise ratio grows about in proportion to the field and to the volume of a voxel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, isfinite, log, radians, sin

import numpy as np
import torch

from mrisr.errors import InputError, UsageError
from mrisr.physics.foreground import CERTAIN
from mrisr.physics.intensity import intensity_scale

TISSUES = ("white", "grey", "csf")
T1_AT_1P5 = {"white": 0.645, "grey": 1.10, "csf": 4.0}  # s
EXPONENT = {"white": 0.382, "grey": 0.376, "csf": 0.0}
FIELDS = (0.3, 12.0)  # T, where the laws are believed
FLOOR = 0.02  # of the equilibrium signal: keeps ratios finite where CSF is nulled


@dataclass(frozen=True)
class MPRAGE:
    """Magnetisation-prepared rapid gradient echo, one line of k-space after the other.

    Attributes:
        ti: inversion to the centre of k-space, s.
        tr: inversion to inversion, s.
        flip: angle of the readout pulses, degrees.
        echo_spacing: between readout pulses, s.
        pulses: readout pulses per inversion; the centre of k-space is the middle one.
        inversion: efficiency, 0 to 1.
    """

    ti: float
    tr: float
    flip: float
    echo_spacing: float
    pulses: int = 176
    inversion: float = 0.96

    def __post_init__(self):
        numbers = (self.ti, self.tr, self.flip, self.echo_spacing, self.pulses, self.inversion)
        if not all(isfinite(v) and v > 0 for v in numbers) or self.inversion > 1 or self.flip >= 90:
            raise UsageError(f"MPRAGE: expected positive times (s), a flip angle below 90 degrees, found {self}")
        before, train = self.ti - self._centre * self.echo_spacing, self.pulses * self.echo_spacing
        if before <= 0 or before + train > self.tr:
            raise UsageError(
                f"MPRAGE: {self.pulses} pulses of {self.echo_spacing:g} s about TI = {self.ti:g} s do not fit into "
                f"TR = {self.tr:g} s"
            )

    @property
    def _centre(self) -> int:
        return self.pulses // 2

    def signal(self, t1: torch.Tensor) -> torch.Tensor:
        """Signed steady-state signal at the centre of k-space for `t1` (s, > 0), as a part of equilibrium.

        Differentiable. Negative where the magnetisation has not come back from the inversion yet.
        """
        before = self.ti - self._centre * self.echo_spacing
        after = self.tr - before - self.pulses * self.echo_spacing
        relax = torch.exp(-self.echo_spacing / t1)
        recovery = relax * cos(radians(self.flip))
        driven = (1 - relax) / (1 - recovery)  # where the readout pulses drive the magnetisation to
        e_before, e_after = torch.exp(-before / t1), torch.exp(-after / t1)
        # After the delay, m = 1 - (1 - m_end of train) e_after; before the train, 1 - (1 + inversion m) e_before.
        through = recovery**self.pulses
        slope = -self.inversion * e_before * through * e_after
        offset = 1 - e_after + e_after * (driven * (1 - through) + through * (1 - e_before))
        end = offset / (1 - slope)
        start = 1 - (1 + self.inversion * end) * e_before
        return sin(radians(self.flip)) * (driven + (start - driven) * recovery**self._centre)


# Typical whole-head protocols; state your own where it is known.
PROTOCOLS = {
    1.5: MPRAGE(ti=1.0, tr=2.4, flip=8.0, echo_spacing=0.0085, pulses=160),
    3.0: MPRAGE(ti=0.9, tr=2.3, flip=9.0, echo_spacing=0.0071, pulses=176),
    7.0: MPRAGE(ti=1.1, tr=2.6, flip=6.0, echo_spacing=0.0065, pulses=224),
}


def check_field(b0: float, name: str = "field strength") -> float:
    """`b0` as a float, or a UsageError unless it lies within 0.3 to 12 T."""
    if not (isfinite(b0) and FIELDS[0] <= b0 <= FIELDS[1]):
        raise UsageError(f"{name}: expected {FIELDS[0]:g} to {FIELDS[1]:g} T, found {b0!r}")
    return float(b0)


def protocol(b0: float) -> MPRAGE:
    """The typical MPRAGE of the field strength nearest to `b0` (T)."""
    return PROTOCOLS[min(PROTOCOLS, key=lambda own: abs(log(own / check_field(b0))))]


def tissue_t1(tissue: str, b0: float) -> float:
    """T1 (s) of "white", "grey" or "csf" at `b0` (T)."""
    if tissue not in TISSUES:
        raise UsageError(f"tissue_t1: expected one of {TISSUES}, found {tissue!r}")
    return T1_AT_1P5[tissue] * (check_field(b0) / 1.5) ** EXPONENT[tissue]


def scale_t1(t1: torch.Tensor, b0: float, to: float) -> torch.Tensor:
    """`t1` (s) at `b0` as it would be at the field `to` (T): power laws, the exponent between tissues by log T1."""
    knots = torch.tensor([log(tissue_t1(name, b0)) for name in TISSUES], dtype=t1.dtype, device=t1.device)
    exponents = torch.tensor([EXPONENT[name] for name in TISSUES], dtype=t1.dtype, device=t1.device)
    return t1 * (check_field(to) / b0) ** _piecewise(t1.log(), knots, exponents)


@dataclass(frozen=True)
class TissuePeaks:
    """Intensities of the tissues of a T1w scan, in its own units: white > grey > csf >= 0."""

    white: float
    grey: float
    csf: float

    def __post_init__(self):
        if not (isfinite(self.white) and self.white > self.grey > self.csf >= 0):
            raise InputError(
                f"tissue peaks: expected white > grey > CSF >= 0, found {self.white:g}, {self.grey:g}, {self.csf:g}; "
                "is the scan T1-weighted?"
            )


def tissue_peaks(scan, voxel_size=(1.0, 1.0, 1.0), mask=None) -> TissuePeaks:
    """Where the tissues of a T1w scan peak: three classes of its intensities by a mixture of Gaussians.

    Args:
        scan: real [X, Y, Z].
        voxel_size: mm, 3 values; only their ratios matter.
        mask: bool, like scan: the brain; None: the inner part of the head, 35 % of its greatest depth and more below
            its surface, where there is no scalp, no fat and hardly any skull, and of every tissue some.

    Raises:
        InputError: too few voxels, or no three classes.
    """
    data = np.asarray(scan, np.float64)
    values = _inner_head(data, voxel_size) if mask is None else data[np.asarray(mask).astype(bool)]
    values = values[values > 0.05 * np.percentile(values, 99)] if values.size else values
    if values.size < 500:
        raise InputError(f"tissue peaks: {values.size} voxels above the background; expected a scan of a head")
    low, high = np.percentile(values, (0.5, 99.5))
    counts, edges = np.histogram(values, bins=256, range=(low, max(high, low + 1e-12)))
    csf, grey, white = np.sort(_mixture((edges[1:] + edges[:-1]) / 2, counts.astype(np.float64)))
    if white - grey < 0.08 * white or grey - csf < 0.08 * white:
        raise InputError(
            f"tissue peaks: found {csf:.4g}, {grey:.4g} and {white:.4g}, too close together; is the scan T1-weighted? "
            "Correct its bias field first, or state the peaks"
        )
    return TissuePeaks(float(white), float(grey), float(csf))


def _inner_head(data: np.ndarray, voxel_size) -> np.ndarray:
    """Intensities of the inner part of the head, on a grid of about 80 voxels a side."""
    from scipy import ndimage

    steps = [max(1, round(n / 80)) for n in data.shape]
    small = data[tuple(slice(step // 2, None, step) for step in steps)]
    offset, scale = intensity_scale(data)
    inside = ndimage.binary_closing(np.pad(small - offset > CERTAIN * scale, 4), iterations=3)
    inside = ndimage.binary_fill_holes(inside)[4:-4, 4:-4, 4:-4]
    spacing = [float(v) * step for v, step in zip(voxel_size, steps)]
    depth = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    return small[depth > 0.35 * depth.max()]


def _mixture(x: np.ndarray, counts: np.ndarray, classes: int = 3, rounds: int = 200) -> np.ndarray:
    """Means of a Gaussian mixture fitted to a histogram by expectation-maximisation."""
    share = np.cumsum(counts) / counts.sum()
    means = np.interp([0.05, 0.4, 0.8], share, x)
    widths, parts = np.full(classes, (x[-1] - x[0]) / 8), np.full(classes, 1 / classes)
    narrowest = (x[-1] - x[0]) / 64
    for _ in range(rounds):
        density = parts * np.exp(-0.5 * ((x[:, None] - means) / widths) ** 2) / widths
        belongs = counts[:, None] * density / np.maximum(density.sum(1, keepdims=True), 1e-300)
        total = np.maximum(belongs.sum(0), 1e-9)
        parts, means = total / counts.sum(), (belongs * x[:, None]).sum(0) / total
        widths = np.sqrt((belongs * (x[:, None] - means) ** 2).sum(0) / total)
        widths = np.maximum(widths, narrowest)
    return means


def intensity_to_t1(scan: torch.Tensor, peaks: TissuePeaks, b0: float) -> torch.Tensor:
    """T1 (s) of each voxel by its intensity: log T1 in straight lines between the tissue peaks, held beyond them."""
    knots = torch.tensor([peaks.csf, peaks.grey, peaks.white], dtype=scan.dtype, device=scan.device)
    values = [log(tissue_t1(name, b0)) for name in ("csf", "grey", "white")]
    return _piecewise(scan, knots, torch.tensor(values, dtype=scan.dtype, device=scan.device)).exp()


def change_field(
    scan: torch.Tensor,
    b0: float,
    to: float,
    *,
    peaks: TissuePeaks | None = None,
    sequence: MPRAGE | None = None,
    target_sequence: MPRAGE | None = None,
) -> torch.Tensor:
    """A T1w scan [..., X, Y, Z] made at `b0` with the contrast that an MPRAGE at the field `to` (T) would have.

    Every intensity is multiplied by the ratio of the two signals of its T1, white matter keeping its brightness; the
    map is monotone, differentiable and the identity where neither field nor sequence changes. Shading, partial volume
    and noise go along.

    Args:
        peaks: of `scan`, in its units; None: found by `tissue_peaks` in a 3D scan.
        sequence, target_sequence: None: `protocol` of each field.
    """
    peaks = tissue_peaks(scan.detach().cpu().numpy()) if peaks is None else peaks
    before, after = sequence or protocol(b0), target_sequence or protocol(to)
    if check_field(to) == check_field(b0) and before == after:
        return scan
    # Beyond white matter the ratio is 1, and the last piece goes on straight.
    levels = torch.linspace(0, peaks.white * 1.5, 2048, dtype=torch.float64)
    levels = torch.unique(torch.cat([levels, torch.tensor([peaks.csf, peaks.grey, peaks.white], dtype=torch.float64)]))
    t1 = intensity_to_t1(levels, peaks, b0)
    ratio = _magnitude(after, scale_t1(t1, b0, to)) / _magnitude(before, t1)
    mapped = torch.cummax(levels * ratio / ratio[-1], 0).values
    # Odd, so that what noise or ringing put below zero stays there.
    knots, values = levels.to(scan), mapped.to(scan)
    return torch.copysign(_piecewise(scan.abs(), knots, values, extrapolate=True), scan)


def noise_level(sigma: float, b0: float, voxel_volume: float, to: float, to_voxel_volume: float) -> float:
    """Noise of the same scan at another field and voxel size, where its signal is kept: `sigma` (any unit) at `b0`
    (T) and `voxel_volume` (mm^3) -> at `to` and `to_voxel_volume`. SNR is taken as proportional to B0 and volume."""
    if not (sigma >= 0 and voxel_volume > 0 and to_voxel_volume > 0):
        raise UsageError(
            f"noise_level: expected sigma >= 0 and volumes above 0, found {sigma}, {voxel_volume}, {to_voxel_volume}"
        )
    return sigma * check_field(b0) / check_field(to) * voxel_volume / to_voxel_volume


def _magnitude(sequence: MPRAGE, t1: torch.Tensor) -> torch.Tensor:
    floor = FLOOR * sin(radians(sequence.flip))
    return torch.hypot(sequence.signal(t1).clamp_min(0), torch.as_tensor(floor, dtype=t1.dtype))


def _piecewise(x: torch.Tensor, knots: torch.Tensor, values: torch.Tensor, extrapolate: bool = False) -> torch.Tensor:
    """Straight lines through (knots, values), knots ascending; held, or gone on straight, beyond them."""
    place = torch.searchsorted(knots, x.detach().contiguous(), right=True).clamp(1, len(knots) - 1)
    part = (x - knots[place - 1]) / (knots[place] - knots[place - 1])
    part = part if extrapolate else part.clamp(0, 1)
    return values[place - 1] + part * (values[place] - values[place - 1])
