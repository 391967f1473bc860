"""Seconds of a call on a CPU or a GPU, and what the machine can do at most: copy bandwidth and matrix products.

Medians of calls after a warm-up, the caches emptied before every call, so that a share of the copy bandwidth means
something, and all threads asleep; on a GPU by events. Never time zeros: random numbers cost what real ones do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

CACHE_BYTES = 256 * 2**20  # more than the caches hold; rewritten between calls
# Seconds of quiet after that: the threads that did it go on turning for some milliseconds, in case there is more to do,
# and whoever has threads of its own would be timed beside them.
SETTLE = 0.03
QUICK = 0.05  # a budget below this many seconds is for seeing that it runs: caches stay as they are


def seconds(call: Callable[[], object], device: str = "cpu", budget: float = 0.5, least: int = 3, pick=median) -> float:
    """Median (or `pick`) of the seconds of call(): at least `least` times, then until `budget` seconds are spent."""
    call()
    return pick((_on_gpu if torch.device(device).type == "cuda" else _on_cpu)(call, budget, least))


def _on_cpu(call, budget: float, least: int) -> list[float]:
    other = torch.ones(0 if budget < QUICK else CACHE_BYTES // 4)
    times, first = [], time.perf_counter()
    while len(times) < least or (time.perf_counter() - first < budget and len(times) < 1000):
        other.mul_(-1)
        if budget >= QUICK:
            time.sleep(SETTLE)
            first += SETTLE
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def _on_gpu(call, budget: float, least: int) -> list[float]:
    other = torch.empty(CACHE_BYTES // 4, device="cuda")
    times, first = [], time.perf_counter()
    while len(times) < least or (time.perf_counter() - first < budget and len(times) < 200):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        other.normal_()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return times


def copy_bandwidth(device: str = "cpu", size: int | None = None) -> float:
    """Bytes per second of a large copy, read and written counted: the ceiling of everything that moves data."""
    size = size or (2**32 if torch.device(device).type == "cuda" else 2**28)
    source = torch.empty(size // 4, device=device).normal_()
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device, pick=min)


def matmul_rate(device: str = "cpu", dtype: torch.dtype = torch.float32, n: int | None = None) -> float:
    """FLOP per second of a square matrix product on random data: the ceiling of everything that multiplies."""
    n = n or (8192 if torch.device(device).type == "cuda" else 1024)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, device, pick=min)
