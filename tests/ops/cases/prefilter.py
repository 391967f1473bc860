"""prefilter: orders, boundaries, short axes."""

from __future__ import annotations

import torch

from mrisr.ops.resample.prefilter import FAMILY, prefilter, reference
from tests.ops.cases.spec import Spec


def _case(shape, order: int, boundary: str, offset: float = 0.0, permute=None):
    def build(generator: torch.Generator) -> dict:
        x = torch.randn(shape, generator=generator, dtype=torch.float64) + offset
        return dict(x=x if permute is None else x.permute(permute), order=order, boundary=boundary)

    return build


SPEC = Spec(
    family=FAMILY,
    call=prefilter,
    reference=reference,
    cases={
        "quintic": _case((13, 6, 41), 5, "linear"),
        "quintic_mirror": _case((13, 41, 6), 5, "mirror"),
        "cubic": _case((2, 7, 33, 9), 3, "linear"),
        "cubic_mirror": _case((7, 9, 35), 3, "mirror"),
        "linear": _case((5, 6, 7), 1, "linear"),
        "several_groups": _case((3, 70, 83), 5, "linear"),
        "several_groups_mirror": _case((2, 5, 50, 150), 5, "mirror"),
        "one_voxel": _case((1, 1, 1), 5, "linear"),
        "short_axes": _case((3, 2, 3, 4), 5, "linear"),
        "short_axes_mirror": _case((4, 1, 2, 3), 5, "mirror"),
        "empty": _case((0, 2, 3, 4), 3, "linear"),
        "large_offset": _case((9, 8, 70), 5, "linear", offset=1e4),
        "non_contiguous": _case((9, 34, 12), 5, "mirror", permute=(1, 2, 0)),
    },
    # Per axis the quintic filter multiplies the finest detail by 7.5: one rounding of the samples is this in 3D.
    tolerance={torch.float32: 7.5**3 * 2**-23, torch.float64: 1e-11},
    gradients=("x",),
    float64=("native",),
)
