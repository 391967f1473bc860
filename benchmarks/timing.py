"""Seconds of a call on a CPU or a GPU, and what the machine can do at most: copy bandwidth and matrix products.

Medians of calls after a warm-up. On a GPU by events, the L2 cache emptied before every call. Never time zeros: random
numbers cost what real ones do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

L2_BYTES = 256 * 2**20  # more than any GPU's; rewritten between calls


def seconds(call: Callable[[], object], device: str = "cpu", budget: float = 0.5, least: int = 3) -> float:
    """Median seconds of call(): at least `least` times, then until `budget` seconds are spent."""
    call()
    return _on_gpu(call, budget, least) if torch.device(device).type == "cuda" else _on_cpu(call, budget, least)


def _on_cpu(call, budget: float, least: int) -> float:
    found, begun = [], time.perf_counter()
    while len(found) < least or (time.perf_counter() - begun < budget and len(found) < 1000):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def _on_gpu(call, budget: float, least: int) -> float:
    other = torch.empty(L2_BYTES // 4, device="cuda")
    found, begun = [], time.perf_counter()
    while len(found) < least or (time.perf_counter() - begun < budget and len(found) < 200):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        other.normal_()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return statistics.median(found)


def copy_bandwidth(device: str = "cpu", size: int | None = None) -> float:
    """Bytes per second of a large copy, read and written counted: the ceiling of everything that moves data."""
    size = size or (2**32 if torch.device(device).type == "cuda" else 2**28)
    source = torch.empty(size // 4, device=device).normal_()
    target = torch.empty_like(source)
    return 2 * size / seconds(lambda: target.copy_(source), device)


def matmul_rate(device: str = "cpu", dtype: torch.dtype = torch.float32, n: int | None = None) -> float:
    """FLOP per second of a square matrix product on random data: the ceiling of everything that multiplies."""
    n = n or (8192 if torch.device(device).type == "cuda" else 1024)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, device)
