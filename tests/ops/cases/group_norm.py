"""group_norm: layouts, masks, sizes, hard numbers."""

from __future__ import annotations

import torch

from mrisr.ops.group_norm import group_norm, reference
from mrisr.ops.group_norm.backends import FAMILY
from tests.ops.cases.spec import Spec


def case(
    shape,
    groups,
    *,
    affine=True,
    film=False,
    active=None,
    act="silu",
    mean=0.0,
    std=1.0,
    layout="first",
    fill=None,
    nan_at=None,
):
    """A builder of arguments (see `spec.Spec`)."""

    def build(generator: torch.Generator) -> dict:
        def draw(*size):
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        n, c = shape[:2]
        x = draw(*shape) * std + mean
        if fill is not None:
            x = torch.full(shape, fill, dtype=torch.float64)
        if nan_at is not None:
            x[nan_at] = float("nan")
        if layout == "last":
            x = x.contiguous(memory_format=torch.channels_last_3d)
        if layout == "strided":
            x = draw(*shape[:3], shape[4], shape[3]).transpose(3, 4)
        args = dict(x=x, groups=groups, act=act)
        if affine:
            args.update(weight=1 + 0.2 * draw(c), bias=0.3 * draw(c))
        if film:
            args.update(scale=0.2 * draw(n, c), shift=0.2 * draw(n, c))
        if active is not None:
            args["mask"] = torch.rand(n, 1, *shape[2:], generator=generator) < active
        return args

    return build


CASES = {
    "first": case((2, 16, 5, 6, 7), 4),
    "last": case((2, 16, 5, 6, 7), 4, layout="last"),
    "film": case((2, 24, 4, 5, 6), 3, film=True, layout="last"),
    "plain": case((1, 6, 3, 4, 5), 2, affine=False, act=None),
    "film_alone": case((2, 8, 3, 4, 5), 2, affine=False, film=True, act=None),
    "masked_first": case((2, 8, 6, 7, 9), 2, active=0.4, film=True),
    "masked_last": case((2, 8, 6, 7, 9), 2, active=0.4, layout="last"),
    "nothing_active": case((1, 4, 3, 3, 3), 2, active=0.0),
    "large_mean": case((1, 16, 8, 9, 10), 4, mean=1e4),
    "large_mean_last": case((1, 16, 8, 9, 10), 4, mean=1e4, layout="last"),
    "constant": case((1, 8, 4, 4, 4), 2, fill=3.7, layout="last"),
    "constant_first": case((1, 8, 4, 4, 4), 2, fill=-1e3),
    "nan_in_one_group": case((2, 8, 3, 4, 5), 4, nan_at=(1, 5, 1, 2, 3)),
    "nan_in_one_group_last": case((2, 8, 3, 4, 5), 4, nan_at=(1, 5, 1, 2, 3), layout="last"),
    "no_samples": case((0, 8, 2, 3, 4), 2, film=True),
    "no_voxels": case((1, 8, 0, 3, 4), 2),
    "one_voxel": case((1, 8, 1, 1, 1), 2),
    "one_channel": case((2, 1, 7, 8, 9), 1),
    "odd_channels": case((1, 15, 5, 3, 11), 5, layout="last"),
    "instance": case((1, 32, 4, 4, 4), 32, layout="last"),
    "several_slabs": case((1, 4, 30, 34, 37), 2),
    "several_slabs_last": case((1, 4, 30, 34, 37), 2, layout="last", active=0.9),
    "strided": case((1, 8, 5, 6, 7), 2, layout="strided"),
}

SPEC = Spec(
    family=FAMILY,
    call=group_norm,
    reference=reference,
    cases=CASES,
    tolerance={torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3},
    gradients=("x", "weight", "bias", "scale", "shift"),
)
