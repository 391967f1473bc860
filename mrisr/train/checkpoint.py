"""Checkpoints of a run, and the weights that leave it. Written beside, then renamed: never half a file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import torch
from msgspec import Meta, Struct

from mrisr import schema
from mrisr.errors import ModelError, TrainingError, excerpt
from mrisr.io.atomic import replacing
from mrisr.nn.grow import grow, reason_not_to_grow
from mrisr.nn.vector import STEP_SHARE
from mrisr.train.config import TrainConfig
from mrisr.weights import registry

LAST = "last.pt"
FORMAT = 3
LARGEST_PICKLE = 1 << 24  # bytes that name the tensors and say where they lie
PATHS = frozenset({"data", "init", "teacher"})


def save(path: Path, state: dict) -> None:
    """Write a checkpoint (tensors, numbers, strings, containers of them) to `path`, atomically."""
    with replacing(path, force=True) as beside:
        torch.save(state, beside)


class State(Struct):
    """A checkpoint: what every kind of run has. A kind with more (`Run.extra_state`) checks that itself."""

    format: Literal[FORMAT]
    config: str
    step: Annotated[int, Meta(ge=0, le=10**9)]
    chosen: str
    sigma_data: Annotated[float, Meta(gt=0, lt=10)]
    table: dict[str, Annotated[float, Meta(gt=0)]]
    trained_on: list[str]
    net: dict[str, torch.Tensor]
    averages: dict[str, dict[str, torch.Tensor]]
    optimizers: list[dict]
    learnt_before: list[str] = []  # what the weights that the run began with were trained on


def load(path: Path) -> dict | None:
    """The checkpoint at `path`, or None where there is none. Only tensors and plain values are read, never code.

    Raises:
        TrainingError: damaged, not a checkpoint, or one of another version of mrisr.
    """
    if not path.exists():
        return None
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler of weights_only fails in as many ways as a file can be damaged
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise TrainingError(f"{path}: not a readable checkpoint ({reason}); move it away to start anew") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainingError(f"{path}: was made by another version of mrisr; use another output folder")
    schema.check(state, State, str(path), error=TrainingError)
    if "" not in state["table"] or state["chosen"] not in state["averages"]:
        raise TrainingError(f"{path}: not a whole checkpoint (table or averages); move it away to start anew")
    return state


def _check_archive(path: Path) -> None:
    """ValueError unless `path` is what `torch.save` writes: a zip archive that stores its entries whole, once, and
    intact. Anything else would be tried as older formats, which takes long, or unpack to more than the file holds."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        if stream.read(4) != b"PK\x03\x04":
            raise ValueError("no zip archive")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size for e in entries):
            raise ValueError("holds compressed entries")
        if sum(e.file_size for e in entries) > size or len({e.filename for e in entries}) != len(entries):
            raise ValueError("its entries overlap")
        if any(e.filename.endswith("data.pkl") and e.file_size > LARGEST_PICKLE for e in entries):
            raise ValueError("its list of tensors is too large")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} is damaged")


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """TrainingError naming `path` where what torch loads inside does not fit what it is loaded into."""
    try:
        yield
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"{path}: does not fit the run ({type(error).__name__}: {reason}); use another output folder"
        ) from error


def restore(state: dict, path: Path, averages: dict, optimizers: list[torch.optim.Optimizer]) -> None:
    """Load the averages and the optimisers of a checkpoint; TrainingError where they are not of this run."""
    with fitting(path):
        for name, average in averages.items():
            average.load_state_dict(state["averages"][name])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            check_optimizer(optimizer)


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """ValueError where an optimiser took over settings that are not its own, or state of other shapes than its
    parameters."""
    for group in optimizer.param_groups:
        for name, own in optimizer.defaults.items():
            if name != "lr" and (group.get(name) or None) != (own or None):  # torch writes some False as None
                raise ValueError(f"optimizers: {name} is {excerpt(group.get(name))}, expected {own!r}")
        for name in ("lr", "peak"):
            if not isinstance(group.get(name), float) or not 0 <= group[name] < 1:
                raise ValueError(f"optimizers: {name} is {excerpt(group.get(name))}, expected a number below 1")
        for p in group["params"]:
            for name, value in optimizer.state.get(p, {}).items():
                if not isinstance(value, torch.Tensor) or value.shape not in (p.shape, torch.Size([])):
                    raise ValueError(f"optimizers: {name} does not have the shape of its parameter")


def check_same_run(state: dict, config_json: str, path: Path, free=frozenset({"steps"})) -> None:
    """A run is resumed with its own configuration only; paths, intervals and the fields in `free` may differ."""
    before = schema.parse(state["config"].encode("utf-8", "surrogatepass"), f"{path}: config", error=TrainingError)
    schema.check(before, dict, f"{path}: config", error=TrainingError)
    now = json.loads(config_json)
    # What the run's mrisr did not know yet it has done as the default says.
    defaults = json.loads(TrainConfig().to_json())
    before = {**{k: defaults[k] for k in now.keys() & defaults.keys()}, **before}
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
def initialise(net: torch.nn.Module, config) -> tuple[float, list[str]]:
    """Start `net` from the weights `config.init`, of the same preset or one that it can grow from (`mrisr.nn.grow`);
    returns (their sigma_data, what they were trained on)."""
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
    return model.denoiser.sigma_data, list(model.meta.get("trained_on", []))


@torch.no_grad()
def forget_step_share(net: torch.nn.Module) -> None:
    """Make `net` blind to an entry that undistilled weights were never shown: a random column would only disturb."""
    net.embed[0].weight[:, STEP_SHARE] = 0


def export_weights(path: Path, tensors: dict[str, torch.Tensor], meta: dict) -> None:
    """Weights as safetensors with `meta` (JSON) in the header, atomically."""
    whole = registry.as_bytes({k: v.float() for k, v in tensors.items()}, meta)  # save_file: only its owner reads it
    with replacing(path, force=True) as beside:
        beside.write_bytes(whole)
