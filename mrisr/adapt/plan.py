"""What may learn, from which scan, for how many steps, in how much memory: decided before a voxel is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mrisr.adapt.seconds import steps_of
from mrisr.environment import bfloat16_absence
from mrisr.errors import BackendError, InputError, MemoryBudgetError, ModelError, UsageError
from mrisr.grid import Grid
from mrisr.infer import memory
from mrisr.infer.engines.precision import asked_for
from mrisr.infer.engines.select import pick_device, thread_count
from mrisr.infer.facts import Options, psf_of
from mrisr.nn.unet import UNet
from mrisr.physics.psf import PSF, THICK_SLICE_RATIO
from mrisr.volume import Volume

PATCH, VOXELS = 48, 4 * 48**3  # voxels along a patch, and of a step
FEWEST_PLANES = 16  # voxels along a patch
FEWEST_SLICES = 10
RESERVED = (45, 57)  # percentiles of the tissue along the slices' axis: between them nothing is learnt from
MOST_SHIFTS = 5  # places of the new slices along each axis
LEAST_ACROSS = 1.5  # how many times finer than the slices the target is
# Bytes that a step takes per voxel and 8 channels of the finest level, which has half the resolution: maps of the pass,
# of its gradient and of the network that it is compared with. And copies of the weights: learner, mean, gradient, two
# moments, start.
STEP_BYTES = {"float32": 190.0, "bfloat16": 150.0}
WEIGHT_COPIES = 6.0
FIXED = 400 * memory.MB  # libraries, and what the engine of the first answer keeps
PAIR_COPIES = 8.0  # of the head beside the pairs: as it came, in even voxels, and what making a pair takes


@dataclass(frozen=True)
class TrainingPlan:
    """All that is decided of an adaptation.

    Attributes:
        seconds: of learning, at most.
        steps: that are to be taken; fewer where the seconds run out.
        seed: of patches and noise.
        device, threads, precision: what learns; precision "float32" or "bfloat16", of convolutions.
        target: voxel of the result, mm.
        voxel: of the training pairs, mm, along every axis.
        thick: stored axis across the slices.
        widths: per axis the longer of acquired and stored voxel, mm.
        psf, stored: of the scan as the pairs exchange its axes, none finer in plane than `voxel`.
        shifts: voxels by which the new slices are moved.
        memory: bytes that learning takes at most, see `demand`.
    """

    seconds: float
    steps: int
    seed: int
    device: torch.device
    threads: int
    precision: str
    target: tuple[float, float, float]
    voxel: float
    thick: int
    widths: tuple[float, float, float]
    psf: PSF
    stored: tuple[float, float, float]
    shifts: tuple[int, ...]
    memory: int = 0

    @property
    def edges(self) -> tuple[float, float, float]:
        """What the scan has measured of a pair along each axis: up to so many cycles per voxel."""
        return tuple(min(0.5, 0.5 * self.voxel / w) if w > self.voxel * 1.001 else 0.5 for w in self.widths)


def plan_training(volume: Volume, target: Grid, model: Any, options: Options, seconds: float) -> TrainingPlan:
    """How a network is to be fine-tuned on a scan.

    model, options: as `check_learner` and `mrisr.adapt.options.check_options` take them.

    Raises:
        UsageError: the target leaves nothing to learn. BackendError: no such device or precision.
        InputError: the scan has nothing to learn from.
        MemoryBudgetError: it does not fit.
    """
    name = volume.name or "scan"
    if volume.data.ndim == 4 and volume.data.shape[3] > 1:
        raise InputError(
            f"{name}: adapt: has {volume.data.shape[3]} frames, and one image is learnt from; adapt to one frame, keep "
            "its weights (keep_adapted, --keep-adapted) and give them as the model of all"
        )
    psf = psf_of(volume, options.psf)[0]
    stored = volume.grid.voxel_size
    thick, widths = _slices(psf, stored, volume.data.shape, name)
    voxel = max(target.voxel_size)
    if widths[thick] < LEAST_ACROSS * voxel:
        raise UsageError(
            f"adapt: slices of {widths[thick]:.3g} mm become voxels of {voxel:.3g} mm, which leaves nothing to be "
            "learnt; ask for a smaller voxel_size, or leave adapt out"
        )
    whole = int(stored[thick] / voxel + 1e-3)
    count = max(1, min(whole, MOST_SHIFTS))
    device = pick_device(options.device)
    plan = TrainingPlan(
        seconds=seconds,
        steps=steps_of(seconds),
        seed=options.seed,
        device=device,
        threads=thread_count(options.threads),
        precision=_precision(options.precision, device),
        target=tuple(target.voxel_size),
        voxel=voxel,
        thick=thick,
        widths=widths,
        psf=tuple(p if p.width > voxel * 0.999 else replace(p, width=voxel) for p in psf),
        stored=tuple(max(s, voxel) if a != thick else s for a, s in enumerate(stored)),
        shifts=tuple(k * max(1, whole) // count for k in range(count)),
    )
    return replace(plan, memory=_within_budget(plan, target, model, options))


def _slices(psf: PSF, stored, shape, name: str) -> tuple[int, tuple[float, float, float]]:
    """(axis across the slices, the longer of acquired and stored voxel along each axis, mm)."""
    widths = tuple(max(p.width, float(s)) for p, s in zip(psf, stored))
    thick = int(np.argmax(widths))
    blurred = max(w for a, w in enumerate(widths) if a != thick)
    sizes = " x ".join(f"{w:.3g}" for w in widths)
    if widths[thick] < THICK_SLICE_RATIO * blurred:
        raise InputError(
            f"{name}: adapt: has no sharp plane to learn from: {sizes} mm were acquired, and one axis has to be "
            f"{THICK_SLICE_RATIO:g} times as coarse as both others; leave adapt out"
        )
    if shape[thick] < FEWEST_SLICES:
        raise InputError(
            f"{name}: adapt: has {shape[thick]} slices, and at least {FEWEST_SLICES} are needed to learn from some and "
            "be judged by others; leave adapt out"
        )
    return thick, widths


def check_learner(model: Any, device: Any, precision: str, keep: bool) -> None:
    """Whether a network can learn on a device, whatever the scan; keep: and its weights be kept.

    Raises UsageError, BackendError, ModelError.
    """
    net = model.denoiser.net
    if not isinstance(net, UNet):
        raise UsageError(f"adapt: {model.name} is a {type(net).__name__}, and only mrisr's own networks can learn here")
    if net.config.norm == "group":
        raise UsageError(
            f"adapt: {model.name} normalises over the whole head, which the patches that are learnt from do not show; "
            "use base, or other weights that normalise voxel by voxel"
        )
    if keep and "preset" not in model.meta:
        raise ModelError(f"keep_adapted: {model.name} is of no preset, by which a weights file is read again")
    _precision(precision, pick_device(device))


def _precision(request: str, device: torch.device) -> str:
    """bfloat16 where the engines would compute in it too, and where it is a gain: not by emulation."""
    request = asked_for(request)
    missing = bfloat16_absence(device)
    if request == "bfloat16" and missing is not None:
        raise BackendError(f"precision: bfloat16 was asked for, but {missing}; use float32, or auto")
    return "float32" if request == "float32" or missing is not None else "bfloat16"


def demand(plan: TrainingPlan, target: Grid, model: Any, resident: int) -> int:
    """Bytes that learning takes at most; on a GPU of its memory, where the pairs are not."""
    net = model.denoiser.net
    weights = 4 * sum(p.numel() for p in net.parameters())
    step = STEP_BYTES[plan.precision] * net.config.widths[0] / 8 * VOXELS
    learner = int(FIXED + step + WEIGHT_COPIES * weights)
    if plan.device.type != "cpu":
        return learner
    voxels = math.prod(target.shape) * math.prod(t / plan.voxel for t in plan.target)
    volumes = 4 * (2 * len(plan.shifts) + PAIR_COPIES) * voxels + 4 * math.prod(target.shape)
    return int(resident + volumes) + learner


def _within_budget(plan: TrainingPlan, target: Grid, model: Any, options: Options) -> int:
    """What learning takes. MemoryBudgetError where that is more than there is."""
    budget = memory.parse_budget(options.memory)
    if budget is None:
        budget = memory.default_budget(plan.device)
    need = demand(plan, target, model, memory.resident())
    if need > budget:
        raise MemoryBudgetError(
            f"memory: learning from the scan takes {memory.show(need, up=True)}, and the budget is "
            f"{memory.show(budget)}; raise memory, ask for a coarser voxel_size, crop the input, or leave adapt out"
        )
    return need
