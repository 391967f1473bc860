"""The loop of training and of distillation: resumes by running the same command again, saves often, runs as one process
or many (accelerate)."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from mrisr import third_party
from mrisr.data.labels import LabelVolume
from mrisr.errors import TrainingError
from mrisr.io.atomic import replacing
from mrisr.nn.presets import build
from mrisr.train import checkpoint
from mrisr.train.config import DistillConfig, TrainConfig
from mrisr.train.distill import Distillation
from mrisr.train.run import Run
from mrisr.train.validate import reconstructed, validation_cases
from mrisr.train.volumes import gather_volumes

SAVE_SECONDS = 45.0  # between two checkpoints, whatever `save_every` says


def plan(config: TrainConfig) -> dict:
    """What a run would do, without doing it (`--dry-run`)."""
    train, weights, held_out = gather_volumes(config)
    net = build(config.preset)
    if config.init:
        checkpoint.initialise(net, config)
    if isinstance(config, DistillConfig):
        checkpoint.starting_weights(config.teacher, "teacher")
    return {
        "config": json.loads(config.to_json()),
        "parameters": sum(p.numel() for p in net.parameters()),
        "train": [
            {"name": v.name, "kind": _kind(v), "shape": list(v.data.shape), "weight": w} for v, w in zip(train, weights)
        ],
        "held_out": [v.name for v in held_out],
        "precision": _precision(config),
        "voxels_per_step": config.batch * config.patch**3,
    }


@third_party.nothing_compiled()
def train(config: TrainConfig, out: Path, report=print) -> dict:
    """Run (or resume) a configuration into the folder `out`; returns the last validation, gains in dB.

    Writes `last.pt` (resume), `weights.safetensors`, `log.jsonl`, and TensorBoard events where that is installed.
    """
    from accelerate import Accelerator

    precision = _precision(config)
    kind = Distillation if isinstance(config, DistillConfig) else Run
    out.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=kind.accelerate_with(),
    )
    run = kind(config, out, accelerator)
    if run.step > config.steps:
        raise TrainingError(
            f"{out}: is at step {run.step} already, and steps={config.steps} are asked for; ask for more steps, or use "
            "another output folder"
        )
    if run.step == config.steps:
        report(json.dumps({"step": run.step, "note": "all steps are done: nothing left to do"}))
    main = accelerator.is_main_process
    if main:
        with replacing(out / "config.json", force=True) as path:
            Path(path).write_text(config.to_json() + "\n", encoding="utf-8")
    cases = validation_cases(run.held_out, families=config.families) if main else []
    board = _board(out) if main else None
    gains, began, saved, losses = {}, time.time(), time.time(), []
    while run.step < config.steps:
        losses.append(run.advance())
        last = run.step == config.steps
        due = run.step % config.validate_every == 0 or last
        # Before the validation too: it takes its time, and what was learnt should not be lost in it.
        if last or due or run.step % config.save_every == 0 or time.time() - saved > SAVE_SECONDS:
            run.save()
            saved = time.time()
        if not (main and due):
            continue
        gains = run.choose(cases) if last else run.validate(cases) if cases else {}
        if last:
            run.save()  # once more, with the average that was chosen
        entry = {
            "step": run.step,
            "average": run.chosen,
            "precision": precision,
            **_means(losses),
            **run.progress(),
            "seconds": time.time() - began,
            **gains,
        }
        _log(out, entry, board, cases, run)
        report(json.dumps({k: v if isinstance(v, str) else round(v, 4) for k, v in entry.items()}))
        losses = []
    return gains


def _kind(volume) -> str:
    return "label map" if isinstance(volume, LabelVolume) else "scan"


def _means(losses: list[tuple[str, float]]) -> dict[str, float]:
    """The mean loss, and that of each thing that was learnt: they are not on one scale."""
    series: dict[str, list[float]] = {"loss": [value for _, value in losses]}
    for name, value in losses:
        series.setdefault(f"loss_{name}", []).append(value)
    return {name: sum(values) / len(values) for name, values in series.items()}


def _precision(config: TrainConfig) -> str:
    """What a run computes in here: "bf16" or "fp32"."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16" if config.bfloat16_on(device) else "fp32"


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
        if not isinstance(value, str):
            board.add_scalar(name, value, run.step)
    if cases:
        case = cases[0]
        middle = case.y.shape[2] // 2
        with torch.no_grad():
            better = case.y + reconstructed(run.averaged, case)
        rows = [case.y + case.target - case.cubic, better, case.y + case.target]
        picture = torch.cat([r[0, 0, middle] for r in rows], dim=1).clamp(0, 1.2) / 1.2
        board.add_image("cubic | mrisr | reference", picture[None], run.step)
    board.flush()
