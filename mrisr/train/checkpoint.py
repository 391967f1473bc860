"""Checkpoints of a run, and the weights that leave it. Written beside, then renamed: never half a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from mrisr.errors import TrainingError

LAST = "last.pt"


def save(path: Path, state: dict) -> None:
    """Write a checkpoint (tensors, numbers, strings, containers of them) to `path`, atomically."""
    part = path.with_name(path.name + ".part")
    torch.save(state, part)
    os.replace(part, path)


def load(path: Path) -> dict | None:
    """The checkpoint at `path`, or None where there is none. Only tensors and plain values are read, never code."""
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(f"{path}: not a readable checkpoint ({error}); move it away to start anew") from error


def check_same_run(state: dict, config_json: str, path: Path) -> None:
    """A run is resumed with its own configuration only (steps may grow)."""
    before, now = json.loads(state["config"]), json.loads(config_json)
    ignored = {"steps", "data", "validate_every", "save_every"}
    different = sorted(k for k in now if k not in ignored and before.get(k) != now[k])
    if different:
        changes = ", ".join(f"{k}: {before.get(k)!r} -> {now[k]!r}" for k in different)
        raise TrainingError(f"{path}: was made by another configuration ({changes}); use another output folder")


def export_weights(path: Path, tensors: dict[str, torch.Tensor], meta: dict) -> None:
    """Weights as safetensors with `meta` (JSON) in the header, atomically."""
    part = path.with_name(path.name + ".part")
    plain = {k: v.detach().float().contiguous().cpu() for k, v in tensors.items()}
    save_file(plain, part, metadata={"mrisr": json.dumps(meta)})
    os.replace(part, path)
