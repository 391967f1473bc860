"""Random scanners: what is drawn about an acquisition, and how it disturbs the coarse scan.

Known things (widths, profiles, spacing, windows, noise) are told to the network, each with a chance of being forgotten;
what nobody would know of a scan (displaced slices, ghosts, uneven noise, missing corners of k-space) is only suffered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import torch

from mrisr.ops.resample import apply_axes, bspline_matrix
from mrisr.physics.bias import bias_field
from mrisr.physics.degrade import SLICE_KINDS, kspace_mask, rician, sampled, zero_fill_matrices
from mrisr.physics.psf import AxisPSF

FULL = (1.0, 1.0, 1.0)
MOST_ISO = 3.0  # factor from which isotropic cuts are one class


FAMILIES = ("iso", "aniso", "same", "blur", "slice")
FLAT_FAMILIES = FAMILIES[:3]  # of a scan that is 2D already


@dataclass(frozen=True)
class ScannerClass:
    """Acquisitions that are about as hard as each other, by which the loss is weighted.

    Attributes:
        family: of FAMILIES: k-space cut alike along all axes, or not, or not at all; blur in all directions; slices.
        factor: how much coarser, rounded down; None where the family says enough.
        in_plane: slices that are coarser in their plane, too.
        noisy: with noise that is seen.
        window: "box", "tukey" or "hann" over k-space.
    """

    family: str
    factor: float | None = None
    in_plane: bool = False
    noisy: bool = False
    window: str = "box"

    def __str__(self) -> str:
        """The name that checkpoints have: "iso1.5n", "slice4+", "anisoh"."""
        factor = ""
        if self.factor is not None:
            whole = self.family == "slice" or (self.family == "iso" and self.factor == MOST_ISO)
            factor = f"{int(self.factor)}" if whole else f"{float(self.factor)}"
        letters = "+" * self.in_plane + "n" * self.noisy + ("" if self.window == "box" else self.window[0])
        return self.family + factor + letters

    @classmethod
    def parse(cls, name: str) -> ScannerClass:
        """The class of a name. ValueError where it is none."""
        match = re.fullmatch(rf"({'|'.join(FAMILIES)})([0-9]+(?:\.[0-9])?)?(\+?)(n?)([th]?)", name)
        if match is None:
            raise ValueError(f"scanner class: expected a name such as 'iso1.5n' or 'slice4+', found {name!r}")
        family, factor, plus, noisy, window = match.groups()
        windows = {"": "box", "t": "tukey", "h": "hann"}
        return cls(family, float(factor) if factor else None, bool(plus), bool(noisy), windows[window])


@dataclass(frozen=True)
class Interleave:
    """Every second slice along `axis` is displaced by `shift` (coarse voxels) along `along`, and times `gain`."""

    axis: int
    along: int
    shift: float
    gain: float


@dataclass(frozen=True)
class Ghost:
    """A faint copy of the scan, `shift` coarse voxels further along `axis`, as motion or flow leaves it."""

    axis: int
    shift: int
    amplitude: float


@dataclass(frozen=True)
class Scanner:
    """One random acquisition.

    Attributes:
        factor: spacing of the coarse scan per axis, fine voxels.
        psf: per axis, widths in fine voxels.
        noise: standard deviation / median of the head.
        kind: by which the loss is weighted.
        windows_known: whether the network may be told of the windows of `psf`.
        partial, elliptical: of `mrisr.physics.degrade.kspace_mask`.
        stored: voxels stored per voxel acquired; the start is the same, the look of the noise is not.
        uneven: standard deviation of the logarithm of the noise over the head (parallel imaging).
        interleave, ghost: disturbances, or None.
    """

    factor: tuple[float, float, float]
    psf: tuple[AxisPSF, AxisPSF, AxisPSF]
    noise: float
    kind: ScannerClass
    windows_known: bool = False
    partial: tuple[float, float, float] = FULL
    elliptical: bool = False
    stored: float = 1.0
    uneven: float = 0.0
    interleave: Interleave | None = None
    ghost: Ghost | None = None

    def permuted(self, order) -> Scanner:
        """The same scanner with its axes in `order`."""
        place = {axis: i for i, axis in enumerate(order)}
        weave, ghost = self.interleave, self.ghost
        return replace(
            self,
            factor=tuple(self.factor[i] for i in order),
            psf=tuple(self.psf[i] for i in order),
            partial=tuple(self.partial[i] for i in order),
            interleave=weave and replace(weave, axis=place[weave.axis], along=place[weave.along]),
            ghost=ghost and replace(ghost, axis=place[ghost.axis]),
        )

    @property
    def known_psf(self) -> tuple[AxisPSF, AxisPSF, AxisPSF]:
        """The point spreads as far as the network may know them: without windows that are not known."""
        return self.psf if self.windows_known else tuple(replace(p, window="box") for p in self.psf)

    def disturbed(self, clean: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
        """The magnitude scan of a noise-free coarse one [x, y, z]: slices, ghosts, noise, and k-space left out.

        Args:
            sigma: standard deviation of the noise of each channel.
            generator: on the device of `clean`.
        """
        x = clean
        if self.interleave is not None:
            x = _interleaved(x, self.interleave)
        if self.ghost is not None:
            x = x + self.ghost.amplitude * x.roll(self.ghost.shift, self.ghost.axis)
        if self.partial != FULL or self.elliptical:
            real = x + sigma * torch.randn(x.shape, generator=generator, device=x.device)
            imaginary = sigma * torch.randn(x.shape, generator=generator, device=x.device)
            return sampled(torch.complex(real, imaginary), kspace_mask(x.shape, self.partial, self.elliptical)).abs()
        if sigma == 0:
            return x
        if self.uneven:
            sigma = sigma * bias_field(x.shape, _on_cpu(generator), self.uneven, lattice=0.04).to(x)
        return rician(x, sigma, generator)

    def stored_as(self, scan: torch.Tensor) -> torch.Tensor:
        """The scan as it is stored: with zeros appended to its k-space where the scanner does so."""
        return scan if self.stored == 1.0 else apply_axes(scan, zero_fill_matrices(scan.shape, self.stored)).abs()


def _on_cpu(generator: torch.Generator) -> torch.Generator:
    if generator.device.type == "cpu":
        return generator
    return torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator, device=generator.device)))


def _interleaved(x: torch.Tensor, weave: Interleave) -> torch.Tensor:
    n = x.shape[weave.along]
    matrices = [None] * 3
    matrices[weave.along] = bspline_matrix(n, np.clip(np.arange(n) + weave.shift, -0.5, n - 0.5), order=3)
    odd = torch.arange(1, x.shape[weave.axis], 2, device=x.device)
    if not len(odd):
        return x
    odd_slices = apply_axes(x.index_select(weave.axis, odd).contiguous(), matrices) * weave.gain
    return x.index_copy(weave.axis, odd, odd_slices)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A random number from low to high."""
    return float(low + (high - low) * rng.random())


def random_scanner(rng: np.random.Generator, fine_axes=(True, True, True), families=FAMILIES) -> Scanner:
    """Draw an acquisition: k-space cuts (isotropic and not) and thick slices, 1.2x to 4x and up to 8x across slices.

    Axes that are not fine are left as they are. Of `families` alone: what a network for these alone learns; a 2D scan
    shows neither other slices nor blur in all directions, and takes any where only these are wanted.
    """
    possible = FAMILIES if all(fine_axes) else FLAT_FAMILIES
    some = set(families) & set(possible) or set(possible)
    while (scanner := _any_scanner(rng, fine_axes)).kind.family not in some:
        pass
    return scanner


def _any_scanner(rng: np.random.Generator, fine_axes) -> Scanner:
    draw, factor = rng.random(), [1.0, 1.0, 1.0]
    psf = [AxisPSF("kspace", 1.0)] * 3
    if not all(fine_axes):
        draw *= 0.58  # no slice profile on a scan that is 2D already
    across = None
    if draw < 0.40:
        r = rng.choice([2.0, 2.0, 1.5, uniform(rng, 1.2, 2.5), uniform(rng, 1.2, 4.0)])
        factor, kind = [float(r)] * 3, ScannerClass("iso", min(MOST_ISO, int(r * 2) / 2))
        psf = [AxisPSF("kspace", f) for f in factor]
    elif draw < 0.54:
        factor, kind = [uniform(rng, 1.0, 3.0) for _ in range(3)], ScannerClass("aniso")
        psf = [AxisPSF("kspace", f) for f in factor]
    elif draw < 0.58:  # no change of resolution: what is left to learn is the noise
        kind = ScannerClass("same")
    elif draw < 0.64:
        r, shape = uniform(rng, 1.3, 2.8), rng.choice(["gaussian", "supergaussian"])
        factor, kind = [r] * 3, ScannerClass("blur", int(r * 2) / 2)
        psf = [AxisPSF(str(shape), r * uniform(rng, 0.8, 1.2)) for _ in range(3)]
    else:
        in_plane = 1.0 if rng.random() < 0.55 else uniform(rng, 1.0, 2.0)
        thick = rng.choice([4.0, uniform(rng, 2.0, 5.0), uniform(rng, 2.0, 8.0)])
        across = int(rng.integers(3))
        factor = [in_plane] * 3
        factor[across] = float(thick)
        psf = [AxisPSF("kspace", f) for f in factor]
        shape = "gaussian" if rng.random() < 0.75 else "supergaussian"
        # Slices that touch, that leave a gap, that overlap.
        thickness = thick * (1.0 if rng.random() < 0.5 else uniform(rng, 0.65, 1.25))
        psf[across] = AxisPSF(shape, float(thickness))
        kind = ScannerClass("slice", float(int(thick)), in_plane=in_plane > 1.3)
    for i, fine in enumerate(fine_axes):
        if not fine:
            factor[i], psf[i] = 1.0, AxisPSF("kspace", 1.0)
    if kind.family == "same":
        noise = uniform(rng, 0.015, 0.06)
    else:
        noise = 0.0 if rng.random() < 0.45 else uniform(rng, 0.0, 0.035)
    scanner = Scanner(tuple(factor), tuple(psf), noise, replace(kind, noisy=noise > 0.01))
    return replace(scanner, **_imperfections(rng, scanner, across))


def _imperfections(rng: np.random.Generator, scanner: Scanner, across: int | None) -> dict:
    """What else differs from a plain cut: each rare, so that most pairs stay as clean as the theory."""
    changes: dict = {"windows_known": rng.random() < 0.5}
    cut = [i for i, (p, f) in enumerate(zip(scanner.psf, scanner.factor)) if p.kind not in SLICE_KINDS and f > 1.05]
    if cut and rng.random() < 0.15:
        window = str(rng.choice(["tukey", "tukey", "hann"]))
        changes["psf"] = tuple(replace(p, window=window) if i in cut else p for i, p in enumerate(scanner.psf))
        changes["kind"] = replace(scanner.kind, window=window)
    elif cut and rng.random() < 0.08:
        partial = [1.0, 1.0, 1.0]
        partial[int(rng.choice(cut))] = float(rng.choice([0.75, 0.875]))
        changes["partial"], changes["elliptical"] = tuple(partial), bool(rng.random() < 0.5)
    if cut and rng.random() < 0.15:
        changes["stored"] = float(rng.choice([1.25, 1.5, 2.0]))
    if scanner.noise and rng.random() < 0.3:
        changes["uneven"] = uniform(rng, 0.1, 0.4)
    if across is not None and rng.random() < 0.15:
        along = int(rng.choice([i for i in range(3) if i != across]))
        changes["interleave"] = Interleave(across, along, uniform(rng, -1, 1), uniform(rng, 0.95, 1.05))
    if rng.random() < 0.06:
        axis = int(rng.choice([i for i in range(3) if i != across]))
        changes["ghost"] = Ghost(axis, int(rng.integers(6, 40)), uniform(rng, 0.005, 0.04))
    return changes
