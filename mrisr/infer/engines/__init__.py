"""What runs the network. An engine swaps the network alone: preconditioning, tiles and samplers are shared.

An engine that was asked for by name and cannot run raises `BackendError` with its reason; only `engine="auto"`
chooses, and says why in `info.engine.why`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Protocol

import torch

from mrisr.errors import BackendError, UsageError

# (x, y [1, 1, D, H, W], vector [1, 24], guidance [1, 8, D/8, H/8, W/8], active or None) -> F [1, 1, D, H, W],
# float32: the interface of mrisr.nn.unet.UNet, so that mrisr.diffusion.precond.Denoiser takes either.
Network = Callable[..., torch.Tensor]
NAMES = ("torch", "openvino", "tensorrt")


class Engine(Protocol):
    """Attributes say where and how the network runs; they go into `info` as they are.

    name: the engine. device: torch device of the tensors it takes and gives. threads: CPU threads (0 on a GPU).
    precision: of the arithmetic.
    """

    name: str
    device: torch.device
    threads: int
    precision: str

    def prepare(self, shape: tuple[int, int, int]) -> Network:
        """Make the network ready for volumes of `shape` (multiples of 8) and return it.

        The returned callable runs without autograd. Its result may be overwritten by its next call. It can be
        interrupted by Ctrl-C.
        """

    def release(self) -> None:
        """Give back working memory between runs (compiled kernels stay)."""


def thread_count(threads: int | None) -> int:
    """`threads`, or every core that this process may use."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if isinstance(threads, bool) or int(threads) != threads or threads < 1:
        raise UsageError(f"threads: expected None or a positive whole number, got {threads!r}.")
    return int(threads)


def pick_device(device: str | torch.device) -> torch.device:
    """"auto", "cpu", "cuda" or "cuda:N" as a torch device. Raises UsageError (unknown), BackendError (absent)."""
    text = str(device)
    if text == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    kind, _, number = text.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdigit())):
        raise UsageError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}.")
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "no CUDA device was found" if torch.version.cuda else "this PyTorch was built without CUDA"
        raise BackendError(f'device: "{text}" was asked for, but {built}. Use device="cpu".')
    index = int(number or 0)
    if index >= torch.cuda.device_count():
        raise BackendError(f'device: "{text}" was asked for, but this machine has {torch.cuda.device_count()} CUDA '
                           f'device(s), numbered from 0. Use a lower number.')
    return torch.device("cuda", index)


def missing(name: str, device: torch.device, net: torch.nn.Module) -> str | None:
    """Why engine `name` cannot run `net` on `device`, or None where it can. Imports and allocates nothing."""
    if name == "torch":
        return None
    if name == "openvino":
        if device.type != "cpu":
            return f"it runs on the CPU, and the device is {device}"
        if importlib.util.find_spec("openvino") is None:
            return "the package openvino is not installed (pip install openvino)"
        config = getattr(net, "config", None)
        if config is None or config.norm != "none" or config.attention:
            return "it takes the networks without group normalisation and attention, and this one has them"
        return None
    return "this version has no TensorRT engine yet"


def choose(
    engine: str, device: str | torch.device, net: torch.nn.Module, threads: int | None
) -> tuple[Engine, str]:
    """(engine, why). Raises UsageError for an unknown name, BackendError where the named engine cannot run."""
    if engine not in ("auto", *NAMES):
        raise UsageError(f"engine: expected one of auto, {', '.join(NAMES)}, found {engine!r}")
    count = thread_count(threads)
    # OpenVINO by name and no device by name: the one device that it runs on.
    where = pick_device("cpu" if engine == "openvino" and str(device) == "auto" else device)
    if engine != "auto":
        reason = missing(engine, where, net)
        if reason:
            others = [n for n in NAMES if missing(n, where, net) is None]
            raise BackendError(f"engine: {engine} was asked for, but {reason}; use {' or '.join(others)}, or auto")
        return _make(engine, where, net, count), "asked for"
    reason = missing("openvino", where, net)
    if reason is None:
        return _make("openvino", where, net, count), "auto: the fastest engine on a CPU"
    return _make("torch", where, net, count), f"auto: not openvino, because {reason}"


def _make(name: str, device: torch.device, net: torch.nn.Module, threads: int) -> Engine:
    if name == "openvino":
        from mrisr.infer.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(net, threads)
    from mrisr.infer.engines.torch import TorchEngine

    return TorchEngine(net, device, threads)
