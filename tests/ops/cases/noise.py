"""noise: boxes, far voxels, large seeds."""

from __future__ import annotations

import torch

from mrisr.ops.noise import FAMILY, normal_noise, reference
from tests.ops.cases.spec import Spec


def _case(shape, origin, grid, seed, sample, step):
    return lambda generator: dict(
        shape=list(shape), origin=list(origin), grid_shape=list(grid), seed=seed, sample=sample, step=step
    )


def _spec_reference(shape, *, seed, origin, grid_shape, sample, step) -> torch.Tensor:
    return reference(shape, origin, grid_shape, seed, sample, step, torch.device("cpu"), torch.float64)


SPEC = Spec(
    family=FAMILY,
    call=normal_noise,
    reference=_spec_reference,
    cases={
        "whole": _case((9, 10, 37), (0, 0, 0), (9, 10, 37), 0, 0, 0),
        "box": _case((3, 5, 17), (4, 2, 11), (9, 10, 37), 7, 1, 3),
        "one_voxel": _case((1, 1, 1), (8, 9, 36), (9, 10, 37), -1, 2**32 - 1, 2**31),
        "empty": _case((0, 4, 4), (0, 0, 0), (4, 4, 4), 1, 0, 0),
        "beyond_32_bits": _case((1, 2, 40), (4095, 4093, 8000), (4096, 4096, 8192), 2**63 + 5, 2, 1),
        "across_32_bits": _case((1, 1, 100), (0, 429196, 2870), (1, 500000, 10007), 3, 1, 2),
        "large_seed": _case((4, 4, 64), (0, 0, 0), (4, 4, 64), 2**64 - 1, 0, 0),
    },
    tolerance={torch.float32: 2e-6},
)
