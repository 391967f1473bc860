"""The volumes of a run, split by person."""

from __future__ import annotations

from mrisr.data.sources import TrainingVolume, find_scans, load_volumes
from mrisr.data.synth import synthetic_volume
from mrisr.errors import TrainingError
from mrisr.train.config import TrainConfig


def gather_volumes(config: TrainConfig) -> tuple[list[TrainingVolume], list[float], list[TrainingVolume]]:
    """(training volumes, their weights, held-out volumes) of a configuration."""
    volumes: list[TrainingVolume] = []
    if config.data:
        paths = [p for source in config.data for p in find_scans(source)]
        volumes = load_volumes(paths)
    held = [v for v in volumes if v.name.startswith(tuple(config.hold_out))] if config.hold_out else []
    missing = [h for h in config.hold_out if not any(v.name.startswith(h) for v in held)]
    if missing:
        raise TrainingError(f"hold_out: no scan is named {missing}; found {sorted(v.name for v in volumes)}")
    train = [v for v in volumes if not any(v is h for h in held)]
    weights = [1.0 if all(v.fine_axes) else config.thin_weight for v in train]
    for i in range(config.synthetic):
        train.append(synthetic_volume(seed=1000 + i + config.seed))
        weights.append(config.synthetic_weight / config.synthetic)
    if not train:
        raise TrainingError("nothing to train on: give data (a folder of scans) or synthetic > 0")
    return train, weights, [v for v in held if all(v.fine_axes)]
