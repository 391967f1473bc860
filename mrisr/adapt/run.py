"""Answer, learn from the answer's own sharp planes, be judged, and answer again."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mrisr.adapt.learn import Outcome, judged, learn
from mrisr.adapt.options import Adaptation
from mrisr.adapt.pairs import training_pairs
from mrisr.adapt.plan import TrainingPlan, plan_training
from mrisr.adapt.seconds import MOST_SECONDS, STEPS, STEPS_PER_SECOND
from mrisr.grid import Grid
from mrisr.infer import memory
from mrisr.infer.facts import Options
from mrisr.infer.info import AdaptInfo, Info
from mrisr.infer.progress import Report
from mrisr.infer.run import Scan, give, upscale_volume
from mrisr.io.atomic import replacing
from mrisr.physics.foreground import masked_background, without_foreign_value
from mrisr.physics.intensity import estimate_noise
from mrisr.volume import Volume
from mrisr.weights import registry

OF_BASE_ONLY = ("uncertainty",)  # of a header: what was measured of the weights before


def upscale_adapted(
    scan: Scan, target: Grid, model: Any, options: Options, how: Adaptation, report: Report
) -> tuple[Volume, Info]:
    """As `mrisr.infer.run.upscale_volume`, by a network that has learnt from this scan where that made it better.

    The weights are written to `how.keep` as soon as they are judged, where they are better.

    model, options: as `mrisr.adapt.plan.check_learner` and `mrisr.adapt.options.check_options` take them.

    Raises:
        InputError: the scan has nothing to learn from. UsageError: nor has its target.
        MemoryBudgetError; OutputError: the weights cannot be written.
    """
    plan = plan_training(scan.volume, target, model, options, how.seconds)
    result, info = upscale_volume(scan, target, model, options, report)
    messages = info.warnings
    with report.stage("adapt"):
        outcome, gain = _learnt(scan, result, info, model, plan, report)
        adapted = _weights(model, plan, outcome, gain)
        give(messages, _warnings(how, plan, outcome, gain, model))
        account = _account(plan, outcome, gain, model, adapted)
        if account.used and how.keep is not None:
            with replacing(how.keep) as beside:
                beside.write_bytes(_file(adapted))
    del outcome
    memory.return_freed_memory()
    if account.used:
        del result
        result, info = upscale_volume(scan, target, adapted, options, report, messages)
    most = max(info.memory_expected, plan.memory)
    return result, replace(info, adapt=account, memory_expected=most, seconds=dict(report.seconds))


def _learnt(
    scan: Scan, result: Volume, info: Info, model: Any, plan: TrainingPlan, report: Report
) -> tuple[Outcome, float]:
    """(what became of learning, dB that the reserved planes have gained)."""
    ((offset, scale),) = info.intensity
    normalised = [(torch.from_numpy(_image(v)) - offset) / scale for v in (scan.volume, result)]
    name = scan.volume.name or "scan"
    pairs = training_pairs(normalised[1], plan, estimate_noise(normalised[0]), plan.seed, name)
    outcome = learn(model.denoiser, pairs, plan, name, lambda part: report.tick(0.95 * part))
    if not outcome.finite or not outcome.losses:
        return outcome, float("-inf")
    before, after = (judged(d, pairs, plan) for d in (model.denoiser, outcome.denoiser))
    return outcome, after - before


def _image(volume: Volume) -> np.ndarray:
    """The one frame, a background that somebody has written there as dark as the head's darkest."""
    data = np.array(next(volume.frames()), np.float32)
    masked = masked_background(data)
    return data if masked is None else without_foreign_value(data, masked)


def _weights(model: Any, plan: TrainingPlan, outcome: Outcome, gain: float) -> registry.LoadedModel:
    """The network that has learnt, as one that is loaded; its hash is that of the file that would keep it."""
    outcome.denoiser.net.requires_grad_(False)
    outcome.denoiser.net.transient = True
    meta = {key: value for key, value in model.meta.items() if key not in OF_BASE_ONLY}
    # A word, which is what a bundle takes for a name.
    meta["name"] = (model.meta.get("name") or "weights").removesuffix("+adapted") + "+adapted"
    others = [w for axis, w in enumerate(plan.widths) if axis != plan.thick]
    meta["adapted"] = {
        "from": model.sha256,
        "steps": len(outcome.losses),
        "seed": plan.seed,
        "in_time": outcome.in_time,
        "precision": plan.precision,
        "gain_db": round(gain, 3) if np.isfinite(gain) else None,
        "slices_mm": round(plan.widths[plan.thick], 3),
        "in_plane_mm": [round(w, 3) for w in others],
        "voxel_mm": round(plan.voxel, 3),
    }
    adapted = registry.LoadedModel(outcome.denoiser, f"{model.name}, adapted", meta, "", model.card)
    return replace(adapted, sha256=hashlib.sha256(_file(adapted)).hexdigest())


def _file(adapted: registry.LoadedModel) -> bytes:
    return registry.as_bytes(adapted.denoiser.net.state_dict(), adapted.meta)


def _warnings(how: Adaptation, plan: TrainingPlan, outcome: Outcome, gain: float, model: Any) -> list[str]:
    texts = []
    if not outcome.in_time:
        texts.append(
            f"adapt: {how.seconds:g} s were over after {len(outcome.losses)} of {plan.steps} steps: how far learning "
            f"got, and so the result, depends on the speed of this machine; {_enough(outcome)}"
        )
    if not gain > 0:
        why = f"{gain:+.2f} dB" if np.isfinite(gain) else "the loss was no number" if outcome.losses else "no step"
        nothing = "" if how.keep is None else f"; {how.keep.name} is not written"
        texts.append(
            f"adapt: the planes that were held back gained nothing by learning ({why}): this is the answer of "
            f"{model.name}, not adapted{nothing}"
        )
    return texts


def _enough(outcome: Outcome) -> str:
    """The seconds that would do on this machine."""
    seconds = 10 * math.ceil(0.1 * STEPS * outcome.seconds / max(1, len(outcome.losses)))
    if not outcome.losses or seconds > MOST_SECONDS:
        return "another machine has time for all"
    return f"adapt={max(seconds, math.ceil(STEPS / STEPS_PER_SECOND))} has time for all {STEPS}"


def _account(plan: TrainingPlan, outcome: Outcome, gain: float, model: Any, adapted: registry.LoadedModel) -> AdaptInfo:
    few = max(1, len(outcome.losses) // 10)
    ends = (outcome.losses[:few], outcome.losses[-few:])
    used = bool(gain > 0)
    return AdaptInfo(
        used=used,
        limit=plan.seconds,
        seconds=outcome.seconds,
        steps=len(outcome.losses),
        planned=plan.steps,
        in_time=outcome.in_time,
        loss=tuple(float(np.mean(part)) for part in ends) if outcome.losses else None,
        gain_db=float(gain),
        base=model.sha256,
        weights=adapted.sha256 if used else "",
        seed=plan.seed,
        slices_mm=plan.widths[plan.thick],
        voxel_mm=plan.voxel,
        device=str(plan.device),
        precision=plan.precision,
    )
