"""rms_norm: layouts, sizes, hard numbers."""

from __future__ import annotations

import torch

from mrisr.ops.rms_norm import reference, rms_norm
from mrisr.ops.rms_norm.backends import FAMILY
from tests.ops.cases.spec import Spec


def case(shape, *, film=True, act="silu", layout="first", mean=0.0, std=1.0, fill=None, nan_at=None):
    """A builder of arguments (see `spec.Spec`)."""

    def build(generator: torch.Generator) -> dict:
        def draw(*size):
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        x = draw(*shape) * std + mean if fill is None else torch.full(shape, fill, dtype=torch.float64)
        if nan_at is not None:
            x[nan_at] = float("nan")
        if layout == "last":
            x = x.contiguous(memory_format=torch.channels_last_3d)
        if layout == "strided":
            x = draw(*shape[:3], shape[4], shape[3]).transpose(3, 4)
        args = dict(x=x, act=act)
        if film:
            args.update(scale=0.2 * draw(*shape[:2]), shift=0.2 * draw(*shape[:2]))
        return args

    return build


CASES = {
    "first": case((2, 16, 5, 6, 7)),
    "last": case((2, 16, 5, 6, 7), layout="last"),
    "student": case((1, 32, 6, 7, 9), layout="last"),
    "plain": case((1, 6, 3, 4, 5), film=False, act=None),
    "plain_last": case((2, 24, 3, 4, 5), film=False, act=None, layout="last"),
    "film_alone": case((2, 8, 3, 4, 5), act=None, layout="last"),
    "odd_channels": case((1, 19, 5, 3, 11), layout="last"),
    "odd_channels_first": case((1, 19, 5, 3, 11)),
    "one_channel": case((2, 1, 7, 8, 9), layout="last"),
    "one_voxel": case((1, 8, 1, 1, 1)),
    "large_mean": case((1, 16, 4, 5, 6), mean=1e4, layout="last"),
    "small": case((1, 16, 4, 5, 6), std=1e-4, layout="last"),
    "constant": case((1, 8, 4, 4, 4), fill=3.7),
    "zero": case((1, 8, 4, 4, 4), fill=0.0, layout="last"),
    "nan_in_one_voxel": case((1, 32, 3, 4, 5), layout="last", nan_at=(0, 3, 1, 2, 3)),
    "nan_in_one_voxel_first": case((1, 8, 3, 4, 5), nan_at=(0, 3, 1, 2, 3)),
    "several_slabs": case((1, 4, 14, 15, 21)),
    "several_slabs_last": case((2, 4, 14, 15, 21), layout="last"),
    "many_channels": case((1, 264, 2, 3, 3), layout="last"),
    "strided": case((1, 8, 5, 6, 7), layout="strided"),
    "no_samples": case((0, 8, 2, 3, 4)),
}

SPEC = Spec(
    family=FAMILY,
    call=rms_norm,
    reference=reference,
    cases=CASES,
    tolerance={torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3},
    gradients=("x", "scale", "shift"),
)
