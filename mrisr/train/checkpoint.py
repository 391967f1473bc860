"""Checkpoints of a run, and the weights that leave it. Written beside, then renamed: never half a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save as to_bytes

from mrisr.errors import ModelError, TrainingError
from mrisr.nn.condition import STEP_SHARE
from mrisr.nn.grow import grow, reason_not_to_grow
from mrisr.weights import registry

LAST = "last.pt"
FORMAT = 3
PATHS = frozenset({"data", "init", "teacher"})


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


def check_same_run(state: dict, config_json: str, path: Path, free=frozenset({"steps"})) -> None:
    """A run is resumed with its own configuration only; paths, intervals and the fields in `free` may differ."""
    if state.get("format") != FORMAT:
        raise TrainingError(f"{path}: was made by another version of mrisr; use another output folder")
    before, now = json.loads(state["config"]), json.loads(config_json)
    ignored = PATHS | {"validate_every", "save_every", "prefetch"} | set(free)
    different = sorted(k for k in before.keys() | now.keys() if k not in ignored and before.get(k) != now.get(k))
    if different:
        changes = ", ".join(f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in different)
        raise TrainingError(f"{path}: was made by another configuration ({changes}); use another output folder")


def check_same_scans(state: dict, names: list[str], path: Path) -> None:
    """A run goes on with the scans it began with, wherever they lie now: its weights name them."""
    before = state["trained_on"]
    if sorted(before) != sorted(names):
        odd = sorted(set(before) ^ set(names))
        raise TrainingError(
            f"{path}: was trained on other scans ({len(before)} then, {len(names)} now; not in both: "
            f"{', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''}); give the same --data, or another output folder"
        )


def starting_weights(name: str, what: str) -> registry.LoadedModel:
    """Weights by name or path, as `mrisr.load_model` takes them; `what` names the option in the error."""
    if not name:
        raise TrainingError(f"{what}: expected weights, by name or path; none are given (--{what})")
    try:
        return registry.load(name)
    except ModelError as error:
        raise TrainingError(f"{what}: {error}") from error


@torch.no_grad()
def initialise(net: torch.nn.Module, config) -> float:
    """Start `net` from the weights `config.init`, of the same preset or one that it can grow from (`mrisr.nn.grow`);
    returns their sigma_data."""
    model = starting_weights(config.init, "init")
    start = model.denoiser.net
    if start.config == net.config:
        net.load_state_dict(start.state_dict())
    else:
        reason = reason_not_to_grow(start.config, net.config)
        if reason is not None:
            raise TrainingError(
                f"init: {config.init} holds preset {model.meta['preset']!r}, from which preset {config.preset!r} of "
                f"the run cannot begin ({reason}); start from weights of the same preset, or from none"
            )
        grow(start, net)
    if "few_steps" not in model.meta:
        forget_step_share(net)
    return model.denoiser.sigma_data


@torch.no_grad()
def forget_step_share(net: torch.nn.Module) -> None:
    """Make `net` blind to an entry that undistilled weights were never shown: a random column would only disturb."""
    net.embed[0].weight[:, STEP_SHARE] = 0


def export_weights(path: Path, tensors: dict[str, torch.Tensor], meta: dict) -> None:
    """Weights as safetensors with `meta` (JSON) in the header, atomically."""
    part = path.with_name(path.name + ".part")
    plain = {k: v.detach().float().contiguous().cpu() for k, v in tensors.items()}
    part.write_bytes(to_bytes(plain, metadata={"mrisr": json.dumps(meta)}))  # save_file makes what only its owner reads
    os.replace(part, path)
