"""Everything a training run depends on, in one dataclass, and the presets in one table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mrisr import schema
from mrisr.data.patches import DENOISED
from mrisr.data.scanners import FAMILIES
from mrisr.environment import bfloat16_absence
from mrisr.errors import TrainingError


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        preset: network size, a key of `mrisr.nn.presets.PRESETS`.
        data: folders of scans or of label maps, or single ones, to learn from.
        weights: (beginning of a name, relative frequency) of scans that are not to count like the others.
        hold_out: file name prefixes of the people kept for validation (split by person, never by patch).
        thin_weight: relative frequency of a 2D scan (thick slices), of which only the in-plane detail is learnt.
        synthetic: volumes of random shapes to mix in where `data` hold no label maps.
        synthetic_share: of the pairs, those that are made from label maps or random shapes; 1: all, and scans serve
            for validation only.
        init: weights to start from, by name or path, of the same preset; "": random ones.
        steps, batch, patch: optimiser steps, patches a step (of all processes together), fine voxels along a patch (a
            multiple of 8).
        late_patch, late_from: patches of this size from this share of the steps on (0: never), as many fewer as keeps
            the voxels of a step.
        degrade_on: where pairs are made: "device", or "cpu" whatever the device.
        prefetch: make the pairs of the next step in a thread, meanwhile; for machines with a core to spare.
        accumulate: pieces into which a step's batch is divided where memory is short.
        lr, muon_lr: peak learning rates of Adam and of Muon (`mrisr.train.optim`).
        warmup, final_lr: steps of linear warm-up, and where the cosine of lr ends (muon_lr in proportion).
        ema: largest decay of the two exponential moving averages of the weights (`mrisr.train.run.AVERAGES`); the one
            that validates better at the end leaves the run.
        mean_fraction: share of the steps that train the `mean` mode (L2); the others train `sample` (EDM).
        loss: of the `mean` mode: "l2", whose minimiser is the posterior mean, or "l1" (the posterior median), the
            deterministic network that diffusion is measured against.
        drop: probability of forgetting an entry of the condition.
        gradnl, bias: share of the pairs that gradients displace, and that have a known bias field; they are corrected,
            and the network is told of it.
        families: of scanners (`mrisr.data.scanners.FAMILIES`) that are learnt; () for all. A network of one family does
            better there (`mrisr.infer.networks`).
        denoise: share of the pairs whose noise is to go (the option `denoise`), where their target shows how; 0: the
            weights cannot be asked for it.
        grad_clip: largest norm of the gradient.
        precision: of the convolutions, forwards and backwards: "bf16", "fp32", or "auto": bf16 where the processor or
            the GPU has it, else fp32. A run may go on in another.
        seed: of everything random.
        validate_every, save_every: steps.
    """

    preset: str = "student"
    data: tuple[str, ...] = ()
    hold_out: tuple[str, ...] = ()
    weights: tuple[tuple[str, float], ...] = ()
    thin_weight: float = 0.25
    synthetic: int = 4
    synthetic_share: float = 0.25
    init: str = ""
    steps: int = 4600
    batch: int = 8
    patch: int = 48
    late_patch: int = 0
    late_from: float = 0.8
    accumulate: int = 1
    degrade_on: str = "device"
    prefetch: bool = False
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
    families: tuple[str, ...] = ()
    denoise: float = DENOISED
    grad_clip: float = 1.0
    precision: str = "auto"
    seed: int = 0
    validate_every: int = 250
    save_every: int = 100

    def __post_init__(self):
        for name in ("data", "hold_out", "families"):
            if isinstance(getattr(self, name), str):
                raise TrainingError(f"config: {name} must be a list of names, found {getattr(self, name)!r}")
        checks = {
            "synthetic_share": 0 <= self.synthetic_share <= 1,
            "seed": isinstance(self.seed, int) and 0 <= self.seed < 2**31,
            "steps": isinstance(self.steps, int) and self.steps >= 1,
            "batch": 1 <= self.batch <= 2**20,
            "thin_weight": 0 <= self.thin_weight <= 1e6,
            "synthetic": 0 <= self.synthetic <= 1000,
            "warmup": self.warmup >= 0,
            "final_lr": 0 <= self.final_lr < 1,
            "grad_clip": 0 < self.grad_clip <= 1e6,
            # In bf16, oneDNN's gradient of a convolution over 2^3 voxels, a patch of 16^3 at 1/8, reads memory that
            # nobody wrote (seen with torch 2.13 on a CPU: NaN in up to 85 of 100 passes, none from 3^3 on).
            "patch": self.patch % 8 == 0 and self.patch >= (16 if self.precision == "fp32" else 24),
            "late_patch": self.late_patch == 0 or (self.late_patch >= self.patch and self.late_patch % 8 == 0),
            "late_from": 0 <= self.late_from <= 1,
            "accumulate": isinstance(self.accumulate, int) and self.accumulate >= 1,
            "degrade_on": self.degrade_on in ("device", "cpu"),
            "prefetch": isinstance(self.prefetch, bool),
            "lr": 0 < self.lr < 1,
            "muon_lr": 0 < self.muon_lr < 1,
            "ema": 0 <= self.ema < 1,
            "mean_fraction": 0.3 <= self.mean_fraction <= 1,
            "loss": self.loss in ("l2", "l1"),
            "drop": 0 <= self.drop < 1,
            "gradnl": 0 <= self.gradnl <= 1,
            "bias": 0 <= self.bias <= 1,
            "families": set(self.families) <= set(FAMILIES),
            "denoise": 0 <= self.denoise <= 1,
            "precision": self.precision in ("auto", "bf16", "fp32"),
            "validate_every": self.validate_every >= 1,
            "save_every": self.save_every >= 1,
        }
        for name, fine in checks.items():
            if not fine:
                raise TrainingError(f"config: {name}={getattr(self, name)!r} is out of range; see TrainConfig")

    def patch_at(self, step: int) -> tuple[int, int]:
        """(fine voxels along a patch, patches) of a step."""
        if not self.late_patch or step < self.late_from * self.steps:
            return self.patch, self.batch
        count = max(1, round(self.batch * (self.patch / self.late_patch) ** 3))
        return self.late_patch, max(self.accumulate, count // self.accumulate * self.accumulate)

    def bfloat16_on(self, device: Any) -> bool:
        """Whether a run computes in bfloat16 on a `torch.device`. TrainingError where it is to and there is none."""
        missing = None if self.precision == "fp32" else bfloat16_absence(device)
        if missing is not None and self.precision == "bf16":
            raise TrainingError(f"config: precision='bf16', but {missing}; use 'auto' or 'fp32'")
        return self.precision != "fp32" and missing is None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    """A distillation (`mrisr.train.distill`); the ingredients are switched off by a zero.

    Attributes:
        teacher: weights of the teacher, by name or path; of any preset.
        counts: numbers of steps learnt one after the other, each half of the one before; the teacher does twice the
            first. Each gets the same share of the run.
        serve: those that the student shall still know at the end.
        halving: weight of the step-halving loss; 0: mode `sample` learns from the ground truth alone.
        rehearse: share of the step-halving batches that keep up what the frozen copy has learnt.
        ladder: share of the run in which the targets of `mean` go from blurred to sharp.
        hints: weight of the decoder maps.
        ground_truth, teacher_mean: weights of the two targets of `mean`.
        direct: share of the `sample` batches that learn from the ground truth (none where ground_truth is 0).
    """

    teacher: str = ""
    counts: tuple[int, ...] = (8, 4, 2, 1)
    serve: tuple[int, ...] = (1, 2, 4)
    halving: float = 1.0
    rehearse: float = 0.4
    ladder: float = 0.1
    hints: float = 0.05
    ground_truth: float = 0.6
    teacher_mean: float = 0.4
    direct: float = 0.15

    def __post_init__(self):
        super().__post_init__()
        if not self.counts or any(a != 2 * b for a, b in zip(self.counts, self.counts[1:])) or self.counts[-1] < 1:
            raise TrainingError(f"config: counts={self.counts}: each has to be half of the one before")
        if not set(self.serve) <= set(self.counts):
            raise TrainingError(f"config: serve={self.serve} names steps that are not among counts={self.counts}")
        shares = ("rehearse", "ladder", "direct")
        for name in ("halving", "hints", "ground_truth", "teacher_mean", *shares):
            if not 0 <= getattr(self, name) <= (1 if name in shares else 1000):
                raise TrainingError(f"config: {name}={getattr(self, name)!r} is out of range; see DistillConfig")
        if not self.ground_truth and not (self.teacher_mean and (self.halving or self.mean_fraction == 1)):
            raise TrainingError("config: without ground_truth, teacher_mean and halving have to be above 0")


_OF_ONE_KIND = dict(init="base", steps=3800, batch=4, patch=64, lr=8e-4, muon_lr=0.016, warmup=60, ema=0.998,
                    mean_fraction=1.0, synthetic_share=0.2, gradnl=0.0, bias=0.0, denoise=0.0, drop=0.02)  # fmt: skip

CONFIGS = {
    # The general network's size and modes. How the shipped one was trained: mrisr/weights/base.md.
    "base": TrainConfig(),
    # As long as the shipped teacher-small, in the same modes; what pairs are made of has changed since (its card).
    "teacher-small": TrainConfig(preset="teacher-small", steps=2600, mean_fraction=0.4),
    # A leg of a larger teacher, of which none is shipped: warm-up and decay of its own, from averaged weights.
    "teacher": TrainConfig(preset="teacher", init="base", steps=1500, mean_fraction=0.7, lr=5e-4, muon_lr=0.012,
                           warmup=60, ema=0.998, validate_every=250),
    "teacher-large": TrainConfig(preset="teacher-large", batch=32, patch=64, steps=20000, mean_fraction=0.4,
                                 prefetch=True),
    # The yardstick: the student's size and budget, one step, L1 alone, no diffusion.
    "deterministic": TrainConfig(mean_fraction=1.0, loss="l1"),
    # As the shipped networks of one kind of acquisition, which began with the L1 network (mrisr/weights/base.md).
    "base-2d": TrainConfig(families=("slice",), thin_weight=0.0, seed=62, **_OF_ONE_KIND),
    "base-3d": TrainConfig(families=("iso", "aniso"), seed=61, **_OF_ONE_KIND),
    # Seconds on a CPU: for tests and for a first look.
    "tiny": TrainConfig(preset="tiny", steps=20, batch=2, patch=24, synthetic=2, warmup=4, precision="fp32",
                        validate_every=10, save_every=5),
}  # fmt: skip

DISTILLATIONS = {
    # The end of the general network: what `train` gave, distilled from itself, for samples of few steps. The ladder,
    # hints and the teacher's mean bought `mean` nothing (experiments/distill_ablation.py) and are left out.
    "distill": DistillConfig(init="base", steps=450, batch=4, patch=64, counts=(4, 2, 1), mean_fraction=0.75, lr=3e-4,
                             muon_lr=0.006, warmup=40, ema=0.997, synthetic_share=0.2, ladder=0.0, hints=0.0,
                             ground_truth=1.0, teacher_mean=0.0, validate_every=450, save_every=50, seed=51),
    # Seconds on a CPU: for tests.
    "distill-tiny": DistillConfig(preset="tiny", steps=16, batch=2, patch=24, synthetic=2, warmup=2, precision="fp32",
                                  mean_fraction=0.5, validate_every=8, save_every=4),
}  # fmt: skip


def from_values(values: object, kind: type[TrainConfig], where: str) -> TrainConfig:
    """A configuration from the parsed JSON of one; its schema is the dataclass `kind`. TrainingError names `where`."""
    config = schema.check(values, schema.strict(kind), where, error=TrainingError)
    try:
        return kind(**{f.name: getattr(config, f.name) for f in fields(kind)})
    except TrainingError as error:
        raise TrainingError(f"{where}: {error}") from None


def load_config(source: str, presets: dict | None = None, **overrides) -> TrainConfig:
    """A preset (of `CONFIGS`, unless others are given) by name, or a JSON file of the fields of such a configuration;
    `overrides` that are not None win."""
    presets = CONFIGS if presets is None else presets
    kind = type(next(iter(presets.values())))
    if source in presets:
        config = presets[source]
    else:
        path = Path(source)
        if not path.is_file():
            raise TrainingError(f"config: {source!r} is neither a preset ({', '.join(presets)}) nor a file")
        config = from_values(schema.read(path, error=TrainingError), kind, source)
    return replace(config, **{k: v for k, v in overrides.items() if v is not None})
