"""How much memory a job takes, and which tile keeps it inside a stated budget.

The model is a straight line (tests/infer/test_memory.py holds it to account in a fresh process):

    peak = held by the process + engine + copies of the volumes + bytes per network voxel * tile voxels

The PyTorch engine has returned its maps before the result is made from the residual, so of the last two terms and
the copies that making the result takes, the larger counts. On a GPU the budget is device memory, and the process does
not count.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from mrisr.errors import MemoryBudgetError, UsageError, excerpt
from mrisr.infer import cgroup

if TYPE_CHECKING:
    import torch

    from mrisr.infer.engines.device import Device

MB = 10**6
UNITS = {
    "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
SHARE_OF_FREE = 0.6


@dataclass(frozen=True)
class Cost:
    """What running a network costs beyond the volumes.

    Attributes:
        fixed: bytes of libraries, compiled kernels and conversion.
        maps: full feature maps of the network's finest level alive at once, working copies included.
    """

    fixed: int
    maps: float


# From the student's resident peak on a CPU, rounded up; tests/infer/test_memory.py holds budgets to it. PyTorch's maps
# are those of its program over slabs on a CPU; the figure here is that of the module's own forward, on a GPU.
# TensorRT's maps are what its plan states; the rest of it was never measured.
COSTS = {"openvino": Cost(120 * MB, 4.0), "torch": Cost(150 * MB, 9.0), "tensorrt": Cost(300 * MB, 0.0)}
PIECE_BYTES = 32  # per voxel of a piece around the network: state, start, output, and the preconditioning of them
LEAN_PIECE_BYTES = 8  # the same in mode "mean" with an engine that needs no state; twice where axes are reordered
NETWORK_COPIES = 2.0  # float32 target volumes alive beside the network: start and residual
# float32 target volumes alive at once: start, residual, two products that take the band out, their difference; the
# correction by the scan takes two more.
TARGET_COPIES, CORRECTION_COPIES = 5.0, 2.0
SOURCE_COPIES = 6.0
# Further ones of several steps, and each of: several samples, a captured loop, an ensemble. And copies of the weights.
STEP_COPIES, SEVERAL_COPIES, WEIGHT_COPIES = 2.0, 3.0, 2.0
MOST_BYTES = 2.0**62  # more than any machine has


def parse_budget(memory: str | int | float | None) -> int | None:
    """Bytes from "2GB", "512 MB", "1.5GiB" or a number of bytes; None stays None. Raises UsageError."""
    if memory is None:
        return None
    size = 0.0
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", memory)
        if match and match.group(2).upper() in UNITS:
            size = float(match.group(1)) * UNITS[match.group(2).upper()]
    elif isinstance(memory, (int, float)) and not isinstance(memory, bool):
        size = memory
    if not 1 <= size < MOST_BYTES:
        raise UsageError(
            f'memory: expected a size such as "2GB", "512MB" or a number of bytes, found {excerpt(memory)}'
        )
    return int(size)


def resident() -> int:
    """Bytes of memory this process holds now (its peak so far where the system does not say)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_resident()


def peak_resident() -> int:
    """Bytes of memory that this process has held at most since its program started.

    Linux gives it as VmHWM. `getrusage` there would not do: its figure survives exec, so that a process
    started by a large one reports the peak of its parent.
    """
    match = re.search(r"VmHWM:\s+(\d+) kB", cgroup.read(Path("/proc/self/status")))
    if match:
        return int(match.group(1)) * 1024
    import resource  # not on Windows, hence not at the top

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def return_freed_memory() -> None:
    """Give what was freed (hundreds of megabytes, after a graph was converted) back to the system; glibc does not by
    itself."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def available() -> int:
    """Bytes that can be had without swapping: free memory, or what the process's control group leaves."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    match = re.search(r"MemAvailable:\s+(\d+) kB", cgroup.read(Path("/proc/meminfo")))
    if match:
        limits.append(int(match.group(1)) * 1024)
    limited = cgroup.free()
    if limited is not None:
        limits.append(limited)
    return min(limits)


def workers() -> int:
    """How many processes share this machine's memory, of which this is one: MRISR_WORKERS, else 1. UsageError."""
    setting = os.environ.get("MRISR_WORKERS") or "1"
    if not (setting.isascii() and setting.isdigit() and len(setting) <= 9 and int(setting) >= 1):
        raise UsageError(f"MRISR_WORKERS: expected a whole number of at least 1, found {excerpt(setting)}")
    return int(setting)


def default_budget(device: torch.device | Device) -> int:
    """This worker's part of 60 % of what is free, and on a CPU what the process holds already."""
    if device.type == "cuda":
        import torch

        return int(SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0] / workers())
    return int(resident() + SHARE_OF_FREE * available() / workers())


@dataclass(frozen=True)
class Demand:
    """A job's peak, in bytes.

    Attributes:
        resident_bytes: of the process before the job.
        fixed: libraries, compiled kernels, weights.
        volumes: copies of source and target beside the network.
        per_voxel: of a tile.
        finish: copies of source and target where the start or the result is made, with no tile alive.
    """

    resident_bytes: int
    fixed: int
    volumes: int
    per_voxel: float
    finish: int = 0

    def peak(self, tile_voxels: int) -> int:
        return int(self.resident_bytes + self.fixed + max(self.finish, self.volumes + self.per_voxel * tile_voxels))

    def tile_voxels(self, budget: int) -> int:
        """Voxels of the largest tile inside `budget`; below 1 where nothing fits."""
        room = budget - self.resident_bytes - self.fixed
        return -1 if room < self.finish else int((room - self.volumes) / self.per_voxel)


def demand(
    cost: Cost,
    *,
    resident_bytes: int,
    source_voxels: int,
    target_voxels: int,
    width: int,
    weight_bytes: int,
    frames: int = 1,
    samples: int = 1,
    steps: int = 1,
    ensemble: int = 1,
    maps: float | None = None,
    state: bool = True,
    reordered: bool = True,
    corrected: bool = True,
    captured: bool = False,
    start_copies: float = 0.0,
    source_copies: float = 0.0,
    points: int = 0,
) -> Demand:
    """The demand of a job.

    Args:
        cost: of the engine.
        resident_bytes: `resident()` before the volumes of the job exist; 0 for a GPU.
        width: channels of the network's finest level (float32, at half resolution: 1/8 of the voxels).
        frames: of a 4D scan that the result holds.
        samples, steps: above 1, further copies of the target are kept (mean, spread, state).
        ensemble: mirrorings averaged; above 1, their sum and a mirrored start and residual are kept.
        maps: bytes per network voxel of an engine that gives its memory back; None: what `cost` says of one that
            keeps it until the end of the job.
        state: mode "sample", which carries one from step to step.
        reordered: the network sees the axes in another order than they are stored in.
        corrected: the result may be corrected by the scan (consistency).
        captured: the loop may become a CUDA graph, which has volumes of its own for what goes in and comes out.
        start_copies: copies of the target alive while the start is made.
        source_copies: copies of the source beyond `SOURCE_COPIES`, for its bias field.
        points: bytes that evaluating a displacement takes while the start is made.
    """
    results = frames * (2 if samples > 1 else 1)
    extra = results + STEP_COPIES * (steps > 1) + SEVERAL_COPIES * ((samples > 1) + captured + (ensemble > 1))
    copies = TARGET_COPIES + extra + (CORRECTION_COPIES if corrected else 0)
    source = (SOURCE_COPIES + source_copies) * source_voxels
    start = int(4 * ((start_copies + extra) * target_voxels + source)) + points
    finish = max(start, int(4 * (copies * target_voxels + source)))
    fixed = int(cost.fixed + WEIGHT_COPIES * weight_bytes)
    if maps is None:
        return Demand(resident_bytes, fixed, finish, cost.maps * width * 4 / 8 + PIECE_BYTES)
    copies = NETWORK_COPIES + extra
    piece = PIECE_BYTES if state else LEAN_PIECE_BYTES * (1 + reordered)
    volumes = int(4 * (copies * target_voxels + source))
    return Demand(resident_bytes, fixed, volumes, maps + piece, finish)


def refuse(budget: int, need: Demand, tile_voxels: int, what: str, way_out: str = "") -> NoReturn:
    """Raise MemoryBudgetError that names the smallest budget that would do, and what else would."""
    raise MemoryBudgetError(
        f"memory: a budget of {show(budget)} is too small for this job; the smallest that works is "
        f"{show(need.peak(tile_voxels), up=True)} (process {show(need.resident_bytes)}, engine {show(need.fixed)}, "
        f"volumes {show(max(need.volumes, need.finish))}, {what} {show(int(need.per_voxel * tile_voxels))}); raise "
        f"memory, ask for a coarser voxel_size or crop the input{way_out}"
    )


def show(size: int, up: bool = False) -> str:
    """ "1.3GB" or "512MB": a text that `parse_budget` reads back (`up`: never below the size)."""
    unit, name, step = (10**9, "GB", 0.1) if size >= 10**9 else (10**6, "MB", 1)
    steps = size / unit / step
    return f"{(np.ceil(steps) if up else round(steps)) * step:.{1 if step < 1 else 0}f}{name}"
