"""The steps of learning, and what the planes say that were held back."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from mrisr.adapt.pairs import Patches, TrainingPair, measured, one_of_each_axis, turned_back
from mrisr.adapt.plan import TrainingPlan
from mrisr.diffusion.precond import Denoiser
from mrisr.infer.engines.torch import limited
from mrisr.nn.condition import Condition
from mrisr.physics.foreground import certain

RATE, MOMENTS = 2e-4, (0.9, 0.99)  # of Adam
WARMUP, LEAST = 10, 0.05  # steps, and the part of the rate that the cosine ends at
AVERAGE = 0.98  # decay of the average of the weights, which is what leaves
LARGEST_GRADIENT = 1.0
CONTEXT = 16  # voxels of the head on each side of the planes that judge
BREADTH = 64  # voxels on each side of the middle of those planes


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of learning.

    Attributes:
        denoiser: the network, the average over its steps, on the CPU.
        losses: of every step; the last is not finite where learning has failed.
        seconds: that it took.
        in_time: all steps were taken; False: the seconds ran out, and the result depends on the clock.
    """

    denoiser: Denoiser
    losses: tuple[float, ...]
    seconds: float
    in_time: bool

    @property
    def finite(self) -> bool:
        return all(map(math.isfinite, self.losses))


def learn(
    start: Denoiser, pairs: list[TrainingPair], plan: TrainingPlan, name: str, tick: Callable[[float], None]
) -> Outcome:
    """Fine-tune a copy of `start`; InputError where the pairs have no room for a patch.

    The error of a step is that of what the scan has measured; in all else the network is held to what `start` answers.
    """
    patches = Patches(pairs, plan.seed, name)
    learner = copy.deepcopy(start).to(plan.device).train().requires_grad_(True)
    mean = copy.deepcopy(start).to(plan.device)
    base = copy.deepcopy(start).to(plan.device) if plan.device.type != "cpu" else start
    optimizer = torch.optim.Adam(learner.parameters(), lr=RATE, betas=MOMENTS)
    losses: list[float] = []
    began = time.perf_counter()  # the limit is on the steps: the optimizer is imported here, which takes seconds
    with torch.inference_mode(False), torch.enable_grad(), limited(_threads(plan)):
        while len(losses) < plan.steps and time.perf_counter() - began < plan.seconds:
            losses.append(_step(learner, base, patches, optimizer, plan, rate_at(len(losses), plan.steps)))
            if not math.isfinite(losses[-1]):
                break
            _average(mean, learner, len(losses))
            tick(len(losses) / plan.steps)
    in_time = len(losses) == plan.steps or (bool(losses) and not math.isfinite(losses[-1]))
    return Outcome(mean.cpu().eval(), tuple(losses), time.perf_counter() - began, in_time)


def rate_at(step: int, steps: int) -> float:
    """The part of the learning rate at a step: a short rise, then a cosine."""
    return min(1.0, (step + 1) / WARMUP) * (LEAST + (1 - LEAST) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _step(learner: Denoiser, base: Denoiser, patches: Patches, optimizer, plan: TrainingPlan, rate: float) -> float:
    """One step; its loss, in units of the residual's variance. Where that is not finite nothing is learnt."""
    target, y, cond, edges = patches.batch()
    target, y, cond = target.to(plan.device), y.to(plan.device), cond.to(plan.device)
    with _reduced(plan):
        answer = learner.mean(y, cond).float()
        with torch.no_grad():
            before = base.mean(y, cond).float()
    drift = answer - before
    error = drift + measured(answer - (target - y) - drift, edges)
    loss = error.square().mean() / learner.sigma_data**2
    value = float(loss.detach())
    if not math.isfinite(value):
        return value
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learner.parameters(), LARGEST_GRADIENT)
    for group in optimizer.param_groups:
        group["lr"] = rate * RATE
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value


@torch.no_grad()
def _average(mean: Denoiser, learner: Denoiser, steps: int) -> None:
    share = min(AVERAGE, steps / (steps + 9))
    for a, b in zip(mean.parameters(), learner.parameters()):
        a.lerp_(b, 1 - share)


def _reduced(plan: TrainingPlan):
    """Convolutions in bfloat16, where that was decided."""
    return torch.autocast(plan.device.type, torch.bfloat16) if plan.precision == "bfloat16" else nullcontext()


def _threads(plan: TrainingPlan) -> int:
    return plan.threads if plan.device.type == "cpu" else 0


@torch.no_grad()
def judged(denoiser: Denoiser, pairs: list[TrainingPair], plan: TrainingPlan) -> float:
    """PSNR, dB of range 1, of what the scan has measured in the reserved planes, by one pair of each axis."""
    judge = denoiser if plan.device.type == "cpu" else copy.deepcopy(denoiser).to(plan.device)
    total, count = 0.0, 0
    with limited(_threads(plan)):
        for pair in one_of_each_axis(pairs):
            where, planes = _judging(pair)
            target, y = (v[where] for v in (pair.target, pair.y))
            answer = _answer(judge, y.permute(pair.order).contiguous()[None, None], pair.cond, plan)[0, 0]
            error = measured(target - y - turned_back(pair, answer), pair.edges)
            error, tissue = (v.index_select(pair.thick, planes) for v in (error, certain(target)))
            total, count = total + float(error[tissue].square().sum()), count + int(tissue.sum())
    return -10 * math.log10(max(total, 1e-30) / max(count, 1))


def _answer(judge: Denoiser, y: torch.Tensor, cond: Condition, plan: TrainingPlan) -> torch.Tensor:
    with _reduced(plan):
        return judge.mean(y.to(plan.device), cond.to(plan.device)).float().cpu()


def _judging(pair: TrainingPair) -> tuple[tuple[slice, ...], torch.Tensor]:
    """(what is looked at: the reserved planes with their surroundings; which planes of that judge)."""
    low, high = pair.reserve
    where = []
    for axis, n in enumerate(pair.y.shape):
        thick = axis == pair.thick
        first, end = (low - CONTEXT, high + CONTEXT) if thick else (n // 2 - BREADTH, n // 2 + BREADTH)
        first = max(0, first)
        where.append(slice(first, first + (min(n, end) - first) // 8 * 8))
    planes = torch.arange(low, high) - where[pair.thick].start
    length = where[pair.thick].stop - where[pair.thick].start
    return tuple(where), planes[planes < length]
