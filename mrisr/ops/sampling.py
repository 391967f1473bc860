"""One step of a diffusion sampler in one pass over the volume.

    x0   = clamp(c_skip x + c_out f)            EDM preconditioning (Karras et al. 2022, table 1)
    next = a x + b x0 + c before + d normal     any solver that is linear in these: DPM-Solver++(2M), Heun, Euler

`before` is the x0 of the step before, `normal` the voxel's own number (`mrisr.ops.noise`), so that no tiling changes
it. The six coefficients are a row of a table that lies on the device, and so does the counter that chooses the row: a
loop of steps captured in a CUDA graph asks the host for nothing. `mrisr.diffusion.sampler` makes the tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from mrisr.errors import UsageError
from mrisr.ops import noise as noise_family
from mrisr.ops._core import CPU, CUDA
from mrisr.ops._dispatch import Backend, Family, choose, reference_backend, triton_reason
from mrisr.ops._layout import DTYPE_CODES, FLOAT, takes
from mrisr.ops._library import custom_op

COLUMNS = 6  # c_skip, c_out, a, b, c, d


def sampler_step(
    x: torch.Tensor,
    f: torch.Tensor,
    table: torch.Tensor,
    clock: torch.Tensor,
    *,
    before: torch.Tensor | None = None,
    raw: bool = True,
    clamp: tuple[float, float] | None = None,
    noise: bool = False,
    origin: Sequence[int] = (0, 0, 0),
    grid_shape: Sequence[int] | None = None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The state after one solver step, and the x0 that it was made of.

    Args:
        x: the state, float32 of any shape ([..., D, H, W] with one volume in it where `noise`); float64 runs on the
            reference alone.
        f: as x, float32, float16 or bfloat16: the network's raw output, or x0 itself where not `raw`.
        table: [steps, 6], dtype and device of x: c_skip, c_out, a, b, c, d of every step.
        clock: int64 [3] on the device of x, from `clocks`: step, sample, seed. A step that the table does not have
            is a UsageError on the CPU, and gives NaN everywhere on a GPU, which cannot raise.
        before: x0 of the step before, as x; None: c is not used.
        clamp: (low, high) that x0 is held to; NaN stays NaN.
        noise: add d * normal_noise(seed, sample, step + 1); step 0 is the sample's starting noise.
        origin, grid_shape: where x lies in the whole target grid (None: it is the grid); used with `noise`.

    Returns:
        (next, x0), both as x; where f is x0 already and nothing is clamped, x0 is f itself. Differentiable in x, f
        and before.

    Raises:
        UsageError: shapes, dtypes or devices do not fit. BackendError: `backend` was asked for and cannot run.
    """
    _check(x, f, table, clock, before)
    low, high = (-math.inf, math.inf) if clamp is None else (float(v) for v in clamp)
    if not low <= high:
        raise UsageError(f"sampler_step: clamp must be (low, high) with low <= high; it is {clamp}")
    shape = _box_shape(x, noise)
    where = (origin, shape if grid_shape is None else grid_shape) if noise else ((0, 0, 0), shape)
    _, origin, grid = noise_family.check_box(shape, *where, "sampler_step")
    args = (x.contiguous(), f.contiguous(), None if before is None else before.contiguous(), table.contiguous(), clock)
    following, x0 = _sampler_step(*args, raw, low, high, noise, origin, grid, backend or "")
    return following, x0 if writes_x0(raw, low, high) else f


def clocks(steps: int, *, sample: int = 0, seed: int = 0, device: str | torch.device = "cpu") -> torch.Tensor:
    """int64 [steps, 3], a row (step, sample, seed) for every step; `seed` may be any integer."""
    if not 0 <= sample < 2**32:
        raise UsageError(f"sampler_step: sample must lie in [0, 2**32); it is {sample}")
    key = [sample, noise_family.signed_seed(seed)]
    return torch.tensor([[step, *key] for step in range(steps)], dtype=torch.int64, device=device).reshape(steps, 3)


def writes_x0(raw: bool, low: float, high: float) -> bool:
    return raw or low > -math.inf or high < math.inf


def _box_shape(x: torch.Tensor, noise: bool) -> list[int]:
    if not noise:
        return [1, 1, x.numel()]
    if x.ndim < 3 or math.prod(x.shape[:-3]) != 1:
        raise UsageError(f"sampler_step: noise needs x of one volume, [..., D, H, W]; it is {list(x.shape)}")
    return list(x.shape[-3:])


def _check(x, f, table, clock, before) -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise UsageError(f"sampler_step: x must be float32 (or float64, for reference); it is {x.dtype}")
    if f.shape != x.shape or (f.dtype not in DTYPE_CODES and f.dtype != x.dtype):
        raise UsageError(
            f"sampler_step: f must be float32, float16 or bfloat16 {list(x.shape)} as x; it is {f.dtype} "
            f"{list(f.shape)}"
        )
    if before is not None and (before.shape != x.shape or before.dtype != x.dtype):
        raise UsageError(
            f"sampler_step: before must be {x.dtype} {list(x.shape)} as x; it is {before.dtype} {list(before.shape)}"
        )
    if table.ndim != 2 or table.shape[1] != COLUMNS or table.shape[0] < 1 or table.dtype != x.dtype:
        raise UsageError(
            f"sampler_step: table must be {x.dtype} [steps, {COLUMNS}] with steps >= 1; it is {table.dtype} "
            f"{list(table.shape)}"
        )
    if clock.shape != (3,) or clock.dtype != torch.int64:
        raise UsageError(
            f"sampler_step: clock must be int64 [3] (see `clocks`); it is {clock.dtype} {list(clock.shape)}"
        )
    for name, tensor in (("f", f), ("before", before), ("table", table), ("clock", clock)):
        if tensor is not None and tensor.device != x.device:
            raise UsageError(f"sampler_step: {name} is on {tensor.device}, x on {x.device}; move one to the other")


@custom_op("mrisr::sampler_step", mutates_args=())
def _sampler_step(
    x: torch.Tensor,
    f: torch.Tensor,
    before: torch.Tensor | None,
    table: torch.Tensor,
    clock: torch.Tensor,
    raw: bool,
    low: float,
    high: float,
    noise: bool,
    origin: list[int],
    grid: list[int],
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    if clock.device.type == "cpu" and not 0 <= int(clock[0]) < table.shape[0]:
        raise UsageError(f"sampler_step: the table has {table.shape[0]} steps; the clock is at step {int(clock[0])}")
    args = (x, f, before, table, clock, raw, low, high, noise, origin, grid)
    return choose(FAMILY, backend, *args).run(*args)


@_sampler_step.register_fake
def _(x, f, before, table, clock, raw, low, high, noise, origin, grid, backend):
    return torch.empty_like(x), torch.empty_like(x) if writes_x0(raw, low, high) else x.new_empty(0)


def _save(ctx, inputs, output) -> None:
    _, f, before, table, clock, ctx.raw, low, high = inputs[:8]
    clamped = low > -math.inf or high < math.inf
    ctx.bounds, ctx.f_dtype, ctx.has_before, ctx.stored = (
        (low, high),
        f.dtype,
        before is not None,
        output[1].numel() > 0,
    )
    ctx.save_for_backward(table, clock, output[1] if clamped else None)


def _backward(ctx, grad_next, grad_x0):
    """The adjoint, in plain PyTorch: the step is linear but for the clamp."""
    table, clock, x0 = ctx.saved_tensors
    c_skip, c_out, a, b, c, _ = _row(table, clock)
    through = b * grad_next
    if ctx.stored:
        through = through + grad_x0
    if x0 is not None:
        through = torch.where((x0 > ctx.bounds[0]) & (x0 < ctx.bounds[1]), through, 0.0)
    grad_x = a * grad_next + c_skip * through if ctx.raw else a * grad_next
    grad_f = (c_out * through if ctx.raw else through).to(ctx.f_dtype)
    return grad_x, grad_f, c * grad_next if ctx.has_before else None, *(None,) * 9


_sampler_step.register_autograd(_backward, setup_context=_save)


def _row(table: torch.Tensor, clock: torch.Tensor) -> list[torch.Tensor]:
    """The six coefficients of the clock's step, NaN where the table has no such step; nothing leaves the device."""
    step = clock[0]
    row = table.index_select(0, step.clamp(0, table.shape[0] - 1)[None])[0]
    return list(torch.where((step >= 0) & (step < table.shape[0]), row, torch.nan).unbind())


def reference(x, f, before, table, clock, raw, low, high, noise, origin, grid):
    """The step in plain PyTorch, in the dtype of x; in float64 it is the oracle. The clock is read on the host where
    there is noise."""
    c_skip, c_out, a, b, c, d = _row(table, clock)
    x0 = c_skip * x + c_out * f.to(x.dtype) if raw else f.to(x.dtype)
    if low > -math.inf or high < math.inf:
        x0 = x0.clamp(low, high)
    following = a * x + b * x0
    if before is not None:
        following = following + c * before
    if noise:
        step, sample, seed = clock.tolist()
        shape = list(x.shape[-3:])
        normal = noise_family.reference(shape, origin, grid, seed, sample, step + 1, x.device, x.dtype)
        following = following + d * normal.reshape(x.shape)
    return following, x0 if writes_x0(raw, low, high) else x.new_empty(0)


def _run_native(x, f, *rest):
    # The core reads float32; a half f is widened first.
    return _run_core(CPU, x, f.float(), *rest)


def _run_cuda(x, f, *rest):
    return _run_core(CUDA, x, f, *rest)


def _run_core(core, x, f, before, table, clock, raw, low, high, noise, origin, grid):
    following = torch.empty_like(x)
    x0 = torch.empty_like(x) if writes_x0(raw, low, high) else x.new_empty(0)
    volumes = [following, x0 if x0.numel() else None, x, f, before]
    box, dtype = (_box_shape(x, noise), origin, grid), DTYPE_CODES[f.dtype]
    how = (volumes, table, table.shape[0], clock, raw, noise, low, high, *box, dtype)
    core("sampler_step", x.device, *how)
    return following, x0


def _run_triton(x, f, before, table, clock, raw, low, high, noise, origin, grid):
    from mrisr.kernels.sampling import sampler_step as kernel

    box = _box_shape(x, noise), origin, grid
    return kernel(x, f, before, table, clock, raw, low, high, noise, box, writes_x0(raw, low, high))


FAMILY = Family(
    "sampler_step",
    (
        Backend("native", _run_native, CPU.reason, takes("cpu", FLOAT)),
        Backend("cuda", _run_cuda, CUDA.reason, takes("cuda", FLOAT)),
        Backend("triton", _run_triton, triton_reason, takes("triton", FLOAT)),
        reference_backend(reference),
    ),
)
