"""Everything a training run depends on, in one dataclass, and the presets in one table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from mrisr.errors import TrainingError


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        preset: network size, a key of `mrisr.nn.presets.PRESETS`.
        data: a folder of scans, or scans, to learn from.
        hold_out: file name prefixes of the people kept for validation (split by person, never by patch).
        thin_weight: relative frequency of a 2D scan (thick slices), of which only the in-plane detail is learnt.
        synthetic: synthetic volumes to mix in, and synthetic_weight their total relative frequency.
        steps, batch, patch: optimiser steps, patches a step, fine voxels along a patch (a multiple of 8).
        lr, muon_lr: peak learning rates of Adam and of Muon (`mrisr.train.optim`).
        warmup, final_lr: steps of linear warm-up, and where the cosine of lr ends (muon_lr in proportion).
        ema: decay of the exponential moving average of the weights.
        mean_fraction: share of the steps that train the `mean` mode (L2); the others train `sample` (EDM).
        loss: of the `mean` mode: "l2", whose minimiser is the posterior mean, or "l1" (the posterior median), the
            deterministic network that diffusion is measured against.
        drop: probability of forgetting an entry of the condition.
        gradnl, bias: share of the pairs that gradients displace, and that have a known bias field; they are corrected,
            and the network is told of it.
        grad_clip: largest norm of the gradient.
        precision: "bf16" or "fp32".
        seed: of everything random.
        validate_every, save_every: steps.
    """

    preset: str = "student"
    data: tuple[str, ...] = ()
    hold_out: tuple[str, ...] = ()
    thin_weight: float = 0.25
    synthetic: int = 4
    synthetic_weight: float = 0.4
    steps: int = 4600
    batch: int = 8
    patch: int = 48
    lr: float = 1e-3
    muon_lr: float = 0.025
    warmup: int = 100
    final_lr: float = 1e-5
    ema: float = 0.999
    mean_fraction: float = 0.85
    loss: str = "l2"
    drop: float = 0.1
    gradnl: float = 0.3
    bias: float = 0.35
    grad_clip: float = 1.0
    precision: str = "bf16"
    seed: int = 0
    validate_every: int = 250
    save_every: int = 100

    def __post_init__(self):
        for name in ("data", "hold_out"):
            if isinstance(getattr(self, name), str):
                raise TrainingError(f"config: {name} must be a list of names, found {getattr(self, name)!r}")
        checks = {
            "seed": isinstance(self.seed, int) and 0 <= self.seed < 2**31,
            "steps": isinstance(self.steps, int) and self.steps >= 1,
            "batch": self.batch >= 1,
            "patch": self.patch >= 16 and self.patch % 8 == 0,
            "lr": 0 < self.lr < 1,
            "muon_lr": 0 < self.muon_lr < 1,
            "ema": 0 <= self.ema < 1,
            "mean_fraction": 0.3 <= self.mean_fraction <= 1,
            "loss": self.loss in ("l2", "l1"),
            "drop": 0 <= self.drop < 1,
            "gradnl": 0 <= self.gradnl <= 1,
            "bias": 0 <= self.bias <= 1,
            "precision": self.precision in ("bf16", "fp32"),
            "validate_every": self.validate_every >= 1,
            "save_every": self.save_every >= 1,
        }
        for name, fine in checks.items():
            if not fine:
                raise TrainingError(f"config: {name}={getattr(self, name)!r} is out of range; see TrainConfig")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


CONFIGS = {
    # The shipped weights v0: `mrisr train --config base`.
    "base": TrainConfig(),
    "teacher-small": TrainConfig(preset="teacher-small", mean_fraction=0.4),
    "teacher": TrainConfig(preset="teacher", batch=32, patch=64, steps=20000, mean_fraction=0.4),
    # The yardstick: the student's size and budget, one step, L1 alone, no diffusion.
    "deterministic": TrainConfig(mean_fraction=1.0, loss="l1"),
    # Seconds on a CPU: for tests and for a first look.
    "tiny": TrainConfig(preset="tiny", steps=20, batch=2, patch=24, synthetic=2, warmup=4, precision="fp32",
                        validate_every=10, save_every=5),
}  # fmt: skip


def load_config(source: str, **overrides) -> TrainConfig:
    """A preset of `CONFIGS` by name, or a JSON file of TrainConfig fields; `overrides` that are not None win."""
    if source in CONFIGS:
        config = CONFIGS[source]
    else:
        path = Path(source)
        if not path.is_file():
            raise TrainingError(f"config: {source!r} is neither a preset ({', '.join(CONFIGS)}) nor a file")
        try:
            values = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise TrainingError(f"config: {source}: not JSON: {error}") from error
        known = {f.name for f in fields(TrainConfig)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise TrainingError(f"config: {source}: unknown fields {unknown}; known are {sorted(known)}")
        config = TrainConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    return replace(config, **{k: v for k, v in overrides.items() if v is not None})
