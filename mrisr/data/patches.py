"""Training pairs: a random crop, a random contrast, a random scanner -> (residual, start y, condition).

Everything is a function of (seed, index): the same index gives the same pair on any machine, so that a resumed run
continues exactly and ranks need no shared state. Crops carry a margin on all sides, removed after the degradation, so
that the ends of the Fourier sums lie outside of what is learnt from; some patches end where the scan ends instead, as
heads do at the last slice, and of a scan whose background was cut out the coarse scan has none either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mrisr import grid as grids
from mrisr.data.crops import random_contrast, scan_crop
from mrisr.data.guidance import random_guidance
from mrisr.data.labels import LabelVolume
from mrisr.data.scanners import FAMILIES, Scanner, ScannerClass, random_scanner, uniform
from mrisr.data.synth import head_epoch, label_crop
from mrisr.nn.condition import Condition
from mrisr.nn.vector import canonical_order
from mrisr.ops.resample import apply_axes, bspline_matrix, fourier_matrix
from mrisr.physics.bias import bias_field
from mrisr.physics.degrade import SLICE_KINDS, ForwardModel, band_matrices, start_matrices
from mrisr.physics.foreground import certain
from mrisr.physics.intensity import estimate_noise

MARGIN = 16  # fine voxels around a patch, and half as many more where slices are thick: their splines reach far
THICK_MARGIN = 24
# Scans that the scanner has corrected itself come without guidance: more often than the rest of a condition.
GUIDANCE_DROP = 0.25
AT_THE_END = 0.2  # of the pairs: the scan ends where the patch ends
CUT_OUT = 0.7  # of the pairs of masked scans: the coarse scan's background was cut out too
DENOISED, PARTLY = 0.6, 0.15  # of the pairs, whose noise is to go: in all, and those that lose a part of it only
CLEANER = 1.5  # times the target's own noise: what a scan has to have before a target shows how to take it out


@dataclass(frozen=True)
class Pair:
    """One patch: target (HR - y) and y [P, P, P], a Condition of one, the scanner's class, band [3, P, P]."""

    target: torch.Tensor
    y: torch.Tensor
    cond: Condition
    kind: ScannerClass
    band: torch.Tensor

    def mirrored(self, axes: list[int]) -> Pair:
        """The same with the spatial axes in `axes` mirrored."""
        return replace(self, target=self.target.flip(axes), y=self.y.flip(axes), cond=self.cond.flipped(axes))


@dataclass(frozen=True)
class Batch:
    """Pairs of N patches.

    Attributes:
        target: what a network is to add to y, float32 [N, 1, P, P, P], normalised intensities.
        y: the start, like target.
        cond: a Condition.
        kinds: scanner class of each pair.
        band: float32 [N, 3, P, P], `band_matrices` of each pair; zeros where there is no measured band.
    """

    target: torch.Tensor
    y: torch.Tensor
    cond: Condition
    kinds: tuple[ScannerClass, ...]
    band: torch.Tensor

    @classmethod
    def of(cls, pairs: list[Pair]) -> Batch:
        """From single pairs; of their targets stays what `outside_band` leaves."""
        whole = cls(
            target=torch.stack([p.target for p in pairs])[:, None],
            y=torch.stack([p.y for p in pairs])[:, None],
            cond=Condition.stack([p.cond for p in pairs]),
            kinds=tuple(p.kind for p in pairs),
            band=torch.stack([p.band for p in pairs]),
        )
        return replace(whole, target=whole.outside_band(whole.target))

    def to(self, device) -> Batch:
        """The same on `device`."""
        tensors = (t.to(device) for t in (self.target, self.y, self.cond))
        return Batch(*tensors, self.kinds, self.band.to(device))

    def outside_band(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, 1, P, P, P] without what the scans measured, or the part of that which `cond.denoise` leaves alone:
        `mrisr.physics.degrade.outside_band`, batched."""
        outside = 1 - self.cond.denoise
        rows = [i for i in range(len(x)) if float(outside[i]) and bool(self.band[i, 0, 0].any())]
        if not rows:
            return x
        first, second, third = self.band[rows].to(x.dtype).unbind(1)
        n, p = len(rows), x.shape[-1]
        inside = x[rows, 0].reshape(n, p * p, p) @ third.mT
        inside = (second[:, None] @ inside.view(n, p, p, p)).view(n, p, p * p)
        inside = (first @ inside).view(n, 1, p, p, p) * outside[rows].to(x)[:, None, None, None, None]
        if len(rows) == len(x):
            return x - inside
        return x.index_add(0, torch.tensor(rows, device=x.device), inside, alpha=-1)


class PatchSampler:
    """Random training pairs from volumes.

    Args:
        volumes: `TrainingVolume`s and `LabelVolume`s.
        weights: relative frequency of each volume.
        seed: of everything random.
        drop: probability of forgetting each entry of the condition.
        gradnl, bias: probability that a pair is displaced by gradients, and that it has a known bias field, which the
            start is corrected for and the network told of (`mrisr.data.guidance`). The other pairs do not depend on it.
        families: of scanners, `mrisr.data.scanners.FAMILIES` or some of them.
        denoise: share of the pairs whose noise is to go, where their target is clean enough to show how.
        device: where the volumes lie and pairs are made. What is drawn is the same everywhere, except for the values of
            the noise, which are the device's own.
    """

    def __init__(
        self,
        volumes: list,
        weights=None,
        *,
        seed: int = 0,
        drop: float = 0.1,
        gradnl: float = 0.0,
        bias: float = 0.0,
        families: Sequence[str] = FAMILIES,
        denoise: float = DENOISED,
        device="cpu",
    ):
        self.device = torch.device(device)
        self.volumes = [replace(v, data=v.data.to(self.device)) for v in volumes]
        self.seed, self.drop = seed, drop
        self.gradnl, self.bias = gradnl, bias
        self.families, self.denoise = tuple(families), denoise
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
        return Batch.of(items)

    def _remembered(self, index: int, patch: int) -> Pair:
        if (index, patch) not in self._memory:
            self._memory[index, patch] = self.pair(index, patch)
        return self._memory[index, patch]

    def _mirrored(self, index: int, patch: int) -> Pair:
        rng = np.random.default_rng([self.seed, index, 1])
        return self._remembered(index, patch).mirrored([axis for axis in range(3) if rng.random() < 0.5] or [0])

    def pair(self, index: int, patch: int) -> Pair:
        """The pair of an index, a patch of `patch`^3."""
        rng = np.random.default_rng([self.seed, index])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        volume = self.volumes[rng.choice(len(self.volumes), p=self.weights)]
        order = [int(i) for i in rng.permutation(3)]
        scanner = random_scanner(rng, tuple(volume.fine_axes[i] for i in order), self.families)
        canonical = canonical_order(scanner.psf, (1.0, 1.0, 1.0))
        order, scanner = [order[i] for i in canonical], scanner.permuted(canonical)
        margin = MARGIN if max(scanner.factor) <= 3 else THICK_MARGIN
        size = patch + 2 * margin
        x = self._crop(volume, size, order, rng, index)
        bias = bias_field((size,) * 3, generator, 0.15) if rng.random() < 0.3 else None
        reference = x if bias is None else x * bias.to(x)
        median = _median(reference)
        denoise = _denoise(rng, volume, scanner, self.denoise)
        guided = random_guidance(np.random.default_rng([self.seed, index, 2]), size, patch, self.gradnl, self.bias)
        field = _Field.draw(rng, scanner, size, patch, at_the_end=guided is None)
        view = reference if guided is None else guided.acquired(reference, scanner.psf)
        lr = field.acquire(view, scanner.noise * median, self._on_device(generator, index))
        if volume.masked and guided is None and rng.random() < CUT_OUT:
            lr = lr * field.coarse_mask(x)
        noise = estimate_noise(scanner.stored_as(lr))
        cond = Condition.of_acquisition(
            scanner.known_psf,
            (1.0, 1.0, 1.0),
            noise,
            stored=scanner.factor,
            denoise=denoise,
            apodisation_known=scanner.windows_known,
        )
        displaced = guided is not None and guided.distortion is not None
        y = guided.start(lr, *field.start(), scanner.psf) if displaced else apply_axes(lr, field.core_start())
        if guided is not None:
            y, cond = guided.corrected(y), replace(cond, guidance=guided.channels())
        cond = cond.drop(self.drop, generator, GUIDANCE_DROP)
        band = None if displaced else band_matrices((patch,) * 3, (1.0,) * 3, _band_psf(scanner, cond))
        band = torch.zeros(3, patch, patch) if band is None else torch.from_numpy(np.stack(band)).float()
        return Pair(reference[field.core] - y, y, cond, scanner.kind, band)

    def _crop(self, volume, size: int, order: list[int], rng: np.random.Generator, index: int) -> torch.Tensor:
        if isinstance(volume, LabelVolume):
            head = volume.head(self.seed, head_epoch(index)).to(self.device)
            return label_crop(volume, size, order, rng, head)
        return random_contrast(scan_crop(volume, size, order, rng), rng)

    def _on_device(self, generator: torch.Generator, index: int) -> torch.Generator:
        if self.device.type == "cpu":
            return generator
        seed = int(np.random.default_rng([self.seed, index, 3]).integers(2**62))
        return torch.Generator(self.device).manual_seed(seed)


def _median(reference: torch.Tensor) -> float:
    """Median of the head, of every third voxel; 1 where there is none."""
    sample = reference[::3, ::3, ::3]
    sample = sample[certain(sample)]
    return float(sample.median()) if len(sample) else 1.0


def _denoise(rng: np.random.Generator, volume, scanner: Scanner, denoised: float) -> float:
    """How much of the noise is to go: only where the target itself is cleaner than the scan."""
    draw = rng.random()
    share = 1.0 if draw < denoised - PARTLY else uniform(rng, 0, 1) if draw < denoised else 0.0
    own = volume.noise / np.sqrt(np.prod(scanner.factor))
    return share if scanner.noise >= CLEANER * own else 0.0


def _band_psf(scanner: Scanner, cond: Condition):
    """The point spreads by which the measured band is fixed: a window that the network does not know is no window."""
    return scanner.psf if bool(cond.apodisation_known.any()) else scanner.known_psf


@dataclass(frozen=True)
class _Field:
    """Where the coarse samples lie in a crop of `size`^3, and the patch in it.

    Attributes:
        scanner: what samples.
        size: fine voxels along the crop.
        counts: coarse samples per axis, all of the crop.
        shift: of the coarse grid against the fine one, fine voxels, so that every phase is seen.
        extent: of the coarse samples, those that the scan has.
        core: of the fine voxels, the patch.
    """

    scanner: Scanner
    size: int
    counts: tuple[int, int, int]
    shift: tuple[float, float, float]
    extent: tuple[slice, slice, slice]
    core: tuple[slice, slice, slice]

    @classmethod
    def draw(cls, rng: np.random.Generator, scanner: Scanner, size: int, patch: int, *, at_the_end: bool) -> _Field:
        factor, margin = scanner.factor, (size - patch) // 2
        counts = tuple(max(4, int(np.floor(size / f))) for f in factor)
        # Where the coarse grid is the fine one, a shift would be an interpolation nobody asked for.
        shift = tuple(0.0 if f == 1.0 else uniform(rng, -0.5, 0.5) * f for f in factor)
        extents = [slice(0, n) for n in counts]
        core = [slice(margin, margin + patch)] * 3
        if at_the_end and rng.random() < AT_THE_END:
            axis = 2 if scanner.psf[2].kind in SLICE_KINDS else int(rng.integers(3))
            edges = _edges(size, counts[axis], factor[axis], shift[axis])
            if rng.random() < 0.5:  # the first sample whose voxel begins within the margin's end
                first = int(np.searchsorted(edges, margin - 0.5))
                extents[axis] = slice(first, counts[axis])
                begin = int(round(edges[first] + 0.5))
            else:
                last = int(np.searchsorted(edges, size - margin - 0.5, side="right")) - 1
                extents[axis] = slice(0, last)
                begin = int(round(edges[last] + 0.5)) - patch
            core[axis] = slice(begin, begin + patch)
        return cls(scanner, size, counts, shift, tuple(extents), tuple(core))

    def acquire(self, x: torch.Tensor, sigma: float, generator: torch.Generator) -> torch.Tensor:
        """The scan of a crop."""
        return self.scanner.disturbed(self._model().forward(x), sigma, generator)[self.extent].contiguous()

    def coarse_mask(self, x: torch.Tensor) -> torch.Tensor:
        """1 where the scan shows what is not background in x, else 0."""
        return (self._model().forward((x != 0).to(x.dtype)) > 0.5)[self.extent].to(x.dtype)

    def _model(self) -> ForwardModel:
        matrices = []
        for m, v, p, s in zip(self.counts, self.scanner.factor, self.scanner.psf, self.shift):
            identity = v == 1.0 and p.kind == "kspace" and p.window == "box" and p.width <= 1.0
            positions = grids.axis_positions(self.size, m, v) + s
            matrices.append(None if identity else fourier_matrix(self.size, positions, p.transfer))
        return ForwardModel((self.size,) * 3, self.counts, tuple(matrices))

    def start(self) -> tuple[tuple, tuple]:
        """The start's matrix per axis [size, kept samples], None where nothing changes, and where the fine voxels lie
        in the scan (index)."""
        factor, psf = self.scanner.factor, self.scanner.psf
        matrices, places = [], []
        plain = start_matrices(self.counts, factor, (self.size,) * 3, (1.0,) * 3, psf)
        for matrix, m, v, p, s, extent in zip(plain, self.counts, factor, psf, self.shift, self.extent):
            positions = grids.axis_positions(m, self.size, 1.0 / v) - s / v - extent.start
            build = fourier_matrix if p.kind in ("kspace", "unknown") else bspline_matrix
            untouched = matrix is None and extent == slice(0, m)
            matrices.append(None if untouched else build(extent.stop - extent.start, positions))
            places.append(positions)
        return tuple(matrices), tuple(places)

    def core_start(self) -> list[np.ndarray]:
        """The rows of the start that make the patch: the margin is there for the acquisition, not for the network."""
        matrices, _ = self.start()
        return [np.eye(self.size)[c] if m is None else m[c] for m, c in zip(matrices, self.core)]


def _edges(size: int, count: int, factor: float, shift: float) -> np.ndarray:
    """Where the voxels of the coarse samples begin and the last one ends, in fine voxels: [count + 1]."""
    centres = grids.axis_positions(size, count, factor) + shift
    return np.append(centres - factor / 2, centres[-1] + factor / 2)
