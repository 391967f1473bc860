"""Gaussian noise as a function of (seed, sample, step, voxel): no tiling, batch or device can change it.

Philox4x32-10 (Salmon et al., SC 2011), key = seed, counter = (voxel low, voxel high, sample, step), voxel
being the linear index in the *whole target grid* (last axis fastest). Words 0 and 1 make one normal number
by Box-Muller. Words are equal bit for bit on every backend, normals to 2e-6.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mrisr.errors import UsageError
from mrisr.ops._core import CPU, CUDA
from mrisr.ops._dispatch import Backend, Family, choose, reference_backend, triton_reason
from mrisr.ops._layout import wrong_device
from mrisr.ops._library import custom_op

_M0, _M1, _W0, _W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def normal_noise(
    shape: Sequence[int],
    *,
    seed: int,
    origin: Sequence[int] = (0, 0, 0),
    grid_shape: Sequence[int] | None = None,
    sample: int = 0,
    step: int = 0,
    device: str | torch.device = "cpu",
    backend: str | None = None,
) -> torch.Tensor:
    """Standard normal noise for a box of the target grid.

    Args:
        shape: (D, H, W) of the box, voxels.
        seed: any integer; its low 64 bits count.
        origin: first voxel of the box in the grid.
        grid_shape: (D, H, W) of the whole target grid; None: the box is the grid.
        sample, step: which sample (of several) and which solver step; 0 to 2**32 - 1.

    Returns:
        float32 [D, H, W] on `device`, equal bit for bit to that slice of the whole grid's noise on the same
        backend.

    Raises:
        UsageError: the box does not lie inside the grid, or a number is out of range.
        BackendError: `backend` was asked for and cannot run.
    """
    box = check_box(shape, origin, grid_shape if grid_shape is not None else shape, "normal_noise")
    for name, value in (("sample", sample), ("step", step)):
        if not 0 <= value <= _LOW:
            raise UsageError(f"normal_noise: {name} must lie in [0, 2**32); it is {value}")
    return _normal_noise(*box, signed_seed(seed), sample, step, torch.device(device), backend or "")


def signed_seed(seed: int) -> int:
    """The low 64 bits of a seed as the int64 that operators take."""
    return (int(seed) & (2**64 - 1)) - (2**64 if (int(seed) >> 63) & 1 else 0)


def check_box(
    shape: Sequence[int], origin: Sequence[int], grid: Sequence[int], op: str
) -> tuple[list[int], list[int], list[int]]:
    """The three as lists of integers; UsageError where the box does not lie inside the grid."""
    box = [int(v) for v in shape], [int(v) for v in origin], [int(v) for v in grid]
    if any(len(part) != 3 for part in box):
        raise UsageError(f"{op}: shape, origin and grid_shape have three entries each; they are {box}")
    for d, (n, o, g) in enumerate(zip(*box)):
        if n < 0 or o < 0 or o + n > g:
            raise UsageError(
                f"{op}: the box must lie inside the grid; on axis {d} it starts at {o} with {n} voxels, and the grid "
                f"has {g}"
            )
    return box


@custom_op("mrisr::normal_noise", mutates_args=())
def _normal_noise(
    shape: list[int],
    origin: list[int],
    grid: list[int],
    seed: int,
    sample: int,
    step: int,
    device: torch.device,
    backend: str,
) -> torch.Tensor:
    args = (shape, origin, grid, seed, sample, step, device)
    return choose(FAMILY, backend, *args).run(*args)


@_normal_noise.register_fake
def _(shape, origin, grid, seed, sample, step, device, backend):
    return torch.empty(shape, dtype=torch.float32, device=device)


def philox(counter: Sequence[torch.Tensor], key: tuple[int, int]) -> list[torch.Tensor]:
    """Philox4x32-10: four int64 tensors of 32-bit counters -> four of 32-bit words (values 0 to 2**32 -
    1)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1  # int64 wraps; its 64 bits are the right ones
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return [c0, c1, c2, c3]


def words(shape, *, seed: int, origin=(0, 0, 0), grid_shape=None, sample: int = 0, step: int = 0, device="cpu"):
    """The four Philox words of every voxel of a box: int64 [D, H, W, 4], values 0 to 2**32 - 1
    (reference)."""
    shape, origin, grid = check_box(shape, origin, grid_shape if grid_shape is not None else shape, "words")
    x, y, z = (torch.arange(o, o + n, dtype=torch.int64, device=device) for o, n in zip(origin, shape))
    voxel = (x[:, None, None] * grid[1] + y[:, None]) * grid[2] + z
    counter = voxel & _LOW, (voxel >> 32) & _LOW, torch.full_like(voxel, sample), torch.full_like(voxel, step)
    return torch.stack(philox(counter, (seed & _LOW, (seed >> 32) & _LOW)), dim=-1)


def reference(shape, origin, grid, seed, sample, step, device, dtype=torch.float32) -> torch.Tensor:
    """The noise by its definition, in float64, rounded once at the end."""
    w = words(shape, seed=seed, origin=origin, grid_shape=grid, sample=sample, step=step, device=device)
    u = ((w[..., 0] >> 9).double() + 0.5) * 2.0**-23
    half_turns = (w[..., 1] >> 8).double() * 2.0**-23 - 1.0
    return ((-2.0 * torch.log(u)).sqrt() * torch.cos(torch.pi * half_turns)).to(dtype)


def _run_native(shape, origin, grid, seed, sample, step, device) -> torch.Tensor:
    return _run_core(CPU, shape, origin, grid, seed, sample, step, device)


def _run_cuda(shape, origin, grid, seed, sample, step, device) -> torch.Tensor:
    return _run_core(CUDA, shape, origin, grid, seed, sample, step, device)


def _run_core(core, shape, origin, grid, seed, sample, step, device) -> torch.Tensor:
    out = torch.empty(shape, dtype=torch.float32, device=device)
    core("normal_noise", out.device, out, shape, origin, grid, seed & (2**64 - 1), sample, step)
    return out


def _run_triton(shape, origin, grid, seed, sample, step, device) -> torch.Tensor:
    from mrisr.kernels.noise import normal_noise as kernel

    return kernel(shape, origin, grid, seed, sample, step, device)


def _runs_on(kind: str):
    def accepts(shape, origin, grid, seed, sample, step, device) -> str | None:
        return wrong_device(kind, device, "the noise")

    return accepts


FAMILY = Family(
    "noise",
    (
        Backend("native", _run_native, CPU.reason, _runs_on("cpu")),
        Backend("cuda", _run_cuda, CUDA.reason, _runs_on("cuda")),
        Backend("triton", _run_triton, triton_reason, _runs_on("triton")),
        reference_backend(reference),
    ),
)
