"""The scan, scanned once more with its slices along an in-plane axis, and patches of that to learn from.

The answer of the network that is to learn is the head. It is measured along an in-plane axis by the scan's own point
spread with two axes exchanged; what is lost along that axis the scan itself shows. The network is told exactly what it
is told of the scan. Across the true slices the head is blurred, or partly made up where the network has made it sharp:
what the scan has measured is learnt, frequencies that its voxels hold along every axis, and nothing else (`Patches`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mrisr.adapt.plan import FEWEST_PLANES, PATCH, RESERVED, VOXELS, TrainingPlan
from mrisr.errors import InputError
from mrisr.nn.condition import Condition
from mrisr.nn.vector import windowed
from mrisr.ops.resample import apply_axes
from mrisr.physics.degrade import ForwardModel, start_matrices
from mrisr.physics.foreground import certain
from mrisr.physics.intensity import estimate_noise
from mrisr.physics.psf import PSF, AxisPSF

MOST_CENTRES = 20_000  # voxels of tissue that patches may lie around


@dataclass(frozen=True, eq=False)
class TrainingPair:
    """The head, scanned with its slices along an in-plane axis.

    Attributes:
        target, y: float32 [X, Y, Z], normalised: what was there, and what a network starts from.
        order: of the axes, as the network sees them: the new slices last.
        cond: what the network is told.
        reserve: planes [first, end) along the axis of the true slices that are not learnt from.
        thick: that axis.
        edges: per axis, what the scan has measured of `target`: up to so many cycles per voxel.
        centres: int64 [K, 3], tissue.
    """

    target: torch.Tensor
    y: torch.Tensor
    order: tuple[int, int, int]
    cond: Condition
    reserve: tuple[int, int]
    thick: int
    edges: tuple[float, float, float]
    centres: np.ndarray


def training_pairs(
    head: torch.Tensor, plan: TrainingPlan, noise: float | None, seed: int, name: str
) -> list[TrainingPair]:
    """Of both in-plane axes, the new slices at several places.

    Args:
        head: float32 [X, Y, Z] on the target grid, normalised: what the network has answered.
        noise: of the scan, as a part of the intensity scale; None: unknown.
        seed: of the noise.
        name: of the scan, for the error.

    Raises:
        InputError: too little of the head is in the scan.
    """
    head = _even(head, plan)
    generator, pairs = torch.Generator().manual_seed(seed), []
    for axis in (a for a in range(3) if a != plan.thick):
        psf, stored = list(plan.psf), list(plan.stored)
        psf[axis], psf[plan.thick] = psf[plan.thick], psf[axis]
        stored[axis], stored[plan.thick] = stored[plan.thick], stored[axis]
        for shift in plan.shifts:
            part = head.narrow(axis, shift, head.shape[axis] - shift)
            pairs.append(_pair(part, plan, tuple(psf), tuple(stored), axis, noise or 0.0, generator, name))
    return pairs


def _even(head: torch.Tensor, plan: TrainingPlan) -> torch.Tensor:
    """The head in voxels as long as wide: the new slices then ask of the network what the true ones do."""
    size = (plan.voxel,) * 3
    if np.allclose(plan.target, size, rtol=1e-4):
        return head
    shape = tuple(max(1, int(n * t / plan.voxel + 0.5 + 1e-4)) for n, t in zip(head.shape, plan.target))
    psf = tuple(AxisPSF("kspace", plan.voxel) for _ in range(3))
    return ForwardModel.between(head.shape, plan.target, shape, size, psf).forward(head)


def _pair(
    head: torch.Tensor, plan: TrainingPlan, psf: PSF, stored, axis: int, noise: float, generator, name: str
) -> TrainingPair:
    fine = (plan.voxel,) * 3
    shape = [max(1, int(n * f / s + 0.5 + 1e-4)) for n, f, s in zip(head.shape, fine, stored)]
    lr = ForwardModel.between(head.shape, fine, shape, stored, psf).forward(head)
    # As noisy as the scan: averaging over slices a second time has taken noise out.
    missing = math.sqrt(max(0.0, noise**2 - (estimate_noise(lr) or 0.0) ** 2))
    lr = lr + missing * torch.randn(lr.shape, generator=generator)
    y = apply_axes(lr, start_matrices(shape, stored, head.shape, fine, psf))
    order = (*(a for a in range(3) if a != axis), axis)
    ordered_psf, ordered_fine, ordered_stored = ([v[a] for a in order] for v in (psf, fine, stored))
    of_scan = dict(stored=ordered_stored, apodisation_known=windowed(ordered_psf))
    cond = Condition.of_acquisition(ordered_psf, ordered_fine, estimate_noise(lr), **of_scan)
    inside = np.argwhere(certain(head).numpy())
    low, high = _reserve(inside[:, plan.thick], plan, name)
    centres = inside[:: max(1, len(inside) // MOST_CENTRES)].copy()
    return TrainingPair(head, y, order, cond, (low, high), plan.thick, plan.edges, centres)


def _reserve(planes: np.ndarray, plan: TrainingPlan, name: str) -> tuple[int, int]:
    """The planes of the middle of the head that are not learnt from. `planes`: of every voxel of tissue."""
    low, high = (0, 0) if not len(planes) else (int(p) for p in np.percentile(planes, RESERVED))
    if high - low < max(1, plan.widths[plan.thick] / plan.voxel / 2):
        across = (planes.max() - planes.min() + 1) * plan.voxel if len(planes) else 0.0
        slices = across / plan.stored[plan.thick]
        raise InputError(
            f"{name}: adapt: the head lies in {slices:.0f} slices, too few to learn from some and be judged by others; "
            "leave adapt out"
        )
    return low, high


class Patches:
    """Random patches of pairs, none of them of the planes that are reserved."""

    def __init__(self, pairs: list[TrainingPair], seed: int, name: str):
        self.pairs, self.rng = pairs, np.random.default_rng(seed)
        first = pairs[0]
        low, high = first.reserve
        room = max(low, first.target.shape[first.thick] - high)
        size = [min(PATCH, min(n) // 8 * 8) for n in zip(*(pair.target.shape for pair in pairs))]
        size[first.thick] = min(PATCH, room // 8 * 8)
        self.size = size
        if min(size) < FEWEST_PLANES or not all(self._has_room(pair) for pair in pairs):
            raise InputError(
                f"{name}: adapt: beside the planes that it is judged by, the head leaves no room for a patch of "
                f"{' x '.join(str(max(FEWEST_PLANES, n)) for n in size)} voxels; leave adapt out"
            )
        self.count = max(1, round(VOXELS / math.prod(size)))

    def batch(self) -> tuple[torch.Tensor, torch.Tensor, Condition, tuple[float, float, float]]:
        """(target, y, condition, edges) of a step: patches [N, 1, ...] of one pair, and what of them is measured
        along each of their axes. The two axes that are not the new slices' are exchanged at random: to the network they
        are alike."""
        pair = self.pairs[int(self.rng.integers(len(self.pairs)))]
        order = pair.order if self.rng.random() < 0.5 else (pair.order[1], pair.order[0], pair.order[2])
        patches = [self._patch(pair, order) for _ in range(self.count)]
        target, y = (torch.stack(v)[:, None].contiguous() for v in zip(*patches))
        return target, y, Condition.stack([pair.cond] * self.count), tuple(pair.edges[a] for a in order)

    def _patch(self, pair: TrainingPair, order) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = pair.reserve
        while True:
            centre = pair.centres[int(self.rng.integers(len(pair.centres)))]
            start = [
                int(np.clip(c + int(self.rng.integers(-8, 9)) - s // 2, 0, n - s))
                for c, s, n in zip(centre, self.size, pair.y.shape)
            ]
            first = start[pair.thick]
            if first >= high or first + self.size[pair.thick] <= low:
                break
        where = tuple(slice(a, a + s) for a, s in zip(start, self.size))
        flips = [a for a in range(3) if self.rng.random() < 0.5]
        return tuple(v[where].permute(order).flip(flips) for v in (pair.target, pair.y))

    def _has_room(self, pair: TrainingPair) -> bool:
        """Whether one patch in a hundred at least lies beside the reserved planes, so that one is soon found."""
        low, high = pair.reserve
        size, most = self.size[pair.thick], pair.y.shape[pair.thick] - self.size[pair.thick]
        starts = np.clip(pair.centres[:, pair.thick] - size // 2, 0, most)
        return bool(np.mean((starts >= high) | (starts + size <= low)) >= 0.01)


def measured(x: torch.Tensor, edges: tuple[float, float, float]) -> torch.Tensor:
    """x [..., D, H, W] without what lies above `edges`, cycles per voxel, along its last three axes."""
    for axis, edge in zip(range(x.ndim - 3, x.ndim), edges):
        if edge >= 0.5:
            continue
        n = x.shape[axis]
        inside = (torch.fft.rfftfreq(n, device=x.device) < edge).to(x.dtype)
        spectrum = torch.fft.rfft(x, dim=axis) * inside.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
        x = torch.fft.irfft(spectrum, n=n, dim=axis)
    return x


def one_of_each_axis(pairs: list[TrainingPair]) -> Iterator[TrainingPair]:
    """The last pair of each axis."""
    yield from {pair.order: pair for pair in pairs}.values()


def turned_back(pair: TrainingPair, patch: torch.Tensor) -> torch.Tensor:
    """A patch in the network's order of axes, in the stored order."""
    return patch.permute(tuple(int(a) for a in np.argsort(pair.order)))
