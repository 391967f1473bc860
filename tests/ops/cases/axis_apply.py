"""axis_apply: each axis, bands, batches, large offsets."""

from __future__ import annotations

import torch

from mrisr.ops.resample.axes import FAMILY, axis_apply, reference
from tests.ops.cases.spec import Spec


def _case(shape, n_out: int, axis: int, band: int | None = None, offset: float = 0.0, permute=None):
    def build(generator: torch.Generator) -> dict:
        x = torch.randn(shape, generator=generator, dtype=torch.float64) + offset
        if permute is not None:
            x = x.permute(permute)
        n_in = x.shape[axis - 3]
        matrix = torch.randn(n_out, n_in, generator=generator, dtype=torch.float64) / n_in**0.5
        if band is not None:
            centre = torch.arange(n_out)[:, None] * (n_in / n_out)
            matrix = matrix * ((torch.arange(n_in) - centre).abs() <= band)
        if offset:  # as interpolation does: rows sum to one, so that the result is as large as x
            matrix = matrix.abs() / matrix.abs().sum(1, keepdim=True)
        return dict(x=x, matrix=matrix, axis=axis)

    return build


SPEC = Spec(
    family=FAMILY,
    call=axis_apply,
    reference=reference,
    cases={
        "axis0": _case((17, 6, 41), 23, 0),
        "axis1": _case((5, 18, 67), 7, 1),
        "axis2": _case((5, 9, 33), 46, 2),
        "several_pieces": _case((23, 5, 31), 18, 0),
        "several_pieces_last": _case((9, 11, 30), 37, 2, band=4),
        "banded": _case((40, 7, 9), 61, 0, band=3),
        "one_voxel": _case((1, 1, 1), 1, 1),
        "one_line": _case((1, 1, 50), 3, 2),
        "batch": _case((2, 3, 6, 7, 8), 9, 0),
        "empty": _case((0, 5, 6), 4, 1),
        "large_offset": _case((8, 9, 34), 8, 1, offset=1e4),
        "non_contiguous": _case((9, 34, 12), 15, 0, permute=(1, 2, 0)),
    },
    tolerance={torch.float32: 1e-5, torch.float64: 1e-12},
    gradients=("x",),
)
