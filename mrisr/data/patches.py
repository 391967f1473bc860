"""Training pairs: a random crop, a random contrast, a random scanner -> (residual, start y, condition).

Everything is a function of (seed, index): the same index gives the same pair on any machine, so that a resumed run
continues exactly and ranks need no shared state. Crops carry a margin on all sides, removed after the degradation, so
that the ends of the Fourier sums lie outside of what is learnt from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from mrisr import grid as grids
from mrisr.data.guidance import random_guidance
from mrisr.data.sources import TrainingVolume
from mrisr.nn.condition import Condition, canonical_order
from mrisr.ops.resample import apply_axes, bspline_matrix, fourier_matrix
from mrisr.physics.bias import bias_field
from mrisr.physics.degrade import ForwardModel, band_matrices, degrade, start_matrices
from mrisr.physics.intensity import estimate_noise
from mrisr.physics.psf import AxisPSF

MARGIN = 16  # fine voxels around a patch, and half as many more where slices are thick: their splines reach far
THICK_MARGIN = 24
# Scans that the scanner has corrected itself come without guidance: more often than the rest of a condition.
GUIDANCE_DROP = 0.25


@dataclass(frozen=True)
class Scanner:
    """One random acquisition: `factor` and `psf` (widths in fine voxels) per axis, noise level, and a class for
    weighting the loss."""

    factor: tuple[float, float, float]
    psf: tuple[AxisPSF, AxisPSF, AxisPSF]
    noise: float
    kind: str

    def permuted(self, order) -> Scanner:
        """The same scanner with its axes in `order`."""
        factor, psf = tuple(self.factor[i] for i in order), tuple(self.psf[i] for i in order)
        return Scanner(factor, psf, self.noise, self.kind)


@dataclass(frozen=True)
class Batch:
    """Pairs of N patches.

    Attributes:
        target: HR - y, float32 [N, 1, P, P, P], normalised intensities.
        y: the start, like target.
        cond: a Condition.
        kinds: scanner class of each pair.
        band: float32 [N, 3, P, P], `band_matrices` of each pair; zeros where there is no measured band.
    """

    target: torch.Tensor
    y: torch.Tensor
    cond: Condition
    kinds: tuple[str, ...]
    band: torch.Tensor

    def to(self, device) -> Batch:
        """The same on `device`."""
        tensors = (t.to(device) for t in (self.target, self.y, self.cond))
        return Batch(*tensors, self.kinds, self.band.to(device))

    def outside_band(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, 1, P, P, P] without what the scans measured: `mrisr.physics.degrade.outside_band`, batched."""
        first, second, third = self.band.to(x.dtype).unbind(1)
        inside = torch.einsum("nck,neijk->neijc", third, x)
        inside = torch.einsum("nbj,neijc->neibc", second, inside)
        return x - torch.einsum("nai,neibc->neabc", first, inside)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(low + (high - low) * rng.random())


def random_scanner(rng: np.random.Generator, fine_axes=(True, True, True)) -> Scanner:
    """Draw an acquisition: k-space cuts (isotropic and not) and thick slices, 1.2x to 4x and up to 8x across slices.

    Axes that are not fine are left as they are. k-space is cut by a box only: nothing in the condition tells an
    apodised scan from a blurred one, and a network that guesses alters what was measured.
    """
    draw, factor = rng.random(), [1.0, 1.0, 1.0]
    psf = [AxisPSF("kspace", 1.0)] * 3
    if not all(fine_axes):
        draw *= 0.58  # no slice profile on a scan that is 2D already
    if draw < 0.42:
        r = rng.choice([2.0, 2.0, 1.5, _uniform(rng, 1.2, 2.5), _uniform(rng, 1.2, 4.0)])
        factor, kind = [float(r)] * 3, f"iso{min(3, int(r * 2) / 2)}"
        psf = [AxisPSF("kspace", f) for f in factor]
    elif draw < 0.58:
        factor, kind = [_uniform(rng, 1.0, 3.0) for _ in range(3)], "aniso"
        psf = [AxisPSF("kspace", f) for f in factor]
    elif draw < 0.66:
        r, shape = _uniform(rng, 1.3, 2.8), rng.choice(["gaussian", "supergaussian"])
        factor, kind = [r] * 3, f"blur{int(r * 2) / 2}"
        psf = [AxisPSF(str(shape), r * _uniform(rng, 0.8, 1.2)) for _ in range(3)]
    else:
        in_plane = 1.0 if rng.random() < 0.55 else _uniform(rng, 1.0, 2.0)
        across = rng.choice([4.0, _uniform(rng, 2.0, 5.0), _uniform(rng, 2.0, 8.0)])
        axis = int(rng.integers(3))
        factor = [in_plane] * 3
        factor[axis] = float(across)
        psf = [AxisPSF("kspace", f) for f in factor]
        shape = "gaussian" if rng.random() < 0.75 else "supergaussian"
        thickness = across * (1.0 if rng.random() < 0.6 else _uniform(rng, 0.75, 1.25))
        psf[axis] = AxisPSF(shape, float(thickness))
        kind = f"slice{int(across)}" + ("+" if in_plane > 1.3 else "")
    for i, fine in enumerate(fine_axes):
        if not fine:
            factor[i], psf[i] = 1.0, AxisPSF("kspace", 1.0)
    noise = 0.0 if rng.random() < 0.45 else _uniform(rng, 0.0, 0.035)
    return Scanner(tuple(factor), tuple(psf), noise, kind + ("n" if noise > 0.01 else ""))


def random_contrast(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A random map of normalised intensities: the scan's own with a gamma, a monotone piecewise-linear one, or (1 in
    8) any piecewise-linear one that keeps air dark."""
    draw = rng.random()
    gain = _uniform(rng, 0.75, 1.25)
    if draw < 0.5:
        # Odd in x, so that what noise or ringing put below zero stays there.
        return torch.copysign(gain * x.abs().pow_(_uniform(rng, 0.8, 1.25)), x)
    knots = np.linspace(0, 1.5, 7)
    if draw < 0.875:
        steps = 0.15 + rng.random(6) ** 2
        values = np.concatenate([[0], np.cumsum(steps)])
    else:
        values = np.concatenate([[0], rng.random(6)])
    values = gain * values / max(values[:5].max(), 1e-3)
    # Written as hinge functions: exact at the knots, continues straight beyond them, keeps the sign of noise in air.
    slopes = np.diff(values) / np.diff(knots)
    out = float(slopes[0]) * x
    for knot, before, after in zip(knots[1:-1], slopes[:-1], slopes[1:]):
        out.add_((x - float(knot)).clamp_min_(0), alpha=float(after - before))
    return out


class PatchSampler:
    """Random training pairs from volumes.

    Args:
        volumes: `TrainingVolume`s.
        weights: relative frequency of each volume.
        seed: of everything random.
        drop: probability of forgetting each entry of the condition.
        gradnl, bias: probability that a pair is displaced by gradients, and that it has a known bias field, which the
            start is corrected for and the network told of (`mrisr.data.guidance`). The other pairs do not depend on it.
        device: where the volumes lie and pairs are made. What is drawn is the same everywhere, except for the values of
            the noise, which are the device's own.
    """

    def __init__(
        self,
        volumes: list[TrainingVolume],
        weights=None,
        *,
        seed: int = 0,
        drop: float = 0.1,
        gradnl: float = 0.0,
        bias: float = 0.0,
        device="cpu",
    ):
        self.device = torch.device(device)
        self.volumes = [replace(v, data=v.data.to(self.device)) for v in volumes]
        self.seed, self.drop = seed, drop
        self.gradnl, self.bias = gradnl, bias
        weights = np.ones(len(volumes)) if weights is None else np.asarray(weights, np.float64)
        self.weights = weights / weights.sum()
        self._memory: dict = {}

    def batch(self, step: int, count: int, patch: int, *, rank: int = 0, ranks: int = 1) -> Batch:
        """The `count` pairs of a step, patches of `patch`^3 (a multiple of 8).

        Half of them are new. The other half are the step before's new ones, mirrored at random: degrading a crop costs
        about as much as learning from it, and a mirrored pair is as good as new.
        """
        new = (count + 1) // 2

        def indices(s):
            return range((s * ranks + rank) * new, (s * ranks + rank + 1) * new)

        items = [self._remembered(i, patch) for i in indices(step)]
        items += [self._mirrored(i, patch) for i in indices(step - 1 if step else 2**30)][: count - new]
        keep = {(i, patch) for i in indices(step)}
        self._memory = {key: value for key, value in self._memory.items() if key in keep}
        return Batch(
            target=torch.stack([i[0] for i in items])[:, None],
            y=torch.stack([i[1] for i in items])[:, None],
            cond=Condition.stack([i[2] for i in items]),
            kinds=tuple(i[3] for i in items),
            band=torch.stack([i[4] for i in items]),
        )

    def _remembered(self, index: int, patch: int):
        if (index, patch) not in self._memory:
            self._memory[index, patch] = self.pair(index, patch)
        return self._memory[index, patch]

    def _mirrored(self, index: int, patch: int):
        target, y, cond, *rest = self._remembered(index, patch)
        rng = np.random.default_rng([self.seed, index, 1])
        axes = [axis for axis in range(3) if rng.random() < 0.5] or [0]
        return target.flip(axes), y.flip(axes), cond.flipped(axes), *rest

    def pair(self, index: int, patch: int):
        """(target [P, P, P], y [P, P, P], Condition of one, scanner class, band [3, P, P])."""
        rng = np.random.default_rng([self.seed, index])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        volume = self.volumes[rng.choice(len(self.volumes), p=self.weights)]
        order = [int(i) for i in rng.permutation(3)]
        scanner = random_scanner(rng, tuple(volume.fine_axes[i] for i in order))
        canonical = canonical_order(scanner.psf, (1.0, 1.0, 1.0))
        order, scanner = [order[i] for i in canonical], scanner.permuted(canonical)
        margin = MARGIN if max(scanner.factor) <= 3 else THICK_MARGIN
        size = patch + 2 * margin
        x = random_contrast(self._crop(volume, size, order, rng), rng)
        hr = grids.Grid((size,) * 3, np.eye(4))
        lr_shape, lr_voxel, shift = _coarse_axes(size, scanner.factor, rng)
        model = ForwardModel(hr.shape, lr_shape, _shifted_forward(hr.shape, lr_shape, lr_voxel, scanner.psf, shift))
        bias = bias_field((size,) * 3, generator, 0.15) if rng.random() < 0.3 else None
        reference = x if bias is None else x * bias.to(x)
        median = float(reference[reference > 0.15].median()) if bool((reference > 0.15).any()) else 1.0
        guided = random_guidance(np.random.default_rng([self.seed, index, 2]), size, patch, self.gradnl, self.bias)
        seen = reference if guided is None else guided.acquired(reference, scanner.psf)
        lr = degrade(seen, model, noise_sigma=scanner.noise * median, generator=self._on_device(generator, index))
        core = (slice(margin, margin + patch),) * 3
        start, positions = _shifted_start(lr_shape, lr_voxel, hr.shape, scanner.psf, shift)
        displaced = guided is not None and guided.distortion is not None
        if displaced:
            y = guided.start(lr, start, positions, scanner.psf)
        else:  # only the rows of the core: the margin is there for the acquisition, not for the network
            y = apply_axes(lr, [np.eye(size)[core[0]] if m is None else m[core[0]] for m in start])
        cond = Condition.of_acquisition(scanner.psf, (1.0, 1.0, 1.0), estimate_noise(lr))
        if guided is not None:
            y, cond = guided.corrected(y), replace(cond, guidance=guided.channels())
        band = None if displaced else band_matrices((patch,) * 3, (1.0, 1.0, 1.0), scanner.psf)
        band = torch.zeros(3, patch, patch) if band is None else torch.from_numpy(np.stack(band)).float()
        return reference[core] - y, y, cond.drop(self.drop, generator, GUIDANCE_DROP), scanner.kind, band

    def _on_device(self, generator: torch.Generator, index: int) -> torch.Generator:
        if self.device.type == "cpu":
            return generator
        seed = int(np.random.default_rng([self.seed, index, 3]).integers(2**62))
        return torch.Generator(self.device).manual_seed(seed)

    def _crop(self, volume: TrainingVolume, size: int, order: list[int], rng) -> torch.Tensor:
        """[size]^3 of a volume on its own or a coarser grid, its axes in `order`, flipped at random."""
        # A coarser "fine" grid has less noise and other proportions: scans differ in both.
        slack = max(1.0, min(1.6, 1.15 / min(volume.voxel_size)))
        zoom = 1.0 if rng.random() < 0.4 else _uniform(rng, 1.0, max(slack, 1.25))
        zooms = [zoom if fine else 1.0 for fine in volume.fine_axes]
        if not all(volume.fine_axes):
            # In-plane, 2D scans are interpolated by up to 1/0.7: go to where the detail is real.
            zooms = [_uniform(rng, 1.45, 1.8) if fine else 1.0 for fine in volume.fine_axes]
        spans = [int(np.ceil(size * z)) for z in zooms]
        centre = volume.centres[int(rng.integers(len(volume.centres)))].numpy()
        x = volume.data
        for axis, (span, n) in enumerate(zip(spans, x.shape)):
            jitter = int(rng.integers(-8, 9))
            start = int(np.clip(centre[axis] + jitter - span // 2, 0, max(0, n - span)))
            # A volume shorter than the crop is continued by its border.
            index = torch.arange(start, start + span, device=x.device).clamp(max=n - 1)
            x = x.index_select(axis, index) if len(index) > n else x.narrow(axis, start, span)
        if max(zooms) > 1:
            x = apply_axes(x, [_coarser(s, size, z) for s, z in zip(spans, zooms)])
        return x.permute(order).flip([i for i in range(3) if rng.random() < 0.5]).contiguous()


def _coarser(span: int, size: int, zoom: float):
    if zoom == 1.0:
        return None
    positions = 0.5 * ((span - 1) - (size - 1) * zoom) + zoom * np.arange(size)
    return fourier_matrix(span, positions, lambda f: (f < 0.5 / zoom).astype(np.float64))


def _coarse_axes(size: int, factor, rng):
    """Coarse samples per axis, their spacing, and a random sub-voxel shift so that every phase is seen."""
    shape = tuple(max(4, int(np.floor(size / f))) for f in factor)
    # Where the coarse grid is the fine one, a shift would be an interpolation nobody asked for.
    shift = tuple(0.0 if f == 1.0 else _uniform(rng, -0.5, 0.5) * f for f in factor)
    return shape, tuple(float(f) for f in factor), shift


def _shifted_forward(hr_shape, lr_shape, lr_voxel, psf, shift):
    matrices = []
    for n, m, v, p, s in zip(hr_shape, lr_shape, lr_voxel, psf, shift):
        identity = v == 1.0 and p.kind == "kspace" and p.window == "box" and p.width <= 1.0
        positions = grids.axis_positions(n, m, v) + s
        matrices.append(None if identity else fourier_matrix(n, positions, p.transfer))
    return tuple(matrices)


def _shifted_start(lr_shape, lr_voxel, hr_shape, psf, shift):
    """The start's matrix per axis, and where the fine voxels lie in the scan (index)."""
    matrices, places = [], []
    plain = start_matrices(lr_shape, lr_voxel, hr_shape, (1.0, 1.0, 1.0), psf)
    for matrix, m, v, n, p, s in zip(plain, lr_shape, lr_voxel, hr_shape, psf, shift):
        positions = grids.axis_positions(m, n, 1.0 / v) - s / v
        build = fourier_matrix if p.kind in ("kspace", "unknown") else bspline_matrix
        matrices.append(None if matrix is None else build(m, positions))
        places.append(positions)
    return tuple(matrices), tuple(places)
