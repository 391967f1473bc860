"""The training loop: resumes by running the same command again, saves often, one process or many (accelerate)."""

from __future__ import annotations

import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from mrisr.data.patches import PatchSampler
from mrisr.data.sources import TrainingVolume, find_scans, load_volumes
from mrisr.data.synth import synthetic_volume
from mrisr.diffusion.precond import Denoiser
from mrisr.errors import TrainingError
from mrisr.io.atomic import replacing
from mrisr.nn.condition import MEAN, SAMPLE
from mrisr.nn.presets import build
from mrisr.physics.degrade import outside_band
from mrisr.train import checkpoint
from mrisr.train.config import TrainConfig
from mrisr.train.optim import build_optimizers
from mrisr.train.teacher import measure_residual, step_loss
from mrisr.train.validate import validate, validation_cases

WEIGHTS = "weights.safetensors"
# What the scanners of mrisr.data.patches cover; the pipeline warns outside it.
TRAINED_RANGE = {"isotropic": [1.0, 4.0], "slice": [1.0, 8.0]}


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine from lr to final_lr."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.final_lr + 0.5 * (config.lr - config.final_lr) * (1 + math.cos(math.pi * min(1.0, done)))


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


class Run:
    """State of a run: weights, their average, the optimiser, the step; saved and restored whole."""

    def __init__(self, config: TrainConfig, out: Path, accelerator):
        self.config, self.out, self.accelerator = config, out, accelerator
        self.train, weights, self.held = gather_volumes(config)
        told = dict(drop=config.drop, gradnl=config.gradnl, bias=config.bias)
        self.sampler = PatchSampler(self.train, weights, seed=config.seed, **told)
        torch.manual_seed(config.seed)
        net = build(config.preset)
        state = checkpoint.load(out / checkpoint.LAST)
        if state is None:
            sigma_data, self.table = measure_residual(self.sampler)
            self.step = 0
        else:
            checkpoint.check_same_run(state, config.to_json(), out / checkpoint.LAST)
            sigma_data, self.table, self.step = state["sigma_data"], state["table"], state["step"]
            net.load_state_dict(state["net"])
        net = net.to(accelerator.device, memory_format=torch.channels_last_3d)
        self.average = copy.deepcopy(net).requires_grad_(False)
        optimizers = build_optimizers(net, config)
        if state is not None:
            self.average.load_state_dict(state["average"])
            for optimizer, saved in zip(optimizers, state["optimizers"]):
                optimizer.load_state_dict(saved)
        self.denoiser, *self.optimizers = accelerator.prepare(Denoiser(net, sigma_data), *optimizers)
        self.sigma_data = sigma_data
        self.averaged = Denoiser(self.average, sigma_data)

    @property
    def net(self):
        return self.accelerator.unwrap_model(self.denoiser).net

    def advance(self) -> float:
        """One optimiser step; the loss, averaged over the processes."""
        config, rank = self.config, self.accelerator.process_index
        ranks = self.accelerator.num_processes
        batch = self.sampler.batch(self.step, config.batch, config.patch, rank=rank, ranks=ranks)
        batch = batch.to(self.accelerator.device)
        seed = np.random.default_rng([config.seed, 1, self.step, rank]).integers(2**62)
        generator = torch.Generator().manual_seed(int(seed))
        # Spread evenly rather than drawn, so that short runs have the stated share too.
        share = config.mean_fraction
        mode = MEAN if math.floor((self.step + 1) * share) > math.floor(self.step * share) else SAMPLE
        factor = learning_rate(self.step, config) / config.lr
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        with self.accelerator.autocast():
            loss = step_loss(
                self.denoiser,
                batch,
                self.table,
                sigma_data=self.sigma_data,
                mode=mode,
                generator=generator,
                loss=config.loss,
            )
        value = float(self.accelerator.reduce(loss.detach(), "mean"))
        if not math.isfinite(value):
            raise TrainingError(
                f"step {self.step}: the loss is {value}; the last good checkpoint is {self.out / checkpoint.LAST}. "
                "Lower the learning rate and run again"
            )
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.denoiser.parameters(), config.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self._average()
        self.step += 1
        return value

    @torch.no_grad()
    def _average(self):
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for slow, fast in zip(self.average.parameters(), self.net.parameters()):
            slow.lerp_(fast, 1 - decay)

    def save(self):
        """Checkpoint and weights (of the average), on the first process only."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "config": self.config.to_json(),
            "step": self.step,
            "sigma_data": self.sigma_data,
            "table": self.table,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        checkpoint.save(self.out / checkpoint.LAST, state)
        checkpoint.export_weights(self.out / WEIGHTS, self.average.state_dict(), self.meta())

    def meta(self) -> dict:
        """What inference needs to know of the weights."""
        return {
            "format": 1,
            "preset": self.config.preset,
            "sigma_data": self.sigma_data,
            "trained_range": TRAINED_RANGE,
            "guidance": [name for name in ("gradnl", "bias") if getattr(self.config, name) > 0],
            "steps": self.step,
            "trained_on": [v.name for v in self.train],
            "held_out": [v.name for v in self.held],
            # Without the paths of the scans: they say nothing to anybody else.
            "config": {k: v for k, v in json.loads(self.config.to_json()).items() if k != "data"},
        }


def plan(config: TrainConfig) -> dict:
    """What a run would do, without doing it (`--dry-run`)."""
    train, weights, held = gather_volumes(config)
    net = build(config.preset)
    return {
        "config": json.loads(config.to_json()),
        "parameters": sum(p.numel() for p in net.parameters()),
        "train": [{"name": v.name, "shape": list(v.data.shape), "weight": w} for v, w in zip(train, weights)],
        "held_out": [v.name for v in held],
        "voxels_per_step": config.batch * config.patch**3,
    }


def train(config: TrainConfig, out: Path, report=print) -> dict:
    """Run (or resume) a configuration into the folder `out`; returns the last validation, gains in dB.

    Writes `last.pt` (resume), `weights.safetensors`, `log.jsonl`, and TensorBoard events where that is installed.
    """
    from accelerate import Accelerator

    out.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(mixed_precision="bf16" if config.precision == "bf16" else "no", cpu=_cpu_only())
    run = Run(config, out, accelerator)
    if accelerator.is_main_process:
        with replacing(out / "config.json", force=True) as path:
            Path(path).write_text(config.to_json() + "\n", encoding="utf-8")
    cases = validation_cases(run.held) if accelerator.is_main_process else []
    board = _board(out) if accelerator.is_main_process else None
    gains, began, losses = {}, time.time(), []
    while run.step < config.steps:
        losses.append(run.advance())
        last = run.step == config.steps
        if accelerator.is_main_process and (run.step % config.validate_every == 0 or last):
            gains = validate(run.averaged, cases) if cases else {}
            entry = {"step": run.step, "loss": sum(losses) / len(losses), "seconds": time.time() - began, **gains}
            _log(out, entry, board, cases, run)
            report(json.dumps({k: round(v, 4) for k, v in entry.items()}))
            losses = []
        if run.step % config.save_every == 0 or last:
            run.save()
    return gains


def _cpu_only() -> bool:
    return not torch.cuda.is_available()


def _board(out: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None  # scalars are in log.jsonl all the same
    return SummaryWriter(str(out / "tensorboard"))


def _log(out: Path, entry: dict, board, cases, run: Run) -> None:
    with open(out / "log.jsonl", "a") as f:
        f.write(json.dumps(entry) + "\n")
    if board is None:
        return
    for name, value in entry.items():
        board.add_scalar(name, value, run.step)
    if cases:
        case = cases[0]
        middle = case.y.shape[2] // 2
        with torch.no_grad():
            better = case.y + outside_band(run.averaged.mean(case.y, case.cond).float(), case.band)
        rows = [case.y + case.target - case.cubic, better, case.y + case.target]
        picture = torch.cat([r[0, 0, middle] for r in rows], dim=1).clamp(0, 1.2) / 1.2
        board.add_image("cubic | mrisr | reference", picture[None], run.step)
    board.flush()
