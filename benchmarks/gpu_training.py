"""The parts of gpu_day.py that train: a teacher from a pack, and a student from that teacher. They go on where the day
before ended, as `mrisr train` does."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from checkout import ROOT
from gpu_setting import Setting

HELD_OUT = ("t1w_0p9mm_b", "flair_1mm_p26")


def training(setting: Setting) -> dict:
    """The command that was given, else the teacher from the pack."""
    if setting.train:
        run = subprocess.run(setting.train, shell=True, cwd=ROOT)
        return {"command": setting.train, "failures": [f"ended with {run.returncode}"] if run.returncode else []}
    return _part(setting, "train", "teacher-large")


def distillation(setting: Setting) -> dict:
    """The student from that teacher, the same pack, and the shipped weights."""
    teacher = setting.out / "training" / "weights.safetensors"
    if setting.pack and not teacher.exists():
        return {"failures": [f"no teacher in {teacher.parent.name} yet: do the part training first"]}
    return _part(setting, "distill", "distill", "--teacher", str(teacher))


def _part(setting: Setting, command: str, preset: str, *more: str) -> dict:
    if setting.tiny:
        return _tiny(setting, command, more)
    if not setting.pack:
        return {"skipped": "nothing to train on: --pack FILE (mrisr pack), or --train COMMAND"}
    if importlib.util.find_spec("accelerate") is None:
        return {"failures": ["accelerate is not installed"]}
    return _run(setting, command, "--config", preset, "--data", setting.pack, "--hold-out", *HELD_OUT, *more)


def _tiny(setting: Setting, command: str, more: tuple[str, ...]) -> dict:
    """Two steps on a pack of one synthetic volume: does it run?"""
    from mrisr.data.pack import write_pack
    from mrisr.data.synth import synthetic_volume

    pack, config = setting.out / "dry-run.pack", setting.out / f"dry-run-{command}.json"
    write_pack(pack, [synthetic_volume((48, 48, 48), seed=1)], {}, force=True)
    small = {"preset": "tiny", "steps": 2, "batch": 2, "patch": 16, "synthetic": 0, "warmup": 1, "precision": "fp32"}
    distilled = {"counts": [2, 1], "serve": [1, 2], "mean_fraction": 0.5} if command == "distill" else {}
    config.write_text(json.dumps({**small, **distilled}))
    return _run(setting, command, "--config", str(config), "--data", str(pack), *more)


def _run(setting: Setting, command: str, *words: str) -> dict:
    out = setting.out / {"train": "training", "distill": "distillation"}[command]
    # A fresh process: it finds the checkout as this one did, and its memory is its own.
    few = "; from mrisr.train import teacher; teacher.PROBES = 8" if setting.tiny else ""
    code = f"import checkout, sys{few}; from mrisr.cli.main import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, command, *map(str, words), "--out", str(out)]
    run = subprocess.run(line, cwd=Path(__file__).resolve().parent)
    log = out / "log.jsonl"
    last = json.loads(log.read_text().splitlines()[-1]) if log.exists() else {}
    return {"last": last, "failures": [f"mrisr {command} ended with {run.returncode}"] if run.returncode else []}
