"""Is the spread of the samples worth what it says? Coverage on held-out people, and conformal factors that repair it.

The score of a voxel is |truth - mean of the samples| / their standard deviation. The factor for a level is the split
conformal quantile of the scores of one set of people (Vovk et al. 2005; Lei et al., JASA 2018: the
ceil((n + 1) level)-th smallest of n), and its coverage is measured on other people. The guarantee holds for
exchangeable voxels; voxels of one head are not independent and people differ, so what is measured across people counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

import mrisr
from mrisr.evaluate.cases import Trial
from mrisr.evaluate.metrics import data_range
from mrisr.volume import Volume

LEVELS = (0.5, 0.6, 0.6827, 0.8, 0.9, 0.95, 0.99)
VOXELS = 60_000  # of a trial: as many from each, so that each counts the same


@dataclass(frozen=True)
class Spread:
    """Voxels of one trial, drawn at random from the head mask, in units of the data range.

    error: [n] |truth - mean|; std: [n] of the samples; side: [n] 0 or 1, which half of the head along the first axis.
    """

    person: str
    case: str
    error: np.ndarray
    std: np.ndarray
    side: np.ndarray


def spread_of(trial: Trial, model: Any, samples: int, steps: int, seed: int = 0, **options) -> Spread:
    """Sample a trial and compare with its reference; `options` (device, engine, memory, threads) of `mrisr.upscale`."""
    scan = Volume(trial.scan, np.array(trial.coarse.affine), name=f"{trial.subject} ({trial.case.name})")
    result, info = mrisr.upscale(
        scan,
        voxel_size=trial.fine.voxel_size,
        model=model,
        mode="sample",
        samples=samples,
        steps=steps,
        seed=seed,
        return_info=True,
        **options,
    )
    inside = np.flatnonzero(trial.mask)
    sample = np.random.default_rng(seed).choice(inside, min(VOXELS, len(inside)), replace=False)
    span = data_range(trial.reference)
    error = np.abs(trial.reference.ravel()[sample] - result.data.ravel()[sample]) / span
    first = np.unravel_index(sample, trial.mask.shape)[0]
    return Spread(
        trial.subject,
        trial.case.name,
        error.astype(np.float64),
        info.std.data.ravel()[sample].astype(np.float64) / span,
        (first >= np.median(first)).astype(int),
    )


def conformal_factor(scores: np.ndarray, level: float) -> float:
    """The ceil((n + 1) level)-th smallest of n scores; inf where there are too few."""
    rank = math.ceil((len(scores) + 1) * level)
    return math.inf if rank > len(scores) else float(np.partition(scores, rank - 1)[rank - 1])


def calibrate(spreads: Sequence[Spread], samples: int, steps: int, levels: Sequence[float] = LEVELS) -> dict:
    """Folds (calibrated on the others, tested on one person; with one person: on one half of the head, tested on the
    other), their coverage with and without the factors, and the factors of everybody, to be stored."""
    groups = _groups(spreads)
    folds = []
    for tested in groups:
        scores = np.concatenate([_scores(*groups[name]) for name in groups if name != tested])
        error, std = groups[tested]
        rows = []
        for level in levels:
            factor = conformal_factor(scores, level)
            gaussian = NormalDist().inv_cdf(0.5 + 0.5 * level)
            rows.append(
                {
                    "level": level,
                    "coverage_raw": float(np.mean(error <= gaussian * std)),
                    "factor": factor,
                    "coverage": float(np.mean(_scores(error, std) <= factor)),
                    "half_width": float(factor * np.mean(std)) if math.isfinite(factor) else None,
                }
            )
        folds.append({"tested_on": tested, "calibrated_on": [g for g in groups if g != tested], "rows": rows})
    everybody = np.concatenate([_scores(*group) for group in groups.values()])
    factors = {level: conformal_factor(everybody, level) for level in levels}
    return {
        "samples": samples,
        "steps": steps,
        "folds": folds,
        "by_case": _by_case(spreads, conformal_factor(everybody, 0.9)),
        "stored": {
            "samples": samples,
            "steps": steps,
            "scale": {f"{level:g}": round(f, 4) for level, f in factors.items() if math.isfinite(f)},
            "people": list(dict.fromkeys(s.person for s in spreads)),
            "cases": list(dict.fromkeys(s.case for s in spreads)),
        },
    }


def _groups(spreads: Sequence[Spread]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (errors, standard deviations) of what must not be on both sides of a calibration."""
    people = list(dict.fromkeys(s.person for s in spreads))
    if len(people) > 1:
        own = {person: [(s.error, s.std) for s in spreads if s.person == person] for person in people}
    else:
        own = {
            f"{people[0]}, half {k + 1}": [(s.error[s.side == k], s.std[s.side == k]) for s in spreads] for k in (0, 1)
        }
    return {name: tuple(np.concatenate(part) for part in zip(*parts, strict=True)) for name, parts in own.items()}


def _scores(error: np.ndarray, std: np.ndarray) -> np.ndarray:
    scores = np.full(error.shape, np.inf)  # no spread says that there is no error
    np.divide(error, std, out=scores, where=std > 0)
    scores[(std == 0) & (error == 0)] = 0.0
    return scores


def _by_case(spreads: Sequence[Spread], factor: float) -> list[dict]:
    """Per trial: does the spread know where the errors are (rank correlation); the coverage of one factor for all."""
    return [
        {
            "person": s.person,
            "case": s.case,
            "error": float(np.mean(s.error)),
            "std": float(np.mean(s.std)),
            "rank_correlation": _rank_correlation(s.error, s.std),
            "coverage_90": float(np.mean(_scores(s.error, s.std) <= factor)),
        }
        for s in spreads
    ]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's, None where one of them does not vary."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    ranks = [np.argsort(np.argsort(v)).astype(np.float64) for v in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])
