"""One step of a diffusion sampler in one pass over the volume.

    x0   = clamp(f)
    next = a x + b x0 + c before + d normal     any solver that is linear in these: DPM-Solver++(2M), Heun, Euler

`before` is the x0 of the step before, `normal` the voxel's own number (`mrisr.ops.noise`), so that no tiling changes
it. The four coefficients are a row of a table that lies on the device, and so does the counter that chooses the row: a
loop of steps captured in a CUDA graph asks the host for nothing. `mrisr.diffusion.sampler` makes the tables.
"""

from __future__ import annotations

import math

import torch

from mrisr.errors import UsageError
from mrisr.ops import noise as noise_family
from mrisr.ops._core import CPU, CUDA
from mrisr.ops._dispatch import Backend, Family, choose, reference_backend, triton_reason
from mrisr.ops._layout import DTYPE_CODES, FLOAT, takes
from mrisr.ops._library import custom_op

COLUMNS = 4  # a, b, c, d


def sampler_step(
    x: torch.Tensor,
    f: torch.Tensor,
    table: torch.Tensor,
    clock: torch.Tensor,
    *,
    before: torch.Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    noise: bool = False,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The state after one solver step, and the x0 that it was made of.

    Args:
        x: the state on the whole target grid, float32 of any shape ([..., D, H, W] with one volume in it where
            `noise`); float64 runs on the reference alone.
        f: x0 as the denoiser gives it; as x, float32, float16 or bfloat16.
        table: [steps, 4], dtype and device of x: a, b, c, d of every step.
        clock: int64 [3] on the device of x, from `clocks`: step, sample, seed. A step that the table does not have
            is a UsageError on the CPU, and gives NaN everywhere on a GPU, which cannot raise.
        before: x0 of the step before, as x; None: c is not used.
        clamp: (low, high) that x0 is held to; NaN and infinities stay, so that an overflow is seen.
        noise: add d * normal_noise(seed, sample, step + 1); step 0 is the sample's starting noise.

    Returns:
        (next, x0), both as x; where nothing is clamped, x0 is f itself. Differentiable in x, f
        and before.

    Raises:
        UsageError: shapes, dtypes or devices do not fit. BackendError: `backend` was asked for and cannot run.
    """
    _check(x, f, table, clock, before)
    low, high = (-math.inf, math.inf) if clamp is None else (float(v) for v in clamp)
    if not low <= high:
        raise UsageError(f"sampler_step: clamp must be (low, high) with low <= high; it is {clamp}")
    if noise and (x.ndim < 3 or math.prod(x.shape[:-3]) != 1):
        raise UsageError(f"sampler_step: noise needs x of one volume, [..., D, H, W]; it is {list(x.shape)}")
    args = (x.contiguous(), f.contiguous(), None if before is None else before.contiguous(), table.contiguous(), clock)
    following, x0 = _sampler_step(*args, low, high, noise, backend or "")
    return following, x0 if clamps(low, high) else f


def clocks(steps: int, *, sample: int = 0, seed: int = 0, device: str | torch.device = "cpu") -> torch.Tensor:
    """int64 [steps, 3], a row (step, sample, seed) for every step; `seed` may be any integer."""
    if not 0 <= sample < 2**32:
        raise UsageError(f"clocks: sample must lie in [0, 2**32); it is {sample}")
    key = [sample, noise_family.signed_seed(seed)]
    return torch.tensor([[step, *key] for step in range(steps)], dtype=torch.int64, device=device).reshape(steps, 3)


def clamps(low: float, high: float) -> bool:
    return low > -math.inf or high < math.inf


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
    low: float,
    high: float,
    noise: bool,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    if clock.device.type == "cpu" and not 0 <= int(clock[0]) < table.shape[0]:
        raise UsageError(
            f"sampler_step: the table has {table.shape[0]} steps; the clock is at step {int(clock[0])}: take a row "
            f"of clocks({table.shape[0]})"
        )
    args = (x, f, before, table, clock, low, high, noise)
    return choose(FAMILY, backend, *args).run(*args)


@_sampler_step.register_fake
def _(x, f, before, table, clock, low, high, noise, backend):
    return torch.empty_like(x), torch.empty_like(x) if clamps(low, high) else x.new_empty(0)


def _save(ctx, inputs, output) -> None:
    _, f, before, table, clock, low, high = inputs[:7]
    ctx.bounds, ctx.f_dtype, ctx.has_before, ctx.clamped = (low, high), f.dtype, before is not None, clamps(low, high)
    ctx.save_for_backward(table, clock, output[1] if ctx.clamped else None)


def _backward(ctx, grad_next, grad_x0):
    """The adjoint, in plain PyTorch: the step is linear but for the clamp."""
    table, clock, x0 = ctx.saved_tensors
    a, b, c, _ = _row(table, clock)
    through = b * grad_next
    if ctx.clamped:
        free = (x0 > ctx.bounds[0]) & (x0 < ctx.bounds[1]) | ~x0.isfinite()
        through = torch.where(free, through + grad_x0, 0.0)
    return a * grad_next, through.to(ctx.f_dtype), c * grad_next if ctx.has_before else None, *(None,) * 6


_sampler_step.register_autograd(_backward, setup_context=_save)


def _row(table: torch.Tensor, clock: torch.Tensor) -> list[torch.Tensor]:
    """The four coefficients of the clock's step, NaN where the table has no such step; nothing leaves the device."""
    step = clock[0]
    row = table.index_select(0, step.clamp(0, table.shape[0] - 1)[None])[0]
    return list(torch.where((step >= 0) & (step < table.shape[0]), row, torch.nan).unbind())


def reference(x, f, before, table, clock, low, high, noise):
    """The step in plain PyTorch, in the dtype of x; in float64 it is the oracle. The clock is read on the host where
    there is noise."""
    a, b, c, d = _row(table, clock)
    x0 = f.to(x.dtype)
    if clamps(low, high):
        x0 = torch.where(x0.isfinite(), x0.clamp(low, high), x0)
    following = a * x + b * x0
    if before is not None:
        following = following + c * before
    if noise:
        step, sample, seed = clock.tolist()
        shape, here = list(x.shape[-3:]), [0, 0, 0]
        normal = noise_family.reference(shape, here, shape, seed, sample, step + 1, x.device, x.dtype)
        following = following + d * normal.reshape(x.shape)
    return following, x0 if clamps(low, high) else x.new_empty(0)


def _run_native(x, f, *rest):
    # The core reads float32; a half f is widened first.
    return _run_core(CPU, x, f.float(), *rest)


def _run_cuda(x, f, *rest):
    return _run_core(CUDA, x, f, *rest)


def _run_core(core, x, f, before, table, clock, low, high, noise):
    following = torch.empty_like(x)
    x0 = torch.empty_like(x) if clamps(low, high) else x.new_empty(0)
    volumes = [following, x0 if x0.numel() else None, x, f, before]
    how = (table, table.shape[0], clock, noise, low, high, x.numel(), DTYPE_CODES[f.dtype])
    core("sampler_step", x.device, volumes, *how)
    return following, x0


def _run_triton(x, f, before, table, clock, low, high, noise):
    from mrisr.kernels.sampling import sampler_step as kernel

    return kernel(x, f, before, table, clock, low, high, noise, clamps(low, high))


FAMILY = Family(
    "sampler_step",
    (
        Backend("native", _run_native, CPU.reason, takes("cpu", FLOAT)),
        Backend("cuda", _run_cuda, CUDA.reason, takes("cuda", FLOAT)),
        Backend("triton", _run_triton, triton_reason, takes("triton", FLOAT)),
        reference_backend(reference),
    ),
)
