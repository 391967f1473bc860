"""The state of a run and one step of it: what plain training and distillation have in common."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import nn

from mrisr.data.patches import Batch, PatchSampler
from mrisr.data.scanners import FAMILIES
from mrisr.diffusion.precond import Denoiser
from mrisr.errors import MrisrWarning, TrainingError
from mrisr.nn.presets import build
from mrisr.nn.vector import MEAN, SAMPLE
from mrisr.train import checkpoint
from mrisr.train.batches import Draws, pieces, places, share_of
from mrisr.train.config import TrainConfig
from mrisr.train.optim import build_optimizers
from mrisr.train.teacher import ResidualPower, measure_residual, step_loss
from mrisr.train.validate import Block, validate
from mrisr.train.volumes import gather_volumes

WEIGHTS = "weights.safetensors"
# What the scanners of mrisr.data.patches cover; the pipeline warns outside it.
TRAINED_RANGE = {"isotropic": [1.0, 4.0], "slice": [1.0, 8.0]}
# Averages of the weights: over the last 1/9 and 1/33 of the steps so far, until the stated decay is reached.
AVERAGES = {"long": 9, "short": 33}


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine from lr to final_lr."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.final_lr + 0.5 * (config.lr - config.final_lr) * (1 + math.cos(math.pi * min(1.0, progress)))


class Run:
    """State of a run: weights, their averages, the optimisers, the step; saved and restored whole.

    A kind of run of its own overrides `wrap` (what is trained), `loss_of` (what a step is), and where it has more state
    than weights `extra_state` and `restore`.
    """

    # What may differ when a run is resumed, beside paths and intervals.
    resumes_with = frozenset({"steps", "precision"})

    def __init__(self, config: TrainConfig, out: Path, accelerator):
        self.config, self.out, self.accelerator = config, out, accelerator
        for step in (0, config.steps - 1):  # now, not when the first late patch is due
            share_of(config.patch_at(step)[1], accelerator.num_processes, config.accumulate)
        self.train, weights, self.held_out = gather_volumes(config)
        where = accelerator.device if config.degrade_on == "device" else "cpu"
        how = dict(drop=config.drop, gradnl=config.gradnl, bias=config.bias, denoise=config.denoise, device=where)
        how["families"] = config.families or FAMILIES
        self.sampler = PatchSampler(self.train, weights, seed=config.seed, **how)
        state = checkpoint.load(out / checkpoint.LAST)
        torch.manual_seed(config.seed)
        net = build(config.preset)
        if state is None:
            self.step, self.chosen = 0, "long"
            self.sigma_data, self.learnt_before = checkpoint.initialise(net, config) if config.init else (None, [])
            self._warn_of_known_people()
            measured, self.power = measure_residual(self.sampler)
            self.sigma_data = self.sigma_data or measured
        else:
            checkpoint.check_same_run(state, config.to_json(), out / checkpoint.LAST, self.resumes_with)
            checkpoint.check_same_scans(state, [v.name for v in self.train], out / checkpoint.LAST)
            self.step, self.chosen = state["step"], state["chosen"]
            self.sigma_data, self.learnt_before = state["sigma_data"], state.get("learnt_before", [])
            with checkpoint.fitting(out / checkpoint.LAST):
                self.power = ResidualPower.from_state(state["table"])
                net.load_state_dict(state["net"])
        net = net.to(accelerator.device, memory_format=torch.channels_last_3d)
        self.averages = {name: copy.deepcopy(net).eval().requires_grad_(False) for name in AVERAGES}
        self.net = net
        module, others = self.wrap(net)
        self.module = module
        optimizers = build_optimizers(net, config, others)
        if state is not None:
            with checkpoint.fitting(out / checkpoint.LAST):
                self.restore(state)  # first: it says what is wrong in words of its own
            checkpoint.restore(state, out / checkpoint.LAST, self.averages, optimizers)
        self.module, *self.optimizers = accelerator.prepare(module, *optimizers)
        self.seconds = {"data": 0.0, "step": 0.0}
        # One thread only: the sampler remembers the step before.
        self._thread, self._ahead = ThreadPoolExecutor(1), None

    def wrap(self, net: nn.Module) -> tuple[nn.Module, list[nn.Parameter]]:
        """(what is called in training, its parameters beside those of `net`)."""
        return Denoiser(net, self.sigma_data), []

    def _warn_of_known_people(self) -> None:
        people = sorted({v.name for v in self.held_out} & set(self.learnt_before))
        if people:
            message = f"hold_out: the weights that the run begins with have learnt from {', '.join(people)}"
            warnings.warn(message, MrisrWarning, stacklevel=2)

    def loss_of(self, batch, draws: Draws, mode: int) -> tuple[str, torch.Tensor]:
        """(name of what was learnt, loss) of one piece of a batch."""
        how = dict(sigma_data=self.sigma_data, mode=mode, draws=draws, loss=self.config.loss)
        return ("mean" if mode == MEAN else "sample"), step_loss(self.module, batch, self.power, **how)

    def extra_state(self) -> dict:
        """More for the checkpoint."""
        return {}

    def restore(self, state: dict) -> None:
        """Take `extra_state` back."""

    @staticmethod
    def accelerate_with() -> list:
        """Settings for `accelerate.Accelerator`."""
        return []

    def progress(self) -> dict[str, float]:
        """What the log says of the steps since it was asked last: the share of their time spent waiting for data."""
        share = self.seconds["data"] / max(self.seconds["step"], 1e-9)
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        return {"data_share": share}

    @property
    def averaged(self) -> Denoiser:
        """The denoiser of the average that leaves the run."""
        return Denoiser(self.averages[self.chosen], self.sigma_data)

    def advance(self) -> tuple[str, float]:
        """One optimiser step: (what was learnt, the loss averaged over the whole batch)."""
        config, start = self.config, time.perf_counter()
        batch = self._batch()
        stand = places(len(batch.kinds), self.accelerator.process_index, self.accelerator.num_processes)
        draws = Draws(config.seed, self.step, stand)
        self.seconds["data"] += time.perf_counter() - start
        # Spread evenly rather than drawn, so that short runs have the stated share too.
        share = config.mean_fraction
        mode = MEAN if math.floor((self.step + 1) * share) > math.floor(self.step * share) else SAMPLE
        factor = learning_rate(self.step, config) / config.lr
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for i, (part, draw) in enumerate(pieces(batch, draws, config.accumulate)):
            last = i == config.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                name, loss = self._backward(part, draw, mode)
            value += loss
        self.accelerator.clip_grad_norm_(self.module.parameters(), config.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self._average()
        self.step += 1
        self.seconds["step"] += time.perf_counter() - start
        return name, value

    def _batch(self) -> Batch:
        """The pairs of this process for this step; with `prefetch` those of the next are begun."""
        if not self.config.prefetch:
            return self._make(self.step)
        if self._ahead is None or self._ahead[0] != self.step:
            self._ahead = (self.step, self._thread.submit(self._make, self.step))
        batch = self._ahead[1].result()
        self._ahead = (self.step + 1, self._thread.submit(self._make, self.step + 1))
        return batch

    def _make(self, step: int) -> Batch:
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        patch, total = self.config.patch_at(step)
        count = share_of(total, ranks, self.config.accumulate)
        return self.sampler.batch(step, count, patch, rank=rank, ranks=ranks)

    def _backward(self, part, draws: Draws, mode: int) -> tuple[str, float]:
        with self.accelerator.autocast():
            name, loss = self.loss_of(part.to(self.accelerator.device), draws, mode)
        loss = loss / self.config.accumulate
        value = float(self.accelerator.reduce(loss.detach(), "mean"))
        if not math.isfinite(value):
            raise TrainingError(
                f"step {self.step}: the loss is {value}; the last good checkpoint is {self.out / checkpoint.LAST}. "
                "Lower the learning rate and run again"
            )
        self.accelerator.backward(loss)
        return name, value

    @torch.no_grad()
    def _average(self):
        for name, share in AVERAGES.items():
            decay = min(self.config.ema, (1 + self.step) / (1 + share + self.step))
            for slow, fast in zip(self.averages[name].parameters(), self.net.parameters()):
                slow.lerp_(fast, 1 - decay)

    def validate(self, cases: list[Block]) -> dict[str, float]:
        """Gains over cubic and early signs of over-smoothing, of the average that leaves the run."""
        with self.accelerator.autocast():
            return validate(self.averaged, cases)

    def choose(self, cases: list[Block]) -> dict[str, float]:
        """Let the average that validates better leave the run (without cases, the long one), and its validation."""
        if not cases:
            return {}
        gains = {}
        for self.chosen in AVERAGES:
            gains[self.chosen] = self.validate(cases)
        self.chosen = max(gains, key=lambda name: gains[name]["mean"])
        return gains[self.chosen]

    def save(self):
        """Checkpoint and weights (of the average), on the first process only."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "format": checkpoint.FORMAT,
            "config": self.config.to_json(),
            "step": self.step,
            "chosen": self.chosen,
            "sigma_data": self.sigma_data,
            "table": self.power.state(),
            "trained_on": [v.name for v in self.train],
            "learnt_before": self.learnt_before,
            "net": self.net.state_dict(),
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            **self.extra_state(),
        }
        checkpoint.save(self.out / checkpoint.LAST, state)
        checkpoint.export_weights(self.out / WEIGHTS, self.averages[self.chosen].state_dict(), self.meta())

    def meta(self) -> dict:
        """What inference needs to know of the weights."""
        return {
            "format": 1,
            "preset": self.config.preset,
            "sigma_data": self.sigma_data,
            "trained_range": TRAINED_RANGE,
            "guidance": [name for name in ("gradnl", "bias") if getattr(self.config, name) > 0],
            "denoise": self.config.denoise > 0,
            "steps": self.step,
            "average": self.chosen,
            "trained_on": list(dict.fromkeys([*self.learnt_before, *(v.name for v in self.train)])),
            "held_out": [v.name for v in self.held_out],
            # Without paths: they say nothing to anybody else.
            "config": {k: v for k, v in json.loads(self.config.to_json()).items() if k not in checkpoint.PATHS},
        }
