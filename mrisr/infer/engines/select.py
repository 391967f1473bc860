"""The engine protocol, and which engine runs.

An engine swaps the network alone: preconditioning, tiles and samplers are shared. One that was asked for by
name and cannot run raises `BackendError` with its reason; only engine="auto" chooses, and `info.engine.why`
says why.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Protocol

import torch

from mrisr import environment
from mrisr.errors import BackendError, UsageError
from mrisr.infer.engines import tensorrt_package
from mrisr.infer.engines.precision import asked_for

# (x, y [1, 1, D, H, W], vector [1, 40], guidance [1, 8, D/8, H/8, W/8], active or None) -> F [1, 1, D, H, W],
# float32: the interface of mrisr.nn.unet.UNet, so that mrisr.diffusion.precond.Denoiser takes either.
Network = Callable[..., torch.Tensor]
NAMES = ("torch", "openvino", "tensorrt")


class Engine(Protocol):
    """Where and how the network runs; the attributes go into `info` as they are.

    Attributes:
        name: as in the `engine` argument.
        device: of the tensors it takes and gives.
        threads: on the CPU; 0 on a GPU.
        precision: of the arithmetic.
        precision_why: why that one.
    """

    name: str
    device: torch.device
    threads: int
    precision: str
    precision_why: str

    def prepare(self, shape: tuple[int, int, int]) -> Network:
        """The network, ready for volumes of `shape` (multiples of 8).

        It runs without autograd, and its result may be overwritten by its next call. Ctrl-C interrupts it.
        """

    def release(self) -> None:
        """Give back working memory between runs (compiled kernels stay)."""


def thread_count(threads: int | None) -> int:
    """`threads`; where it is None, `OMP_NUM_THREADS` or every core that this process may use."""
    if threads is None:
        return environment.default_threads()
    if isinstance(threads, bool) or not hasattr(threads, "__index__") or threads < 1:
        raise UsageError(f"threads: expected None or a whole number of at least 1, found {threads!r}")
    return int(threads)


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:N" as a device. UsageError for other texts, BackendError for absent
    devices.
    """
    kind, colon, number = str(device).partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and not (kind == "cuda" and number.isdigit())):
        raise UsageError(f"device: expected auto, cpu, cuda or cuda:N, found {device!r}")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = "no CUDA device was found" if torch.version.cuda else "this PyTorch was built without CUDA"
        raise BackendError(f"device: {device} was asked for, but {built}; use cpu, or auto")
    index, count = int(number or 0), torch.cuda.device_count()
    if index >= count:
        raise BackendError(f"device: {device} was asked for, but there are {count} CUDA devices, numbered from 0")
    return torch.device("cuda", index)


def missing(name: str, device: torch.device, net: torch.nn.Module, plan=None) -> str | None:
    """Why engine `name` cannot run `net` on `device`, or None where it can. Imports and allocates nothing.

    Args:
        plan: a TensorRT plan of `net` (`mrisr.bundle.Plan`), or None.
    """
    if name == "torch":
        return None
    if name == "openvino":
        if device.type != "cpu":
            return f"it runs on the CPU, and the device is {device}"
        if importlib.util.find_spec("openvino") is None:
            return "the package openvino is not installed (pip install openvino)"
        config = getattr(net, "config", None)
        if config is None or config.norm == "group" or config.attention:
            return "it takes the networks without group normalisation and attention, and this one has them"
        return None
    reason = tensorrt_package.missing(plan and plan.path)
    if reason:
        return reason
    if device.type != "cuda":
        return f"it runs on CUDA devices, and the device is {device}"
    if plan is None:
        return "the model has no plan (mrisr export --format tensorrt -o DIR makes one; then model=DIR)"
    return None


def choose(
    engine: str,
    device: str | torch.device,
    net: torch.nn.Module,
    threads: int | None,
    plan=None,
    precision: str = "auto",
) -> tuple[Engine, str]:
    """(engine, why). `plan`: as for `missing`; `precision`: one of `mrisr.infer.engines.precision.PRECISIONS`.

    Raises UsageError for an unknown name, BackendError where a named engine or precision cannot be had, or the process
    was forked from one that has used an engine.
    """
    check_fork()
    asked = asked_for(precision)
    if engine not in ("auto", *NAMES):
        raise UsageError(f"engine: expected one of auto, {', '.join(NAMES)}, found {engine!r}")
    count = thread_count(threads)
    # OpenVINO by name and no device by name: the one device that it runs on.
    where = pick_device("cpu" if engine == "openvino" and str(device) == "auto" else device)
    if engine != "auto":
        reason = missing(engine, where, net, plan)
        if reason:
            others = [n for n in NAMES if missing(n, where, net, plan) is None]
            raise BackendError(f"engine: {engine} was asked for, but {reason}; use {' or '.join(others)}, or auto")
        # MRISR_PRECISION is not about plans, which are what they were built as.
        wanted = precision if engine == "tensorrt" else asked
        return _make(engine, where, net, count, wanted, plan), "asked for"
    reason = missing("openvino", where, net)
    if reason is None:
        return _make("openvino", where, net, count, asked), "auto: the fastest engine on a CPU"
    return _make("torch", where, net, count, asked), f"auto: not openvino, because {reason}"


def check_fork() -> None:
    """BackendError in a process that was forked from one which had used an engine: threads do not survive a fork, and
    OpenVINO and OpenMP would wait for theirs for ever."""
    if _used_in is not None and _used_in != os.getpid():
        raise BackendError(
            "engine: this process was forked from one that had used mrisr, whose threads do not exist here; start "
            'processes with multiprocessing.get_context("spawn"), or use mrisr after the fork only'
        )


_used_in: int | None = None  # the process in which an engine was made first


def _make(name: str, device: torch.device, net: torch.nn.Module, threads: int, asked: str, plan=None) -> Engine:
    global _used_in
    _used_in = os.getpid()
    if name == "openvino":
        from mrisr.infer.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(net, threads, asked)
    if name == "tensorrt":
        from mrisr.infer.engines.tensorrt import TensorRTEngine

        return TensorRTEngine(net, device, plan, asked)
    from mrisr.infer.engines.torch import TorchEngine

    return TorchEngine(net, device, threads, asked)
