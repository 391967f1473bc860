"""Label maps to synthesise heads from: read, checked, and made into another person's every now and then.

What is drawn about a whole head (its folds displaced, shells around a bare brain, vessels, lesions) is drawn once per
`RENEWAL` pairs and kept; colours, resolution and noise are drawn for every crop (`mrisr.data.synth`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from mrisr.errors import InputError
from mrisr.ops.resample import apply_axes, interpolation_matrix

RENEWAL = 8192  # pairs for which a head stays as it is
MOST_LABELS = 200  # beside what is added to them: uint8 has to reach
HIGHEST_LABEL = 1_000_000  # FreeSurfer counts to 14 175
POINTS = 50_000  # to centre patches on: enough to reach everywhere, few enough to keep
BARE = 0.392  # of a field of view cropped to what is labelled: a head with skull and skin fills more, a brain less
VESSEL, BRIGHT, DARK, SHELLS = 201, 202, 203, (210, 211, 212, 213)
SHELL_MM = (2.0, 3.5, 9.0, 11.0)  # from the brain: fluid, inner table and bone, scalp, skin
DISPLACEMENT = 5.0  # mm, of a fold, standard deviation at the nodes
NODES = 7  # along the longest axis
VESSEL_RADIUS = (0.03, 0.08)  # of the two fields whose common zeros are tubes
LESIONS = (0, 25)  # per head
LESION_MM = (1.0, 5.0)


def smooth_noise(shape, coarse: int, generator: torch.Generator) -> torch.Tensor:
    """Cubic-spline noise of unit variance at the nodes: [X, Y, Z], `coarse` control points along the longest axis."""
    nodes = [max(4, int(round(coarse * n / max(shape)))) for n in shape]
    noise = torch.randn(nodes, generator=generator)
    return apply_axes(noise, [interpolation_matrix(c, n, c / n, "bspline", 3) for c, n in zip(nodes, shape)])


def spread_points(inside: torch.Tensor) -> torch.Tensor:
    """Indices [K, 3] of about `POINTS` of the voxels that are true in `inside` [X, Y, Z], evenly spread."""
    flat = torch.nonzero(inside.flatten())[:, 0]
    flat = flat[:: max(1, len(flat) // POINTS)]
    return torch.stack(torch.unravel_index(flat, inside.shape), dim=1)


@dataclass(frozen=True)
class LabelVolume:
    """A label map.

    Attributes:
        data: uint8 [X, Y, Z], 0 is outside; classes are numbered without gaps.
        voxel_size: mm, 3 values.
        centres: int64 [K, 3], labelled voxels to centre patches on.
        name: for messages.
    """

    data: torch.Tensor
    voxel_size: tuple[float, float, float]
    centres: torch.Tensor
    name: str
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    # As a scan without noise of its own, of no axis that is coarser, and with nothing cut out.
    fine_axes, noise, masked = (True, True, True), 0.0, False

    @classmethod
    def from_array(cls, data: np.ndarray, voxel_size, name: str) -> LabelVolume:
        """From integers of any type. InputError: fractional, negative or too many labels, or hardly any labelled."""
        data = np.asarray(data)
        if not np.issubdtype(data.dtype, np.integer):
            if not (np.isfinite(data).all() and np.array_equal(np.rint(data), data)):
                raise InputError(f"{name}: expected whole numbers in a label map, found fractions; is it a scan?")
            data = np.rint(data)
        low, high = int(data.min()), int(data.max())
        if low < 0 or high > HIGHEST_LABEL:
            raise InputError(f"{name}: expected labels from 0 to {HIGHEST_LABEL} in a label map, found {low} to {high}")
        data = data.astype(np.int32)
        values = np.flatnonzero(np.bincount(data.ravel(), minlength=1) > 0)
        values = values[values != 0]
        if not 1 <= len(values) <= MOST_LABELS:
            raise InputError(f"{name}: expected 1 to {MOST_LABELS} labels beside 0, found {len(values)}")
        numbers = np.zeros(high + 1, np.uint8)
        numbers[values] = np.arange(1, len(values) + 1)
        labels = torch.from_numpy(numbers[data])
        return cls(labels, tuple(map(float, voxel_size)), spread_points(labels > 0), name)

    @property
    def true_mm(self) -> tuple[float, float, float]:
        return self.voxel_size

    def head(self, seed: int, epoch: int) -> torch.Tensor:
        """The labels of another person of this anatomy: uint8 [X, Y, Z], a function of (seed, epoch)."""
        if (seed, epoch) not in self._cache:
            self._cache.clear()
            self._cache[seed, epoch] = another_person(self, np.random.default_rng([seed, epoch, len(self.centres)]))
        return self._cache[seed, epoch]


def another_person(volume: LabelVolume, rng: np.random.Generator) -> torch.Tensor:
    """Displace the folds of a label map smoothly, put shells about a bare brain, and add vessels and lesions."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    labels, shape = volume.data, volume.data.shape
    strength = float(rng.uniform(0, DISPLACEMENT))
    index = []
    for axis, (n, size) in enumerate(zip(shape, volume.voxel_size)):
        position = smooth_noise(shape, NODES, generator).mul_(strength / size)
        position += torch.arange(n, dtype=torch.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        index.append(position.round_().clamp_(0, n - 1).to(torch.int64))
    labels = labels[tuple(index)]
    del index
    if float((volume.data > 0).float().mean()) < BARE and rng.random() < 0.6:
        labels = shelled(labels, volume.voxel_size, rng)
    inside = labels > 0
    tubes = sum(smooth_noise(shape, 14, generator).square_() for _ in range(2))
    labels[(tubes < float(rng.uniform(*VESSEL_RADIUS)) ** 2) & inside] = VESSEL
    for _ in range(int(rng.integers(*LESIONS))):
        add_lesion(labels, volume, rng)
    return labels


def shelled(labels: torch.Tensor, voxel_size, rng: np.random.Generator) -> torch.Tensor:
    """Fluid, bone, fat and skin about a brain, each of random thickness."""
    full = (labels[::2, ::2, ::2] > 0).to(torch.uint8)
    step, apart, covered = 2 * float(np.mean(voxel_size)), 0.0, full.float()[None, None]
    edges = np.cumsum([s * rng.uniform(0.5, 1.3) for s in np.diff([0.0, *SHELL_MM])])
    for turn in range(int(edges[-1] / step)):
        apart += step
        label = SHELLS[int(np.searchsorted(edges, apart))]
        # By cubes and by their six sides in turn: nearly a sphere.
        sides = [[3, 1, 1], [1, 3, 1], [1, 1, 3]] if turn % 2 else [[3, 3, 3]]
        pools = [F.max_pool3d(covered, side, 1, [n // 2 for n in side]) for side in sides]
        larger = torch.stack(pools).amax(0)
        full[(larger > covered)[0, 0]] = label
        covered = larger
    full[full == 1] = 0  # the brain itself, which `labels` has
    for axis, n in enumerate(labels.shape):
        full = full.repeat_interleave(2, axis).narrow(axis, 0, n)
    return torch.where(labels > 0, labels, full)


def add_lesion(labels: torch.Tensor, volume: LabelVolume, rng: np.random.Generator) -> None:
    """Write one bright or dark blob of ragged outline into `labels`."""
    centre = volume.centres[int(rng.integers(len(volume.centres)))].numpy()
    radius = float(rng.uniform(*LESION_MM))
    half = [int(np.ceil(1.5 * radius / v)) for v in volume.voxel_size]
    box = tuple(slice(max(0, int(c) - h), int(c) + h + 1) for c, h in zip(centre, half))
    part = labels[box]
    if min(part.shape) < 4:
        return
    squared = torch.zeros(part.shape)
    stretch = rng.uniform(0.6, 1.4, 3)
    for axis, (s, c, v) in enumerate(zip(box, centre, volume.voxel_size)):
        line = (torch.arange(s.start, s.start + part.shape[axis]) - int(c)) * (v * stretch[axis])
        squared += line.square().reshape([-1 if a == axis else 1 for a in range(3)])
    ragged = smooth_noise(part.shape, 4, torch.Generator().manual_seed(int(rng.integers(2**62))))
    blob = squared < (radius * (1 + 0.3 * ragged)).clamp_min(0) ** 2
    part[blob & (part > 0)] = BRIGHT if rng.random() < 0.6 else DARK
