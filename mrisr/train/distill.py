"""Progressive distillation of a teacher into a student: what a batch is learnt from.

A batch trains one mode, and of mode `sample` one number of steps, so that a step costs one teacher pass (`mean`) or two
(`sample`) beside the student's own:

- `mean`: ground truth and the teacher's posterior mean together, both blurred by the rung of the sharpness ladder.
- `sample`, step halving (Salimans and Ho 2022, arXiv 2202.00512): from a noisy residual at a level of n steps, one step
  of the student lands where two of 2n steps land. Those two are the teacher's in the first stage, afterwards those of
  the student as it was at the end of the stage before, kept frozen. A share of the batches rehearses the numbers of
  steps that the frozen copy has learnt, against its own result, so that one network serves them all; it is told which
  one is wanted (`Condition.steps`).
- `sample`, direct: the EDM loss against ground truth, so that the student remains a denoiser of the ODE.

Where the teacher sees the student's own input, its decoder maps are hints for the student's, through 1x1x1 adapters
that stay behind. The step-halving loss never touches `mean`.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from msgspec import Meta, Struct
from torch import nn

from mrisr import schema
from mrisr.diffusion.loss import edm_weight, mean_weight
from mrisr.diffusion.precond import SIGMA_MAX_RATIO, Denoiser
from mrisr.diffusion.schedule import nested_sigmas
from mrisr.errors import TrainingError
from mrisr.nn.vector import MEAN, SAMPLE
from mrisr.ops.resample import apply_axes
from mrisr.train import checkpoint
from mrisr.train.config import DistillConfig
from mrisr.train.run import Run
from mrisr.train.teacher import class_weights, step_loss, weighed
from mrisr.train.validate import validate_samples

RUNGS, BLUR = 10, 2.0  # of the sharpness ladder: levels, and the first one's sigma in voxels


@contextmanager
def decoder_maps(net: nn.Module):
    """A list that receives the decoder's maps, at 1/4 and at 1/2, of every pass through `net` meanwhile."""
    maps: list[torch.Tensor] = []
    levels = (net.decode1, net.decode0)
    hooks = [level.register_forward_hook(lambda module, inputs, answer: maps.append(answer)) for level in levels]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


class Student(nn.Module):
    """The student's denoiser and the adapters of its decoder maps to those of a teacher; gives both."""

    def __init__(self, net: nn.Module, sigma_data: float, teacher_net: nn.Module):
        super().__init__()
        self.denoiser = Denoiser(net, sigma_data)
        ours, theirs = (n.config.widths[1::-1] for n in (net, teacher_net))
        self.adapters = nn.ModuleList(nn.Conv3d(a, b, 1) for a, b in zip(ours, theirs))

    def forward(self, x, sigma, y, cond, hinted: bool = False):
        """x0, or with `hinted` (x0, the maps that the teacher's are compared with)."""
        if not hinted:
            return self.denoiser(x, sigma, y, cond)
        with decoder_maps(self.denoiser.net) as maps:
            x0 = self.denoiser(x, sigma, y, cond)
        return x0, [adapter(m) for adapter, m in zip(self.adapters, maps)]


def hint_loss(ours, theirs) -> torch.Tensor:
    """Mean over levels and pairs of the squared error of the adapted maps, in units of the teacher's variance there."""
    errors = []
    for a, b in zip(ours, theirs):
        spread = b.float().var(dim=(1, 2, 3, 4)).clamp(min=1e-6)
        errors.append(((a.float() - b.float()).square().mean(dim=(1, 2, 3, 4)) / spread).mean())
    return torch.stack(errors).mean()


def rung(step: int, config: DistillConfig) -> int:
    """Rung of the sharpness ladder: 0 (most blurred) to RUNGS - 1 (sharp), equally many steps on each."""
    climb = config.ladder * config.steps
    return RUNGS - 1 if step >= climb else int(step / climb * RUNGS)


def blurred(x: torch.Tensor, level: int) -> torch.Tensor:
    """x [N, 1, D, H, W] as seen from a rung: Gaussian of 2 (rung 0) to 0 voxels (the last)."""
    sigma = BLUR * (RUNGS - 1 - level) / (RUNGS - 1)
    if sigma == 0:
        return x
    matrices = []
    for n in x.shape[2:]:
        apart = np.subtract.outer(np.arange(n), np.arange(n)) / sigma
        weights = np.exp(-0.5 * apart**2)
        matrices.append(weights / weights.sum(1, keepdims=True))
    return apply_axes(x, matrices)


def two_steps(denoise, x, sigma, mid, end):
    """The x0 with which one first-order step from sigma to end lands where two, by way of mid, do.

    denoise(x, sigma) -> x0; sigma, mid, end: [N]. Returns (that x0, the first step's own).
    """
    column = (slice(None), None, None, None, None)
    r, first = (mid / sigma)[column], denoise(x, sigma)
    second = denoise(r * x + (1 - r) * first, mid)
    share = ((1 - end / mid) / (1 - end / sigma))[column]
    return first + share * (second - first), first


class DistillState(Struct):
    """What the checkpoint of a distillation holds beside `mrisr.train.checkpoint.State`."""

    teacher: str
    adapters: dict[str, torch.Tensor]
    frozen: dict[str, torch.Tensor]
    frozen_at: Annotated[int, Meta(ge=0, le=1000)]


class Distillation(Run):
    """A run of `DistillConfig`: one teacher, one student, every stage."""

    resumes_with = frozenset({"precision"})  # the stages lie where the number of steps puts them

    def wrap(self, net):
        config: DistillConfig = self.config
        model = checkpoint.starting_weights(config.teacher, "teacher")
        device = self.accelerator.device
        self.teacher = copy.deepcopy(model.denoiser).eval().requires_grad_(False).to(device)
        name = Path(config.teacher).parent.name if Path(config.teacher).exists() else config.teacher
        self.origin = {"name": name, "preset": model.meta["preset"], "sha256": model.sha256}
        self.frozen = copy.deepcopy(net).eval().requires_grad_(False)
        self.frozen_at = 0  # the stage whose teacher `frozen` is; 0: none yet
        torch.manual_seed(config.seed + 1)  # reading weights that were not read before has drawn numbers
        student = Student(net, self.sigma_data, self.teacher.net).to(device, memory_format=torch.channels_last_3d)
        return student, list(student.adapters.parameters())

    @staticmethod
    def accelerate_with() -> list:
        from accelerate import DistributedDataParallelKwargs

        # Adapters get no gradient in batches without hints.
        return [DistributedDataParallelKwargs(find_unused_parameters=True)]

    def extra_state(self) -> dict:
        student = self.accelerator.unwrap_model(self.module)
        return {
            "teacher": self.origin["sha256"],
            "adapters": student.adapters.state_dict(),
            "frozen": self.frozen.state_dict(),
            "frozen_at": self.frozen_at,
        }

    def restore(self, state: dict) -> None:
        schema.check(state, DistillState, "checkpoint", error=TrainingError)
        if state["teacher"] != self.origin["sha256"]:
            raise TrainingError(
                f"teacher: {self.config.teacher} is not the teacher with which this run began; give the same weights, "
                "or use another output folder"
            )
        self.module.adapters.load_state_dict(state["adapters"])
        self.frozen.load_state_dict(state["frozen"])
        self.frozen_at = state["frozen_at"]

    @property
    def stage(self) -> int:
        """Index into `config.counts` of the number of steps that is being learnt."""
        counts = self.config.counts
        return min(len(counts) - 1, self.step * len(counts) // self.config.steps)

    def advance(self):
        if self.stage > self.frozen_at:
            self.frozen.load_state_dict(self.averages["short"].state_dict())
            self.frozen_at = self.stage
        return super().advance()

    def progress(self) -> dict:
        extra = {"rung": rung(self.step - 1, self.config)} if self.config.ladder else {}
        if self.config.halving:
            extra["learning_steps"] = self.config.counts[self.frozen_at]
        return {**super().progress(), **extra}

    def loss_of(self, batch, draws, mode):
        if mode == MEAN:
            return "mean", self._mean(batch)
        config, chance = self.config, draws.common()
        if not config.halving or (config.ground_truth and chance.random() < config.direct):
            how = dict(sigma_data=self.sigma_data, mode=SAMPLE, draws=draws)
            return "direct", step_loss(self.module, batch, self.power, **how)
        learnt = [n for n in config.counts[: self.frozen_at] if n in config.serve]
        if learnt and chance.random() < config.rehearse:
            count = int(chance.choice(learnt))
            return f"rehearsed{count}", self._halving(batch, draws, count, rehearse=True)
        count = config.counts[self.frozen_at]
        return f"halving{count}", self._halving(batch, draws, count, rehearse=False)

    def _mean(self, batch) -> torch.Tensor:
        config, n = self.config, len(batch.kinds)
        cond, x = batch.cond.with_mode(MEAN), torch.zeros_like(batch.target)
        level = rung(self.step, config)
        goals = [(config.ground_truth, batch.target)]
        if config.teacher_mean or config.hints:
            with torch.no_grad(), decoder_maps(self.teacher.net) as theirs:
                mean = self.teacher(x, self.teacher.sigma_max, batch.y, cond)
            goals.append((config.teacher_mean, batch.outside_band(mean.float())))
        sigma = torch.full((n,), SIGMA_MAX_RATIO * self.sigma_data, device=x.device)
        predicted, ours = self._student(x, sigma, batch.y, cond, hinted=config.hints > 0)
        predicted = batch.outside_band(predicted.float())
        gain = mean_weight(n, self.sigma_data)
        errors = [(w, predicted - blurred(goal, level)) for w, goal in goals if w]
        loss = sum(w * self._weighed(batch, error, gain, config.loss) for w, error in errors)
        return loss + config.hints * hint_loss(ours, theirs) if config.hints else loss

    def _halving(self, batch, draws, count: int, *, rehearse: bool) -> torch.Tensor:
        config, own = self.config, Denoiser(self.frozen, self.sigma_data)
        fine = nested_sigmas(2 * count, own.sigma_min, own.sigma_max)
        at = torch.tensor([int(torch.randint(count, (1,), generator=g)) for g in draws.generators(4)])
        sigma, mid, end = (fine[2 * at + i].float().to(batch.y.device) for i in range(3))
        # As at inference: what was measured is known, so in its band there is noise alone.
        x = batch.target + sigma[:, None, None, None, None] * draws.normal(batch.target)
        cond = batch.cond.with_mode(SAMPLE, count)
        teacher = own if self.frozen_at else self.teacher
        how = cond if rehearse else batch.cond.with_mode(SAMPLE, 2 * count if self.frozen_at else 0)

        def answer(x, sigma):
            return batch.outside_band(teacher(x, sigma, batch.y, how).float())

        with torch.no_grad(), decoder_maps(teacher.net) as theirs:
            goal = answer(x, sigma) if rehearse else two_steps(answer, x, sigma, mid, end)[0]
        hinted = config.hints > 0 and teacher is self.teacher
        predicted, ours = self._student(x, sigma, batch.y, cond, hinted=hinted)
        error = batch.outside_band(predicted.float()) - goal
        loss = config.halving * self._weighed(batch, error, edm_weight(sigma, self.sigma_data))
        return loss + config.hints * hint_loss(ours, theirs[:2]) if hinted else loss

    def _student(self, x, sigma, y, cond, *, hinted: bool):
        answer = self.module(x, sigma, y, cond, hinted)
        return answer if hinted else (answer, [])

    def _weighed(self, batch, error, gain, loss: str = "l2") -> torch.Tensor:
        return weighed(error, class_weights(batch.kinds, self.power).to(error), gain, loss)

    @property
    def few_steps(self) -> list[int]:
        """Numbers of steps that the student has learnt so far and is meant for."""
        learnt = self.config.counts[: self.frozen_at + 1] if self.config.halving else ()
        return sorted(n for n in learnt if n in self.config.serve)

    def validate(self, cases) -> dict[str, float]:
        return {**super().validate(cases), **validate_samples(self.averaged, cases, self.few_steps)}

    def meta(self) -> dict:
        stages = self.config.counts[: self.frozen_at + 1] if self.config.halving else ()
        return {**super().meta(), "distilled_from": self.origin, "stages": list(stages), "few_steps": self.few_steps}
