"""Which engine runs, and why.

One that was asked for by name and cannot run raises `BackendError` with its reason; only engine="auto" chooses, and
`info.engine.why` says why. Choosing loads nothing; `make` does.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mrisr import environment
from mrisr.errors import BackendError, UsageError
from mrisr.infer.engines import tensorrt_package
from mrisr.infer.engines.device import CPU, Device
from mrisr.infer.engines.engine import Engine, Source
from mrisr.infer.engines.precision import asked_for

if TYPE_CHECKING:
    import torch

NAMES = ("torch", "openvino", "tensorrt")


@dataclass(frozen=True)
class Choice:
    """An engine that is to run, before it exists.

    Attributes:
        name: of `NAMES`.
        device: where.
        threads: on a CPU.
        precision: what is wanted, as `mrisr.infer.engines.precision.asked_for` gives it.
        why: this engine, in words.
    """

    name: str
    device: Device
    threads: int
    precision: str
    why: str


def thread_count(threads: int | None) -> int:
    """`threads`; where it is None, `OMP_NUM_THREADS` or every core that this process may use."""
    if threads is None:
        return environment.default_threads()
    if isinstance(threads, bool) or not hasattr(threads, "__index__") or threads < 1:
        raise UsageError(f"threads: expected None or a whole number of at least 1, found {threads!r}")
    return int(threads)


def pick_device(device: str | torch.device) -> Device:
    """ "auto", "cpu", "cuda" or "cuda:N" as a device. UsageError for other texts, BackendError for absent
    devices.
    """
    kind, colon, number = str(device).partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and not (kind == "cuda" and number.isdigit())):
        raise UsageError(f"device: expected auto, cpu, cuda or cuda:N, found {device!r}")
    if kind == "cpu" or (kind == "auto" and not environment.may_have_gpu()):
        return CPU
    import torch

    if kind == "auto" and not torch.cuda.is_available():
        return CPU
    if not torch.cuda.is_available():
        reason = "no CUDA device was found" if torch.version.cuda else "this PyTorch was built without CUDA"
        raise BackendError(f"device: {device} was asked for, but {reason}; use cpu, or auto")
    index, count = int(number or 0), torch.cuda.device_count()
    if index >= count:
        raise BackendError(f"device: {device} was asked for, but there are {count} CUDA devices, numbered from 0")
    return Device(f"cuda:{index}")


def missing(name: str, device: Device, net: Source, plan=None) -> str | None:
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
        if net.config.norm == "group" or net.config.attention:
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
    net: Source,
    threads: int | None,
    plan=None,
    precision: str = "auto",
) -> Choice:
    """The engine to `make`. `plan`: as for `missing`; `precision`: one of `mrisr.infer.engines.precision.PRECISIONS`.

    Raises UsageError for an unknown name, BackendError where a named engine cannot be had, or the process was forked
    from one that has used an engine.
    """
    check_fork()
    request = asked_for(precision)
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
        precision_of_plan = precision if engine == "tensorrt" else request
        return Choice(engine, where, count, precision_of_plan, "asked for")
    reason = missing("openvino", where, net)
    if reason is None:
        return Choice("openvino", where, count, request, "auto: the fastest engine on a CPU")
    return Choice("torch", where, count, request, f"auto: not openvino, because {reason}")


def check_fork() -> None:
    """BackendError in a process that was forked from one which had used an engine: threads do not survive a fork, and
    OpenVINO and OpenMP would wait for theirs for ever."""
    if _used_in is not None and _used_in != os.getpid():
        raise BackendError(
            "engine: this process was forked from one that had used mrisr, whose threads do not exist here; start "
            'processes with multiprocessing.get_context("spawn"), or use mrisr after the fork only'
        )


_used_in: int | None = None  # the process in which an engine was made first


def make(choice: Choice, net: Source, plan=None) -> Engine:
    """The engine that was chosen, for `net` (for OpenVINO also a model of which only the graph is there) and its
    TensorRT `plan`. BackendError where its precision cannot be had, or the plan does not fit."""
    global _used_in
    _used_in = os.getpid()
    if choice.name == "openvino":
        from mrisr.infer.engines.openvino import OpenVINOEngine

        return OpenVINOEngine(net, choice.threads, choice.precision)
    import torch

    from mrisr.infer.engines.tensorrt import TensorRTEngine
    from mrisr.infer.engines.torch import TorchEngine

    device = torch.device(choice.device)
    if choice.name == "tensorrt":
        return TensorRTEngine(net, device, plan, choice.precision)
    return TorchEngine(net, device, choice.threads, choice.precision)
