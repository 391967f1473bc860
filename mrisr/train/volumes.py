"""The volumes of a run, split by person."""

from __future__ import annotations

import warnings

from mrisr.data.labels import LabelVolume
from mrisr.data.sources import find_scans, load_volumes
from mrisr.data.synth import synthetic_volume
from mrisr.data.volumes import TrainingVolume
from mrisr.errors import MrisrWarning, TrainingError
from mrisr.train.config import TrainConfig


def gather_volumes(config: TrainConfig) -> tuple[list, list[float], list[TrainingVolume]]:
    """(training volumes and label maps, their weights, held-out volumes) of a configuration."""
    volumes: list = []
    if config.data:
        paths = [p for source in config.data for p in find_scans(source)]
        volumes = load_volumes(paths)
    held_out = [v for v in volumes if v.name.startswith(tuple(config.hold_out))] if config.hold_out else []
    missing = [h for h in config.hold_out if not any(v.name.startswith(h) for v in held_out)]
    if missing:
        raise TrainingError(f"hold_out: no scan is named {missing}; found {sorted(v.name for v in volumes)}")
    train = [v for v in volumes if not any(v is h for h in held_out)]
    weights = [1.0 if all(v.fine_axes) else config.thin_weight for v in train]
    for prefix, weight in config.weights:
        if not any(v.name.startswith(prefix) for v in train):
            raise TrainingError(f"weights: no scan is named {prefix}; found {sorted(v.name for v in train)}")
        weights = [weight if v.name.startswith(prefix) else w for v, w in zip(train, weights)]
    maps = [isinstance(v, LabelVolume) for v in train]
    for i in range(0 if any(maps) else config.synthetic):
        train.append(synthetic_volume(seed=1000 + i + config.seed))
        weights.append(1.0)
        maps.append(True)
    scans = sum(w for w, of_maps in zip(weights, maps) if not of_maps)
    of_maps = sum(w for w, m in zip(weights, maps) if m)
    if scans and of_maps:  # the rest is made up, whatever there is of each
        share = config.synthetic_share
        each = share / (1 - share) * scans / of_maps if share < 1 else 1.0
        weights = [w * each if m else w * (share < 1) for w, m in zip(weights, maps)]
    if not train:
        raise TrainingError("nothing to train on: give data (a folder of scans) or synthetic > 0")
    pairs = [(v, w) for v, w in zip(train, weights) if w > 0]
    with_truth = [v for v in held_out if _shows_truth(v)]
    if len(with_truth) < len(held_out):
        names = ", ".join(v.name for v in held_out if not _shows_truth(v))
        message = f"hold_out: kept out of training, but no truth to validate on (label maps, thick slices): {names}"
        warnings.warn(message, MrisrWarning, stacklevel=2)
    return [v for v, _ in pairs], [w for _, w in pairs], with_truth


def _shows_truth(volume) -> bool:
    """Whether a held-out volume can be validated on: a scan that resolves its voxels along every axis."""
    return isinstance(volume, TrainingVolume) and all(volume.fine_axes)
