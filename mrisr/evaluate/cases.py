"""Every case there is by name: what scan a fine volume is turned into before it has to be brought back.

`PROTOCOL` has five; `CASES` one more, of denoising alone. Training validates on the cheaper `TRAINING` while it
runs.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from mrisr import grid as grids
from mrisr.errors import InputError, UsageError
from mrisr.evaluate.masks import head_mask
from mrisr.evaluate.metrics import data_range
from mrisr.grid import Grid
from mrisr.physics.bias import bias_field
from mrisr.physics.degrade import ForwardModel, coarse_grid, degrade
from mrisr.physics.psf import PSF, AxisPSF


@dataclass(frozen=True)
class Case:
    """factor: coarse voxel / fine voxel per stored axis; profile: point spread kind per axis, its width is
    the coarse voxel; noise: Rician sigma as a fraction of the median inside the head; bias: a smooth
    multiplicative field."""

    name: str
    factor: tuple[float, float, float]
    profile: tuple[str, str, str]
    noise: float = 0.0
    bias: bool = False

    def __str__(self) -> str:
        parts = [" x ".join(f"{f:g}" for f in self.factor), "/".join(dict.fromkeys(self.profile))]
        parts += [f"Rician noise {100 * self.noise:g} % of the median head"] if self.noise else []
        parts += ["bias field"] if self.bias else []
        return f"{self.name}: {', '.join(parts)}"


FEWEST_COARSE = 6  # coarse voxels per axis; with fewer, a scan is mostly border

_CUT = ("kspace", "kspace", "kspace")
CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("iso2", (2, 2, 2), _CUT),
        Case("iso2n", (2, 2, 2), _CUT, noise=0.02),
        Case("thick4", (1, 1, 4), ("kspace", "kspace", "gaussian")),
        Case("iso1p5", (1.5, 1.5, 1.5), _CUT),
        # The sharper slice profile here, so that both are in the table.
        Case("mix", (1.3, 1.3, 5), ("kspace", "kspace", "supergaussian"), noise=0.02, bias=True),
        # No finer than it was: whatever is gained is noise that went. Not among the five of the protocol.
        Case("noisy", (1, 1, 1), _CUT, noise=0.04),
    )
}
PROTOCOL = tuple(name for name in CASES if name != "noisy")
# `mix` has a bias field, which a single network is not asked about, and `noisy` nothing finer to be found.
_THICK5N = Case("thick5n", (1.3, 1.3, 5), ("kspace", "kspace", "gaussian"), noise=0.015)
TRAINING: dict[str, Case] = {c.name: c for c in (*CASES.values(), _THICK5N) if not c.bias and max(c.factor) > 1}


@dataclass(frozen=True)
class Subject:
    """A fine volume to be judged against: data float32 [X, Y, Z], its grid, head mask, and a name for the
    tables."""

    name: str
    data: np.ndarray
    grid: Grid
    mask: np.ndarray


@dataclass(frozen=True)
class Trial:
    """One subject in one case.

    reference [X, Y, Z] on `fine` (with the bias field, where the case has one: super-resolution is not asked
    to remove it), mask on the same grid; scan [x, y, z] on `coarse` is all that a method may see; `model` is
    the clean linear operator between them, `psf` its description, `sigma` the noise of `scan` (0: none).
    """

    subject: str
    case: Case
    reference: np.ndarray
    mask: np.ndarray
    fine: Grid
    scan: np.ndarray
    coarse: Grid
    psf: PSF
    model: ForwardModel
    sigma: float

    @property
    def band(self) -> tuple[float, float, float]:
        """The acquired band per axis in cycles per fine voxel: half of one over the factor."""
        return tuple(0.5 / f for f in self.case.factor)


def subject_of(name: str, data: np.ndarray, grid: Grid, crop: int | None = None) -> Subject:
    """Mask a volume and, if asked, cut a box of `crop` voxels per axis out of the middle of the head.

    The mask is taken before the cut, while there is air to tell the head from.
    """
    data_range(data, name)  # refuses a volume that no PSNR can be taken of, before any work is done on it
    mask = head_mask(data, grid.voxel_size)
    if crop is not None:
        if crop < 16:
            raise UsageError(f"crop must be at least 16 voxels, found {crop}")
        middle = np.array(
            [np.mean(np.flatnonzero(mask.any(axis=tuple(b for b in range(3) if b != a)))) for a in range(3)]
        )
        size = np.minimum(crop, data.shape)
        start = np.clip(np.round(middle - (size - 1) / 2).astype(int), 0, np.array(data.shape) - size)
        data, mask, grid = _cut(data, mask, grid, start, size)
        if not mask.any():
            raise InputError(f"{name}: the middle {crop}^3 voxels hold no head")
    return Subject(name, np.ascontiguousarray(data, dtype=np.float32), grid, mask)


def make_trial(subject: Subject, case: Case, seed: int = 0) -> Trial:
    """Degrade a subject by a case. The seed and the case's name fix noise and bias field, whatever else is
    run.

    The fine grid is trimmed (by less than one coarse voxel per axis, half on each side) to one that the
    planner comes back to from the coarse grid, so that every method answers on exactly the reference's
    voxels.
    """
    subject = _trimmed(subject, case)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{case.name}/{seed}".encode()))
    reference = torch.as_tensor(subject.data)
    if case.bias:
        reference = reference * bias_field(reference.shape, generator)
    sigma = case.noise * float(reference[torch.as_tensor(subject.mask)].median())
    coarse = coarse_grid(subject.grid, case.factor)
    psf = tuple(AxisPSF(kind, float(v)) for kind, v in zip(case.profile, coarse.voxel_size, strict=True))
    model = ForwardModel.between(subject.grid.shape, subject.grid.voxel_size, coarse.shape, coarse.voxel_size, psf)
    scan = degrade(reference, model, noise_sigma=sigma, generator=generator).numpy()
    return Trial(subject.name, case, reference.numpy(), subject.mask, subject.grid, scan, coarse, psf, model, sigma)


def _trimmed(subject: Subject, case: Case) -> Subject:
    shape = np.array(subject.grid.shape)
    for axis in range(3):
        while not _comes_back(subject.grid, shape, case, axis):
            shape[axis] -= 1
        if shape[axis] < FEWEST_COARSE * case.factor[axis]:
            raise InputError(
                f"{subject.name}: axis {axis} has {subject.grid.shape[axis]} voxels, too few for case "
                f"{case.name} ({case.factor[axis]:g} times coarser); leave that case out"
            )
    if tuple(shape) == tuple(subject.grid.shape):
        return subject
    start = (np.array(subject.grid.shape) - shape) // 2
    data, mask, grid = _cut(subject.data, subject.mask, subject.grid, start, shape)
    return Subject(subject.name, np.ascontiguousarray(data), grid, mask)


def _comes_back(grid: Grid, shape, case: Case, axis: int) -> bool:
    fine = Grid(tuple(int(n) for n in shape), grid.affine)
    again = grids.plan(coarse_grid(fine, case.factor), voxel_size=fine.voxel_size)
    return again.shape[axis] == fine.shape[axis]


def _cut(data, mask, grid: Grid, start, size):
    where = tuple(slice(int(a), int(a + n)) for a, n in zip(start, size, strict=True))
    affine = np.array(grid.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ np.asarray(start, dtype=np.float64)
    return data[where], mask[where], Grid(tuple(int(n) for n in size), affine)
