"""sampler_step: first, middle and last steps, clamp, noise, what is no number."""

from __future__ import annotations

import math

import torch

from mrisr.ops.sampling import COLUMNS, FAMILY, clamps, clocks, reference, sampler_step
from tests.ops.cases.spec import Spec


def _case(shape, step, *, steps=5, before=True, clamp=None, noise=False, key=(0, 0), nan=False):
    def build(generator: torch.Generator) -> dict:
        def draw(*size):
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        x, f = draw(*shape), draw(*shape)
        if nan:
            x[..., 0], f[..., 1], f[..., 2], f[..., 3] = torch.nan, torch.nan, torch.inf, -torch.inf
        return dict(
            x=x,
            f=f,
            table=draw(steps, COLUMNS),
            clock=clocks(steps, sample=key[0], seed=key[1])[step],
            before=draw(*shape) if before else None,
            low=-math.inf if clamp is None else clamp[0],
            high=math.inf if clamp is None else clamp[1],
            noise=noise,
        )

    return build


def _both(x, f, table, before=None, *, low, high, backend=None, **options) -> torch.Tensor:
    """(next, x0) as one tensor. The state and the table are float32 whatever f is."""
    state = torch.float64 if x.dtype == torch.float64 else torch.float32
    before = None if before is None else before.to(state)
    options |= dict(before=before, clamp=(low, high), backend=backend)
    following, x0 = sampler_step(x.to(state), f, table.to(state), **options)
    return torch.stack([following, x0.to(state)])


def _both_reference(x, f, table, clock, before=None, *, low, high, noise) -> torch.Tensor:
    following, x0 = reference(x, f, before, table, clock, low, high, noise)
    return torch.stack([following, x0 if clamps(low, high) else f])


SPEC = Spec(
    family=FAMILY,
    call=_both,
    reference=_both_reference,
    cases={
        "first": _case((5, 6, 7), 0, before=False),
        "middle": _case((5, 6, 7), 2),
        "last": _case((1, 1, 4, 5, 6), 4),
        "clamped_first": _case((3, 4, 5), 1, before=False, clamp=(-0.5, 0.25)),
        "clamped": _case((5, 6, 7), 3, clamp=(-0.7, 0.7)),
        "noise": _case((9, 10, 37), 2, noise=True, key=(3, 2**64 - 5)),
        "noise_alone": _case((3, 5, 17), 0, before=False, noise=True, clamp=(-1.0, 1.0), key=(2**32 - 1, -1)),
        "several_blocks": _case((3, 33, 37), 1, noise=True),
        "one_voxel": _case((1, 1, 1), 0, steps=1, noise=True),
        "no_volume_shape": _case((41,), 1),
        "empty": _case((0, 4, 4), 0, noise=True),
        "nan": _case((3, 4, 6), 1, clamp=(-1.0, 1.0), nan=True),
    },
    # The state is float32 throughout; f in half precision is widened exactly, so that nothing is lost to it.
    tolerance={torch.float32: 3e-6, torch.float64: 1e-12, torch.bfloat16: 3e-6, torch.float16: 3e-6},
    gradients=("x", "f", "before"),
)
