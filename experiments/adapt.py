"""Whether a scan of thick slices has something to teach `base`: fine-tuned on the scan's own sharp planes, then used.

    python experiments/adapt.py --data SCANS [--people P ...] [--cases C ...] [--recipes R ...] [--steps N] [--record]

As SMORE (Zhao et al., IEEE TMI 40(3), 2021) and ECLARE (Remedios et al., 2025) do, the scan is scanned once more with
its slices along an in-plane axis, by its own point spread with two axes exchanged; what is lost along that axis the
scan itself shows. The network, told exactly what it is told of the scan, learns to bring it back. A recipe says what
the third axis, across the true slices, looks like meanwhile:

    native    the slices lie as densely as their pixels (a squeezed head)
    network   as `base` answers (a sharp head, partly made up)

`network-measured` learns nothing but what the true slices hold, and keeps to the answer of `base` in all else. Every
person is scanned whole; PSNR is of the whole head. A slab of planes is never learnt from: what the weights gain
there is what a user could know. Writes adapt.json; with --record into benchmarks/results, row by row.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import checkout  # noqa: F401
import numpy as np
import record
import torch

import mrisr
from mrisr.diffusion.precond import Denoiser
from mrisr.evaluate import metrics
from mrisr.evaluate.baselines import BASELINES
from mrisr.evaluate.cases import CASES, Case, Trial, make_trial, subject_of
from mrisr.infer.facts import psf_of
from mrisr.io import nifti
from mrisr.nn.condition import Condition
from mrisr.ops.resample import apply_axes
from mrisr.physics.degrade import ForwardModel, start_matrices
from mrisr.physics.foreground import certain
from mrisr.physics.intensity import estimate_noise, robust_scale
from mrisr.physics.psf import PSF
from mrisr.train.optim import Muon
from mrisr.volume import Volume

PEOPLE = ("t1w_0p9mm_b", "flair_1mm_p26", "t1w_1mm_uih_a")
_IN_PLANE = ("kspace", "kspace")
SLICES = {
    "thick3": Case("thick3", (1, 1, 3), (*_IN_PLANE, "gaussian")),
    "thick4": CASES["thick4"],
    "thick5": Case("thick5", (1, 1, 5), (*_IN_PLANE, "gaussian")),
    "slices5": Case("slices5", (1, 1, 5), (*_IN_PLANE, "supergaussian"), noise=0.02),
}
PATCH, VOXELS = 48, 4 * 48**3  # voxels along a patch, and of a step
CONTEXT = 16  # voxels of the head on each side of what is looked at
WARMUP, LEAST = 10, 0.05  # steps, and the part of the learning rate that the cosine ends at
AVERAGE = 0.98  # decay of the average of the weights, which is what leaves


@dataclass(frozen=True)
class Recipe:
    """How the network learns from the scan.

    Attributes:
        context: what it sees across the true slices, see above.
        lr, muon: learning rates of Adam and, for convolutions, of Muon; muon 0: Adam for all.
        measured: learn only what the scan measured, frequencies that its slices hold; in the others stay what `base`
            is.
    """

    context: str
    lr: float
    muon: float = 0.0
    measured: bool = False


RECIPES = {
    "native": Recipe("native", 2e-4),
    "network": Recipe("network", 2e-4),
    "network-muon": Recipe("network", 2e-4, muon=2e-3),
    "network-measured": Recipe("network", 2e-4, measured=True),
}


@dataclass(frozen=True, eq=False)
class Lesson:
    """The scan, scanned again with its slices along an in-plane axis.

    Attributes:
        target, y: float32 [X, Y, Z], normalised: what was there, and what a network starts from.
        order: of the axes, as the network sees them: the new slices last.
        cond: what the network is told.
        held: planes [first, end) along the axis of the true slices that are not learnt from.
        thick: that axis.
        centres: int64 [K, 3], tissue.
        across: voxels of `target` across a slice of the scan.
    """

    target: torch.Tensor
    y: torch.Tensor
    order: tuple[int, int, int]
    cond: Condition
    held: tuple[int, int]
    thick: int
    centres: np.ndarray
    across: float


def lessons(trial: Trial, base, context: str, seed: int) -> list[Lesson]:
    """Of both in-plane axes, the new slices at every place that whole voxels allow."""
    size, fine = trial.coarse.voxel_size, trial.fine.voxel_size
    thick = int(np.argmax(size))
    scale = robust_scale(trial.scan)
    psf = psf_of(Volume(trial.scan, trial.coarse.affine), "auto")[0]
    lr = (torch.from_numpy(trial.scan) - scale.offset) / scale.scale
    if context == "native":
        x, fine = lr, tuple(size[0 if thick else 1] for _ in range(3))
    else:
        x = (torch.from_numpy(answer(base, trial)) - scale.offset) / scale.scale
    noise, across = estimate_noise(lr) or 0.0, x.shape[thick] / lr.shape[thick]
    generator = torch.Generator().manual_seed(seed)
    found = []
    for axis in (a for a in range(3) if a != thick):
        turned = [psf[a] for a in range(3)]
        stored = list(size)
        turned[axis], turned[thick] = psf[thick], psf[axis]
        stored[axis], stored[thick] = size[thick], size[axis]
        for shift in range(int(size[thick] / fine[axis])):
            part = x.narrow(axis, shift, x.shape[axis] - shift)
            found.append(_lesson(part, fine, tuple(turned), tuple(stored), axis, thick, across, noise, generator))
    return found


def _lesson(x, fine, psf: PSF, stored, axis: int, thick: int, across: float, noise: float, generator) -> Lesson:
    shape = [max(1, int(n * f / s + 0.5 + 1e-4)) for n, f, s in zip(x.shape, fine, stored)]
    lr = ForwardModel.between(x.shape, fine, shape, stored, psf).forward(x)
    # As noisy as the scan: averaging over slices a second time has taken noise out.
    missing = math.sqrt(max(0.0, noise**2 - (estimate_noise(lr) or 0.0) ** 2))
    lr = lr + missing * torch.randn(lr.shape, generator=generator)
    y = apply_axes(lr, start_matrices(shape, stored, x.shape, fine, psf))
    order = (*(a for a in range(3) if a != axis), axis)
    known = ([v[a] for a in order] for v in (psf, fine, stored))
    told = dict(zip(("psf", "voxel_size", "stored"), known))
    cond = Condition.of_acquisition(told["psf"], told["voxel_size"], estimate_noise(lr), stored=told["stored"])
    inside = np.argwhere(certain(x).numpy())
    low, high = np.percentile(inside[:, thick], (45, 57))
    centres = inside[:: max(1, len(inside) // 20000)]
    return Lesson(x, y, order, cond, (int(low), int(high)), thick, centres, across)


class Patches:
    """Random patches of lessons, none of them of the planes that are held back."""

    def __init__(self, found: list[Lesson], seed: int):
        self.lessons, self.rng = found, np.random.default_rng(seed)
        first = found[0]
        low, high = first.held
        room = max(low, first.target.shape[first.thick] - high)
        size = [min(PATCH, n // 8 * 8) for n in first.target.shape]
        size[first.thick] = min(PATCH, room // 8 * 8)
        self.size = size
        self.count = max(1, round(VOXELS / math.prod(size)))
        self.edge = 0.5 / first.across  # what the true slices hold, cycles per voxel

    def batch(self) -> tuple[torch.Tensor, torch.Tensor, Condition]:
        """(target, y, condition) of a step, patches [N, 1, ...] of one lesson; `across`: their axis across the true
        slices, the first or the second, for the two are alike to the network."""
        lesson = self.lessons[int(self.rng.integers(len(self.lessons)))]
        order = lesson.order if self.rng.random() < 0.5 else (lesson.order[1], lesson.order[0], lesson.order[2])
        pairs = [self._patch(lesson, order) for _ in range(self.count)]
        target, y = (torch.stack(v)[:, None].contiguous() for v in zip(*pairs))
        self.across = 2 + order.index(lesson.thick)
        return target, y, Condition.stack([lesson.cond] * self.count)

    def _patch(self, lesson: Lesson, order) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = lesson.held
        while True:
            centre = lesson.centres[int(self.rng.integers(len(lesson.centres)))]
            start = [
                int(np.clip(c + int(self.rng.integers(-8, 9)) - s // 2, 0, n - s))
                for c, s, n in zip(centre, self.size, lesson.y.shape)
            ]
            first = start[lesson.thick]
            if first >= high or first + self.size[lesson.thick] <= low:
                break
        where = tuple(slice(a, a + s) for a, s in zip(start, self.size))
        flips = [a for a in range(3) if self.rng.random() < 0.5]
        return tuple(v[where].permute(order).flip(flips) for v in (lesson.target, lesson.y))


def adapted(base, found: list[Lesson], recipe: Recipe, steps: int, seed: int) -> tuple[Denoiser, list[float]]:
    """(the network after `steps` steps, averaged; its losses)."""
    net = copy.deepcopy(base.denoiser.net).train().requires_grad_(True)
    mean = copy.deepcopy(base.denoiser.net)
    denoiser = Denoiser(net, base.denoiser.sigma_data)
    optimizers = _optimizers(net, recipe)
    patches, losses = Patches(found, seed), []
    for step in range(steps):
        target, y, cond = patches.batch()
        with torch.autocast("cpu", torch.bfloat16):
            predicted = denoiser.mean(y, cond)
            before = _of_start(base.denoiser, y, cond) if recipe.measured else None
        error = predicted.float() - (target - y)
        if before is not None:
            drift = predicted.float() - before.float()
            error = drift + _slow(error - drift, patches.across, patches.edge)
        loss = error.square().mean() / denoiser.sigma_data**2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        rate = min(1.0, (step + 1) / WARMUP) * (LEAST + (1 - LEAST) * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["peak"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        kept = min(AVERAGE, (step + 1) / (step + 10))
        with torch.no_grad():
            for a, b in zip(mean.parameters(), net.parameters()):
                a.lerp_(b, 1 - kept)
        losses.append(float(loss))
    return Denoiser(mean.eval(), base.denoiser.sigma_data).eval(), losses


@torch.no_grad()
def _of_start(denoiser: Denoiser, y: torch.Tensor, cond: Condition) -> torch.Tensor:
    return denoiser.mean(y, cond)


def _slow(x: torch.Tensor, axis: int, edge: float) -> torch.Tensor:
    """x without its frequencies above `edge` cycles per voxel along an axis."""
    n = x.shape[axis]
    spectrum = torch.fft.rfft(x, dim=axis)
    kept = torch.fft.rfftfreq(n) < edge
    return torch.fft.irfft(spectrum * kept.reshape([-1 if a == axis else 1 for a in range(x.ndim)]), n=n, dim=axis)


def _optimizers(net: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    inner, rest = [], []
    for name, p in net.named_parameters():
        conv = p.dim() == 5 and p.shape[2] > 1 and not name.startswith(("exit", "up"))
        (inner if conv and recipe.muon else rest).append(p)
    made: list[torch.optim.Optimizer] = [torch.optim.Adam(rest, lr=recipe.lr, betas=(0.9, 0.99))]
    if inner:
        made.append(Muon(inner, lr=recipe.muon, dtype=torch.bfloat16))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


@torch.no_grad()
def held_back(denoiser: Denoiser, found: list[Lesson]) -> float:
    """PSNR in the planes that are held back, range 1, of one lesson of each axis."""
    total, count = 0.0, 0
    for lesson in {lesson.order: lesson for lesson in found}.values():
        low, high = lesson.held
        where = []
        for a, n in enumerate(lesson.y.shape):
            first, end = (low - CONTEXT, high + CONTEXT) if a == lesson.thick else (n // 2 - 64, n // 2 + 64)
            first = max(0, first)
            where.append(slice(first, first + (min(n, end) - first) // 8 * 8))
        target, y = (v[tuple(where)] for v in (lesson.target, lesson.y))
        with torch.autocast("cpu", torch.bfloat16):
            predicted = denoiser.mean(y.permute(lesson.order).contiguous()[None, None], lesson.cond)[0, 0].float()
        error = target - y - predicted.permute(tuple(int(a) for a in np.argsort(lesson.order)))
        error = _slow(error, lesson.thick, 0.5 / lesson.across)  # what the scan itself has measured
        planes = torch.arange(low, high) - where[lesson.thick].start
        planes = planes[planes < target.shape[lesson.thick]]
        error, tissue = (v.index_select(lesson.thick, planes) for v in (error, certain(target)))
        total, count = total + float(error[tissue].square().sum()), count + int(tissue.sum())
    return -10 * math.log10(total / count)


def answer(model, trial: Trial) -> np.ndarray:
    """What mrisr makes of the scan."""
    scan = Volume(trial.scan, trial.coarse.affine, name=trial.subject)
    return mrisr.upscale(scan, voxel_size=trial.fine.voxel_size, model=model, threads=torch.get_num_threads()).data


def psnr(trial: Trial, image: np.ndarray) -> float:
    return metrics.psnr(trial.reference, image, trial.mask, metrics.data_range(trial.reference))


def one(trial: Trial, base, plain: dict, name: str, steps: int, seed: int) -> dict:
    """A row of the table."""
    recipe, began = RECIPES[name], (time.process_time(), time.perf_counter())
    found = lessons(trial, base, recipe.context, seed)
    denoiser, losses = adapted(base, found, recipe, steps, seed)
    spent = time.process_time() - began[0], time.perf_counter() - began[1]
    held = [held_back(d, found) for d in (base.denoiser, denoiser)]
    model = replace(base, denoiser=denoiser, name=f"{base.name}, adapted", card=None)
    row = {"person": trial.subject, "case": trial.case.name, "recipe": name, "steps": steps, "seed": seed, **plain}
    row["adapted"] = round(psnr(trial, answer(model, trial)), 3)
    row["gain"] = round(row["adapted"] - plain["base"], 3)
    row["held_back_gain"] = round(held[1] - held[0], 3)
    few = max(1, steps // 10)
    row["loss"] = [round(float(np.mean(part)), 4) for part in (losses[:few], losses[-few:])]
    row["cpu_seconds"], row["seconds"] = round(spent[0], 1), round(spent[1], 1)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="SCANS", help="folder that holds the people")
    parser.add_argument("--people", nargs="+", default=list(PEOPLE))
    parser.add_argument("--cases", nargs="+", choices=SLICES, default=list(SLICES))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--crop", type=int, help="voxels along the middle of the head; default: all of it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    record.add_place(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    base = mrisr.load_model("base")
    same = {"crop": args.crop, "model": base.sha256}
    for person in args.people:
        head = nifti.read(args.data / f"{person}.nii.gz")
        subject = subject_of(person, head.data, head.grid, args.crop)
        for case in args.cases:
            trial = make_trial(subject, SLICES[case])
            cubic = BASELINES["cubic"](trial.scan, trial.coarse, trial.fine)
            plain = {"cubic": round(psnr(trial, cubic), 3), "base": round(psnr(trial, answer(base, trial)), 3)}
            for name in args.recipes:
                rows = [one(trial, base, plain, name, args.steps, args.seed)]
                print(*rows, flush=True)
                held = record.merged("adapt", rows, ("person", "case", "recipe", "steps", "seed"), args.results, same)
                command = "python experiments/adapt.py --data SCANS --record"
                record.write("adapt", {"command": command, **same, "rows": held}, args.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
