"""What PSNR does not see: does the picture still agree with the measurement, with the tissue, and with small
lesions?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch

from mrisr.evaluate.baselines import trilinear
from mrisr.evaluate.cases import Case, Subject, Trial, make_trial
from mrisr.evaluate.masks import erode
from mrisr.evaluate.metrics import filtered
from mrisr.ops.resample import apply_axes
from mrisr.physics.degrade import start_matrices


def residual_chi2(trial: Trial, image: np.ndarray) -> float | None:
    """Mean of ((H image - scan) / sigma)^2 over the head: chi^2 per degree of freedom, 1 where the residual
    is noise.

    H is the case's own operator. None without noise. Voxels below 5 sigma are left out: Rician noise is
    Gaussian only above that (Gudbjartsson and Patz 1995).
    """
    if trial.sigma == 0:
        return None
    again = trial.model.forward(torch.as_tensor(image)).numpy()
    inside = (coarse_mask(trial) > 0.5) & (trial.scan > 5 * trial.sigma)
    if not inside.any():
        return None
    return float(np.mean(((again - trial.scan)[inside].astype(np.float64) / trial.sigma) ** 2))


def coarse_mask(trial: Trial) -> np.ndarray:
    """The head mask on the coarse grid, as the interpolated fraction of head."""
    return trilinear(trial.mask.astype(np.float32), trial.fine, trial.coarse)


def intensity_shift(trial: Trial, image: np.ndarray) -> float:
    """Relative change of the mean intensity inside the mask; 0 is none."""
    before = float(np.mean(trial.reference[trial.mask], dtype=np.float64))
    return float(np.mean(image[trial.mask], dtype=np.float64)) / before - 1.0


def tissue_change(trial: Trial, image: np.ndarray) -> float:
    """Largest relative change of volume of three intensity classes (Otsu, thresholds of the reference) in the
    mask.

    Both volumes are smoothed by one voxel first: otherwise the noise of the reference decides who belongs
    where.
    """
    truth = filtered(trial.reference, 1.0)[trial.mask]
    detail = filtered(image, 1.0)[trial.mask]
    edges = [-np.inf, *three_class_thresholds(truth), np.inf]
    before = np.histogram(truth, edges)[0]
    after = np.histogram(detail, edges)[0]
    return float(np.max(np.abs(after - before) / np.maximum(before, 1)))


def three_class_thresholds(values: np.ndarray, bins: int = 128) -> tuple[float, float]:
    """Two thresholds that maximise the variance between three classes (Otsu 1979, by exhaustive search)."""
    low, high = np.percentile(values, [0.5, 99.5])
    count, edges = np.histogram(values, bins=bins, range=(low, high))
    middle = 0.5 * (edges[1:] + edges[:-1])
    weight = np.concatenate([[0], np.cumsum(count)]).astype(np.float64)
    moment = np.concatenate([[0], np.cumsum(count * middle)])
    i, j = np.meshgrid(np.arange(1, bins), np.arange(1, bins), indexing="ij")

    def term(a, b):
        inside = weight[b] - weight[a]  # an empty class adds nothing
        return np.divide((moment[b] - moment[a]) ** 2, inside, out=np.zeros(inside.shape), where=inside > 0)

    between = np.where(i < j, term(0, i) + term(i, j) + term(j, bins), -1.0)
    best = np.unravel_index(int(between.argmax()), between.shape)
    return float(edges[i[best]]), float(edges[j[best]])


# --- lesions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lesion:
    """centre in fine voxels, diameter in mm, contrast as a signed fraction of the median head."""

    centre: tuple[int, int, int]
    diameter: float
    contrast: float


@dataclass
class LesionResult:
    """What became of the inserted lesions, as counts.

    survived: amplitude >= 50 %; visible: >= 3 sigma in the scan (all, without noise); recovered: visible, and
    amplitude >= 80 %. ghosts: responses of at least half the weakest contrast away from every lesion.
    phantoms: in the lesion-free scan, blobs of a lesion's size that differ from the truth (in the acquired
    band) by at least the weakest contrast and by more than the truth varies there. invented: visible lesions whose
    signature, at least half as strong, the rescanned answer to the lesion-free scan shows and that scan does not.
    amplitudes: each one.
    """

    inserted: int
    survived: int
    visible: int
    recovered: int
    ghosts: int
    phantoms: int
    invented: int
    amplitudes: list[float] = field(default_factory=list)

    def as_dict(self) -> dict:
        return asdict(self)


def lesion_test(
    subject: Subject,
    case: Case,
    method: Callable[[Trial], np.ndarray],
    seed: int = 0,
    diameters=(2.0, 3.0, 4.0, 5.0),
    contrasts=(0.15, 0.3, 0.6),
) -> LesionResult:
    """Insert bright and dark spheres, scan and super-resolve with and without them (same noise), look at the
    difference.

    The amplitude of a lesion is the least-squares fit of what the scan itself holds of it (the lesion through
    the operator and back by plain interpolation) to the difference: 1 where the method keeps all that was
    measured, whatever the size of the lesion against the voxel.
    """
    from scipy import ndimage

    lesions = place_lesions(subject, case, seed, diameters, contrasts)
    median = float(np.median(subject.data[subject.mask]))
    with_lesions = insert(subject, lesions, median)
    plain, marked = make_trial(subject, case, seed), make_trial(with_lesions, case, seed)
    # One noise level for both: the median hardly moves with the lesions, but the difference must be theirs
    # alone.
    marked = _same_noise(marked, plain, with_lesions, seed)
    without = method(plain)
    response = method(marked) - without

    offset = (np.array(subject.grid.shape) - plain.fine.shape) // 2
    inserted = torch.as_tensor(marked.reference - plain.reference)
    in_scan = plain.model.forward(inserted)
    start = start_matrices(
        plain.coarse.shape, plain.coarse.voxel_size, plain.fine.shape, plain.fine.voxel_size, plain.psf
    )
    expected = apply_axes(in_scan, start).numpy()
    # What a scan of the answer would show and the scan itself does not: no noise of the scan is in it.
    difference = plain.model.forward(torch.as_tensor(without)).numpy() - plain.scan

    far = np.ones(plain.fine.shape, bool)
    amplitudes, visible, false = [], [], []
    for lesion in lesions:
        box = _neighbourhood(lesion, offset, plain)
        far[box] = False
        template = expected[box].astype(np.float64)
        amplitudes.append(_amplitude(response[box], template))
        visible.append(plain.sigma == 0 or float(np.abs(template).max()) >= 3 * plain.sigma)
        box = _coarse(box, plain)
        false.append(_amplitude(difference[box], in_scan[box].numpy().astype(np.float64)))
    weakest = min(contrasts) * median
    amplitude, visible = np.array(amplitudes), np.array(visible, dtype=bool)
    false = np.abs(np.array(false))
    ghosts = ndimage.label((np.abs(response) > 0.5 * weakest) & far)[1]
    return LesionResult(
        inserted=len(lesions),
        survived=int((amplitude >= 0.5).sum()),
        visible=int(visible.sum()),
        recovered=int(((amplitude >= 0.8) & visible).sum()),
        ghosts=int(ghosts),
        phantoms=_phantoms(plain, without, weakest, min(diameters), ndimage),
        invented=int(((false >= 0.5) & visible).sum()),
        amplitudes=[round(float(a), 4) for a in amplitude],
    )


def place_lesions(subject: Subject, case: Case, seed: int, diameters, contrasts) -> list[Lesion]:
    """Every diameter x contrast x sign once, at random places deep in the head, apart from each other."""
    rng = np.random.default_rng(seed)
    voxel = np.array(subject.grid.voxel_size)
    reach = 0.5 * max(diameters) + 2.0 * np.array(case.factor) * voxel  # mm, what one lesion may touch
    candidates = np.argwhere(erode(subject.mask, np.ceil(0.5 * max(diameters) / voxel)))
    margin = np.ceil(reach / voxel) + 1
    inner = ((candidates >= margin) & (candidates < np.array(subject.grid.shape) - margin)).all(axis=1)
    candidates = candidates[inner]
    kinds = [(d, s * c) for d in diameters for c in contrasts for s in (1, -1)]
    kinds = [kinds[i] for i in rng.permutation(len(kinds))]
    lesions: list[Lesion] = []
    for diameter, contrast in kinds:
        if not len(candidates):
            break  # a small crop takes fewer; the result says how many were inserted
        centre = candidates[rng.integers(len(candidates))]
        lesions.append(Lesion(tuple(int(c) for c in centre), diameter, contrast))
        apart = (np.abs(candidates - centre) * voxel > 2 * reach).any(axis=1)
        candidates = candidates[apart]
    return lesions


def insert(subject: Subject, lesions: list[Lesion], median: float) -> Subject:
    """Add spheres (edges shared out over one voxel, as partial volume does) to the subject's data."""
    data = subject.data.copy()
    voxel = np.array(subject.grid.voxel_size)
    for lesion in lesions:
        r = np.ceil(0.5 * lesion.diameter / voxel).astype(int) + 1
        box = tuple(slice(c - n, c + n + 1) for c, n in zip(lesion.centre, r, strict=True))
        axes = np.meshgrid(*(np.arange(-n, n + 1) * v for n, v in zip(r, voxel, strict=True)), indexing="ij")
        distance = np.sqrt(sum(a**2 for a in axes))
        share = np.clip(0.5 + (0.5 * lesion.diameter - distance) / voxel.mean(), 0, 1)
        data[box] += (lesion.contrast * median * share).astype(np.float32)
    return replace(subject, data=np.maximum(data, 0))


def _same_noise(marked: Trial, plain: Trial, subject: Subject, seed: int) -> Trial:
    if marked.sigma == plain.sigma:
        return marked
    ratio = plain.sigma / marked.sigma
    return make_trial(subject, replace(marked.case, noise=marked.case.noise * ratio), seed)


def _neighbourhood(lesion: Lesion, offset, trial: Trial) -> tuple[slice, slice, slice]:
    voxel, coarse = np.array(trial.fine.voxel_size), np.array(trial.coarse.voxel_size)
    reach = np.ceil((0.5 * lesion.diameter + 2 * coarse) / voxel).astype(int)
    centre = np.array(lesion.centre) - offset
    return tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(centre, reach, strict=True))


def _amplitude(image: np.ndarray, template: np.ndarray) -> float:
    """Least-squares factor of `template` in `image`."""
    return float((image * template).sum() / (template**2).sum())


def _coarse(box: tuple[slice, slice, slice], trial: Trial) -> tuple[slice, slice, slice]:
    """The same box on the coarse grid, whose centre is the fine grid's."""
    ranges = []
    for cut, n, m, factor in zip(box, trial.fine.shape, trial.coarse.shape, trial.case.factor, strict=True):
        low, high = ((edge - 0.5 * n) / factor + 0.5 * m for edge in (cut.start, cut.stop))
        ranges.append(slice(max(0, int(np.floor(low))), min(m, int(np.ceil(high)))))
    return tuple(ranges)


def _phantoms(trial: Trial, image: np.ndarray, weakest: float, diameter: float, ndimage) -> int:
    again = trial.model.forward(torch.as_tensor(image)).numpy()
    truth = trial.model.forward(torch.as_tensor(trial.reference)).numpy()
    # More than the truth varies there: an edge that a method draws a little softer or sharper is no lesion.
    nearby = ndimage.maximum_filter(truth, 3) - ndimage.minimum_filter(truth, 3)
    limit = np.maximum(max(weakest, 5 * trial.sigma), nearby)
    labels, count = ndimage.label((np.abs(again - truth) > limit) & (coarse_mask(trial) > 0.5))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:] * float(np.prod(trial.coarse.voxel_size))
    return int((sizes >= np.pi / 6 * diameter**3).sum())
