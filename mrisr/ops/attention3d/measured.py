"""Where PyTorch's attention was faster than the Triton kernel.

`ROWS` is written by `python benchmarks/attention3d.py` on a GPU; the lines between the two marks are that program's.
"""

from __future__ import annotations

import math

import torch

# (device, dtype, head dim, window (None: global), tokens, ms of Triton, ms of PyTorch)
Row = tuple[str, str, int, int | None, int, float, float]

# measured: begin
ROWS: tuple[Row, ...] = ()
# measured: end


def sdpa_was_faster(
    rows: tuple[Row, ...], device: str, dtype: str, head_dim: int, window: int | None, tokens: int
) -> bool:
    """What the rows of the same device, dtype, head dim and window say of the nearest number of tokens; no such row:
    no."""
    same = [row for row in rows if row[:4] == (device, dtype, head_dim, window)]
    if not same:
        return False
    *_, triton_ms, sdpa_ms = min(same, key=lambda row: abs(math.log(row[4] / tokens)))
    return sdpa_ms < triton_ms


def prefer(qkv, heads, window, *rest) -> str | None:
    """The backend to try first for this call, or None."""
    if qkv.device.type != "cuda" or not qkv.numel() or not ROWS:
        return None
    size = qkv.shape[1:4]
    edge = None if list(window) == list(size) else window[0]
    call = (str(qkv.dtype).removeprefix("torch."), qkv.shape[4] // (3 * heads), edge, math.prod(size))
    return "sdpa" if sdpa_was_faster(ROWS, torch.cuda.get_device_name(qkv.device), *call) else None
